"""The numbers of a run, as they are kept in results.json, and the medians over its rounds."""

from __future__ import annotations

import contextlib
import datetime
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.programs import say

Numbers = dict[str, float]  # of one measured time, under names with their units

_SHOWN = (
    *("rate", "p50_ms", "p99_ms", "server_cpu_ms", "database_cpu_ms", "kib_per_connection"),
    *("kib_per_stream", "cpu_us_per_message", "cpu_us_per_update"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """A contender as it stands in the table. A ceiling does not do the job."""

    name: str
    title: str
    writes: str
    does_the_job: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """The median over the rounds, the lowest, the highest, and each round's ratio to the first row.

    It formats as its median. The format `~` is three digits: 0.683, 4.61, 121.
    """

    median: float
    low: float
    high: float
    ratios: tuple[float, ...]  # empty if the first row was not measured

    @property
    def spread(self) -> float:
        """Half of the range, as a share of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0

    @property
    def ratio(self) -> float:
        """The median of the ratios. Raises `KeyError` if the first row was not measured."""
        if not self.ratios:
            raise KeyError("ratio")
        return statistics.median(self.ratios)

    def __format__(self, spec: str) -> str:
        if spec == "~":
            spec = f".{sum(self.median < limit for limit in (1, 10, 100))}f"
        return format(self.median, spec)


@dataclass(slots=True)
class Results:
    """`rounds` holds, by workload and row, the numbers of each round. `date` is ISO 8601, UTC."""

    date: str = field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    )
    machine: dict[str, str] = field(default_factory=dict)
    settings: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    rounds: dict[str, dict[str, list[Numbers]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # title -> reason
    notes: list[str] = field(default_factory=list)

    def add(self, workload: str, row: str, numbers: Numbers) -> None:
        self.rounds.setdefault(workload, {}).setdefault(row, []).append(numbers)
        shown = (name for name in _SHOWN if name in numbers)
        say(f"  {workload} {row}: {', '.join(f'{name} {numbers[name]:.4g}' for name in shown)}")

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def leave_out(self, row: Row, reason: str) -> None:
        """Remove a row and all its numbers, and keep the reason."""
        self.rows.remove(row)
        self.left_out[row.title] = reason
        for by_row in self.rounds.values():
            by_row.pop(row.name, None)

    def in_rounds(self, count: int, budget_s: float) -> Iterator[int]:
        """Yield `count` times; but begin no round, after the first, that would end too late."""
        begun, longest_s = time.monotonic(), 0.0
        for number in range(count):
            at = time.monotonic()
            if number and at - begun + longest_s > budget_s:
                self.note(f"{number} of {count} rounds: no time for more")
                return
            say(f"round {number + 1} of {count}")
            yield number
            self.settings["rounds"] = number + 1
            longest_s = max(longest_s, time.monotonic() - at)

    def summary(self, workload: str, row: str, number: str) -> Summary:
        """Summarise a number over all rounds. Raises `KeyError` if it was not measured.

        It may be a sum, `a+b`; milliseconds of CPU may also be asked for as `cpu_us`.
        """
        by_row = self.rounds[workload]

        def values(name: str) -> list[float]:
            return [self._value(name, numbers, number) for numbers in by_row[name]]

        found = values(row)
        ratios: tuple[float, ...] = ()
        with contextlib.suppress(KeyError, ZeroDivisionError):
            # Of one round, since what disturbs a round disturbs all rows of it.
            pairs = zip(found, values(next(iter(by_row))), strict=False)
            ratios = tuple(value / first for value, first in pairs)
        return Summary(statistics.median(found), min(found), max(found), ratios)

    def _value(self, row: str, numbers: Numbers, number: str) -> float:
        if "+" in number:
            return sum(self._value(row, numbers, part) for part in number.split("+"))
        if number.endswith("cpu_us"):
            return self._value(row, numbers, number.removesuffix("us") + "ms") * 1000
        ceiling = any(each.name == row and not each.does_the_job for each in self.rows)
        return 0.0 if ceiling and number == "database_cpu_ms" else numbers[number]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def load(path: Path) -> Results:
    """Read what `to_json` wrote."""
    members = json.loads(path.read_text())
    members["rows"] = [Row(**row) for row in members["rows"]]
    return Results(**members)
