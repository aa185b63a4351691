"""The numbers of a run, as they are kept in results.json, and the medians over its rounds."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.workloads import Numbers


@dataclass(frozen=True, slots=True)
class Row:
    """A peer as it stands in the table."""

    name: str
    title: str
    writes: str
    does_the_job: bool


@dataclass(slots=True)
class Results:
    """`rounds` holds, by workload and row, the numbers of each round. `date` is ISO 8601, UTC."""

    date: str
    machine: dict[str, str]
    settings: dict[str, float]
    rows: list[Row]
    rounds: dict[str, dict[str, list[Numbers]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # title -> reason
    notes: list[str] = field(default_factory=list)

    def add(self, workload: str, row: str, numbers: Numbers) -> None:
        self.rounds.setdefault(workload, {}).setdefault(row, []).append(numbers)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def leave_out(self, row: Row, reason: str) -> None:
        """Take a row and all its numbers out, and keep the reason."""
        self.rows.remove(row)
        self.left_out[row.title] = reason
        for by_row in self.rounds.values():
            by_row.pop(row.name, None)

    def summary(self, workload: str, row: str, *number: str) -> Summary | None:
        """Return a number, or the sum of several, over all rounds; None where it is missing."""
        rounds = self.rounds.get(workload, {}).get(row, [])
        if not rounds or any(name not in numbers for name in number for numbers in rounds):
            return None
        return summarise([sum(numbers[name] for name in number) for numbers in rounds])

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


@dataclass(frozen=True, slots=True)
class Summary:
    """The median over the rounds, and the lowest and the highest of them."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Half of the range, as a share of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0


def summarise(values: list[float]) -> Summary:
    """Raises `statistics.StatisticsError` where there are none."""
    return Summary(statistics.median(values), min(values), max(values))


def load(path: Path) -> Results:
    """Read what `to_json` wrote."""
    members = json.loads(path.read_text())
    members["rows"] = [Row(**row) for row in members["rows"]]
    return Results(**members)
