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

RATE = "{rate:,.0f} ±{rate.spread:.0%}"
LATENCY = "{p50_ms:~} / {p99_ms:~}"


@dataclass(frozen=True, slots=True)
class Cells:
    """The numbers of one row in one workload, by name; `label` is its first cell."""

    results: Results
    workload: str
    row: str
    label: str

    def __getitem__(self, number: str) -> Summary:
        return self.results.summary(self.workload, self.row, number)


Show = str | Callable[[Cells], str]  # a format of numbers by their names, or what returns the text


def cell(show: Show, cells: Cells) -> str:
    try:
        return show.format_map(cells) if isinstance(show, str) else show(cells)
    except (KeyError, ZeroDivisionError):
        return NOTHING


def rows(results: Results, workload: str, label: str | Callable[[str], str] = "{}") -> list[Cells]:
    """Return all rows of a workload; `label` makes the first cell of a row's name."""
    make = label.format if isinstance(label, str) else label
    return [Cells(results, workload, row, make(row)) for row in results.rounds.get(workload, ())]


def columns_table(head: str, measured: Sequence[Cells], columns: Mapping[str, Show]) -> str:
    """Return a table with a line for each of the rows."""
    lines = [[m.label, *(cell(show, m) for show in columns.values())] for m in measured]
    return table([[head, *columns], *lines])


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


def begin(name: str, command: str) -> str:
    """Return the comment before a block of a page, which says what writes it."""
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
