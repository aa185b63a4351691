"""Results as Markdown: cells, tables, and pages with marked blocks. Pure: no measuring, no files.

Numbers are medians over the rounds, `±` is half of the range; every round is in the JSON file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.results import Results, Summary

NOTHING = "\N{EN DASH}"  # in a cell that was not measured
MICRO = "\N{MICRO SIGN}s"
TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True, slots=True)
class Cells:
    """The numbers of one row in one workload; ratios refer to the row `first`.

    Each raises `KeyError` if it was not measured.
    """

    results: Results
    workload: str
    row: str
    first: str = ""

    def __getitem__(self, number: str) -> float:
        return self.results.summary(self.workload, self.row, number).median

    def rate(self) -> Summary:
        return self.results.summary(self.workload, self.row, "rate")

    def is_ceiling(self) -> bool:
        return any(row.name == self.row and not row.does_the_job for row in self.results.rows)

    def cpu(self) -> Summary:
        """Return the CPU ms of a check-in: the server's, and PostgreSQL's if it is used."""
        parts = ["server_cpu_ms"] if self.is_ceiling() else ["server_cpu_ms", "database_cpu_ms"]
        return self.results.summary(self.workload, self.row, *parts)

    def cpu_parts(self, digits: int) -> str:
        server, database = (f"{self[f'{p}_cpu_ms']:.{digits}f}" for p in ("server", "database"))
        return server if self.is_ceiling() else f"{server} + {database}"

    def ratio(self, number: Callable[[Cells], Summary], digits: int) -> str:
        """Return a number's ratio to the first row's; nothing if that was not measured."""
        try:
            first = number(Cells(self.results, self.workload, self.first)).median
        except KeyError:
            return ""
        return f" ({number(self).median / first:.{digits}f}{TIMES})" if first else ""

    def latency(self, low: str = "p50_ms", high: str = "p99_ms") -> str:
        return f"{short(self[low])} / {short(self[high])}"


Columns = Mapping[str, Callable[[Cells], str]]


def cell(show: Callable[[Cells], str], cells: Cells) -> str:
    try:
        return show(cells)
    except KeyError:
        return NOTHING


def columns_table(head: str, rows: Iterable[tuple[str, Cells]], columns: Columns) -> str:
    """Return a table with a labelled row for each of `rows`."""
    lines = [[label, *(cell(show, cells) for show in columns.values())] for label, cells in rows]
    return table([[head, *columns], *lines])


def percent(summary: Summary) -> str:
    return f"±{summary.spread:.0%}"


def short(milliseconds: float) -> str:
    """Three digits: 0.683, 4.61, 121."""
    for limit, digits in ((1, 3), (10, 2), (100, 1)):
        if milliseconds < limit:
            return f"{milliseconds:.{digits}f}"
    return f"{milliseconds:.0f}"


def table(lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table. The first line is its head; the first column aligns left."""
    columns = []
    for number, column in enumerate(zip(*lines, strict=True)):
        width = max(map(len, column))
        rule = "-" * width if number == 0 else "-" * (width - 1) + ":"
        padded = [text.ljust(width) if number == 0 else text.rjust(width) for text in column]
        columns.append([padded[0], rule, *padded[1:]])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {' '.join(line.split())}" for line in lines)


def machine_line(results: Results) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    return f"{results.date}, UTC. {machine}."


# ------------------------------------------------------------------------------------------ pages


def begin(name: str, command: str) -> str:
    """Return the comment before a block, which says what writes it."""
    return f"<!-- {name}: written by {command} -->"


def end(name: str) -> str:
    return f"<!-- end of {name} -->"


def fill(page: str, blocks: Mapping[str, str], command: str) -> str:
    """Return `page` with the contents of all marked blocks of this command made anew.

    Raises `ValueError` if a block has no place, or a place no block.
    """
    marked = re.findall(rf"(?m)^<!-- (\S+): written by {re.escape(command)} -->$", page)
    if sorted(marked) != sorted(blocks):
        raise ValueError(f"the page has the blocks {sorted(marked)}, expected {sorted(blocks)}")
    for name, text in blocks.items():
        before, _, rest = page.partition(begin(name, command))
        _, ended, after = rest.partition(end(name))
        if not ended:
            raise ValueError(f"the block {name} has no end")
        page = f"{before}{begin(name, command)}\n\n{text}\n\n{end(name)}{after}"
    return page
