"""The report: results to a Markdown table and to a plot. Pure: no measuring, no files.

Ratios refer to the first row that was measured. Numbers are medians over the rounds, `±` is half
of the range; every round is in results.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from benchmarks.results import Results, Row, Summary

NOTHING = "\N{EN DASH}"  # in a cell that was not measured
MICRO = "\N{MICRO SIGN}s"
TIMES = "\N{MULTIPLICATION SIGN}"


COMMAND = "python -m benchmarks"


# ---------------------------------------------------------------------------------------- table


def markdown(results: Results) -> str:
    """Return the table of all rows, the tables of tornado_status alone, and what to know."""
    parts = _main_table(results)
    parts += _own_table(
        results,
        "users",
        "users in the database",
        "The store alone, driven in its own process with random users, without TLS and HTTP:",
    )
    parts += _own_table(
        results,
        "reuse_port",
        "servers on one port and database",
        "The whole server, keep-alive as above:",
    )
    parts += _streams_table(results)
    parts.append(_footer(results))
    return "\n\n".join(parts) + "\n"


def summary(results: Results) -> dict[str, str]:
    """Return the blocks of README.md: a table that is short, and where it comes from."""
    lines = [["server", "check-ins/s", f"CPU {MICRO}", f"CPU {MICRO}, fresh connection"]]
    for row in results.rows:
        cells = [row.title]
        rate = results.summary("keep-alive", row.name, "rate")
        first = results.summary("keep-alive", results.rows[0].name, "rate")
        cells.append(f"{rate.median:,.0f}{_times(rate, first)}" if rate else NOTHING)
        for workload in ("keep-alive", "handshake"):
            cpu = _both_cpu(results, workload, row)
            first = _both_cpu(results, workload, results.rows[0])
            text = f"{cpu.median * 1000:,.0f}{_times(cpu, first, digits=2)}" if cpu else NOTHING
            cells.append(text)
        lines.append(cells)
    machine = results.machine
    known = [
        *(machine[name] for name in ("CPU",) if name in machine),
        *(f"{machine[name]} {name}" for name in ("cores",) if name in machine),
        *(f"{name} {machine[name]}" for name in ("Python", "PostgreSQL") if name in machine),
    ]
    source = f"{results.date[:10]}, {', '.join(known)}; {TIMES} the ratio to the first row."
    return {"results": f"{table(lines)}\n\n{source}"}


def _main_table(results: Results) -> list[str]:
    columns = [column for column in _COLUMNS if results.rounds.get(column.workload)]
    lines = [["server", *(column.title for column in columns)]]
    lines += [
        [row.title, *(column.cell(results, row) for column in columns)] for row in results.rows
    ]
    return [table(lines)] if columns else []


@dataclass(frozen=True, slots=True)
class _Column:
    workload: str
    title: str
    cell: Callable[[Results, Row], str]


def _rate(workload: str) -> Callable[[Results, Row], str]:
    def cell(results: Results, row: Row) -> str:
        rate = results.summary(workload, row.name, "rate")
        if rate is None:
            return NOTHING
        first = results.summary(workload, results.rows[0].name, "rate")
        return f"{rate.median:,.0f} ±{rate.spread:.0%}{_times(rate, first)}"

    return cell


def _cpu(workload: str) -> Callable[[Results, Row], str]:
    def cell(results: Results, row: Row) -> str:
        server = results.summary(workload, row.name, "server_cpu_ms")
        database = results.summary(workload, row.name, "database_cpu_ms")
        both = _both_cpu(results, workload, row)
        if server is None or database is None or both is None:
            return NOTHING
        parts = f"{server.median:.3f}"
        if row.does_the_job:
            parts += f" + {database.median:.3f}"
        first = _both_cpu(results, workload, results.rows[0])
        return f"{parts} ±{both.spread:.0%}{_times(both, first, digits=2)}"

    return cell


def _both_cpu(results: Results, workload: str, row: Row) -> Summary | None:
    """Return the CPU of a check-in: the server's, and PostgreSQL's where it is used."""
    parts = ("server_cpu_ms", "database_cpu_ms") if row.does_the_job else ("server_cpu_ms",)
    return results.summary(workload, row.name, *parts)


def _latency(workload: str, low: str, high: str) -> Callable[[Results, Row], str]:
    def cell(results: Results, row: Row) -> str:
        median = results.summary(workload, row.name, low)
        tail = results.summary(workload, row.name, high)
        if median is None or tail is None:
            return NOTHING
        return f"{short(median.median)} / {short(tail.median)}"

    return cell


def _kib(results: Results, row: Row) -> str:
    kib = results.summary("idle", row.name, "kib_per_connection")
    return NOTHING if kib is None else f"{kib.median:.1f}"


_COLUMNS = (
    _Column("keep-alive", "keep-alive: check-ins/s", _rate("keep-alive")),
    _Column("keep-alive", "p50 / p99 ms", _latency("keep-alive", "p50_ms", "p99_ms")),
    _Column("keep-alive", "CPU ms", _cpu("keep-alive")),
    _Column("handshake", "handshake: check-ins/s", _rate("handshake")),
    _Column("handshake", "CPU ms", _cpu("handshake")),
    _Column("resumed", "resumed: check-ins/s", _rate("resumed")),
    _Column("resumed", "CPU ms", _cpu("resumed")),
    _Column("storm", "storm: p50 / p99 ms", _latency("storm", "p50_ms", "p99_ms")),
    _Column("storm", "the same alone", _latency("storm", "alone_p50_ms", "alone_p99_ms")),
    _Column("idle", "idle: KiB", _kib),
)


def _own_table(results: Results, workload: str, title: str, sentence: str) -> list[str]:
    by_row = results.rounds.get(workload)
    if not by_row:
        return []
    lines = [[title, "check-ins/s", "CPU ms: server + PostgreSQL", "WAL bytes"]]
    first_rate = first_cpu = None
    for name in by_row:
        rate = results.summary(workload, name, "rate")
        server = results.summary(workload, name, "server_cpu_ms")
        database = results.summary(workload, name, "database_cpu_ms")
        cpu = results.summary(workload, name, "server_cpu_ms", "database_cpu_ms")
        wal = results.summary(workload, name, "wal_bytes")
        if rate and server and database and cpu:
            first_rate, first_cpu = first_rate or rate, first_cpu or cpu
            number, _, condition = name.partition(" ")
            parts = f"{server.median:.4f} + {database.median:.4f}"
            lines.append(
                [
                    f"{int(number):,}{condition and f', {condition}'}",
                    f"{rate.median:,.0f} ±{rate.spread:.0%}{_times(rate, first_rate, 2)}",
                    f"{parts} ±{cpu.spread:.0%}{_times(cpu, first_cpu, 2)}",
                    f"{wal.median:,.0f}" if wal else NOTHING,
                ]
            )
    if all(line[3] == NOTHING for line in lines[1:]):
        lines = [line[:3] for line in lines]
    return [sentence, table(lines)]


def _streams_table(results: Results) -> list[str]:
    by_row = results.rounds.get("streams")
    if not by_row:
        return []
    lines = [["streams", "KiB each", "CPU \u00b5s a message", "check-ins/s beside", "p50 / p99 ms"]]
    for name in by_row:
        numbers = ("kib_per_stream", "cpu_us_per_message", "rate", "p50_ms", "p99_ms")
        found = [results.summary("streams", name, number) for number in numbers]
        kib, message, rate, low, high = (summary.median if summary else 0.0 for summary in found)
        lines.append(
            [
                f"{int(name):,}",
                f"{kib:.1f}" if int(name) else NOTHING,
                f"{message:.2f}" if int(name) else NOTHING,
                f"{rate:,.0f}",
                f"{short(low)} / {short(high)}",
            ]
        )
    sentence = (
        "Streams of all events (`/api/stream`) at once: memory of each; the server's CPU for one"
        " message to one stream, at a steady pace; and keep-alive as above while they are open:"
    )
    return [sentence, table(lines)]


def _footer(results: Results) -> str:
    settings = results.settings
    machine = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    lines = [
        f"{results.date}, UTC. {machine}.",
        f"Medians of {settings['rounds']:.0f} rounds of {settings['seconds']:g} s each; \u00b1 is"
        f" half of the range, {TIMES} the ratio to the first row.",
        "CPU ms: of one check-in, the server's processes + PostgreSQL's. Latency: of the client.",
    ]
    if results.rows:
        lines.append(f"Each check-in writes: {_what_is_written(results.rows)}.")
    lines += [f"Left out: {title}: {reason}" for title, reason in results.left_out.items()]
    lines += [f"Note: {note}" for note in results.notes]
    return "\n".join(f"- {' '.join(line.split())}" for line in lines)


def _what_is_written(rows: Sequence[Row]) -> str:
    titles: dict[str, list[str]] = {}
    for row in rows:
        titles.setdefault(row.writes, []).append(row.title)
    return "; ".join(f"{writes} ({', '.join(names)})" for writes, names in titles.items())


def _times(value: Summary, first: Summary | None, digits: int = 1) -> str:
    if not first or not first.median:
        return ""
    return f" ({value.median / first.median:.{digits}f}{TIMES})"


def short(milliseconds: float) -> str:
    """Three digits: 0.683, 4.61, 121."""
    for limit, digits in ((1, 3), (10, 2), (100, 1)):
        if milliseconds < limit:
            return f"{milliseconds:.{digits}f}"
    return f"{milliseconds:.0f}"


def table(lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table. The first line is its head; the first column aligns left."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]

    def text(cells: Iterable[str]) -> str:
        padded = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * width if column == 0 else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    return "\n".join([text(lines[0]), text(rule), *(text(line) for line in lines[1:])])


# ----------------------------------------------------------------------------------------- plot

# In the middle between black and white: to be read on either.
_TEXT = "#7c7c7c"
_SERVER, _OURS, _DATABASE, _CEILING = "#5b8dbf", "#d9822b", "#8c9a5b", "#9a9a9a"

_WIDTH, _LABELS, _VALUES = 780, 250, 90
_BAR, _GAP, _HEAD, _MARGIN = 18, 8, 46, 12


@dataclass(frozen=True, slots=True)
class _Bar:
    label: str
    parts: tuple[tuple[float, str], ...]  # value and colour, side by side
    whisker: tuple[float, float] | None
    value: str

    @property
    def end(self) -> float:
        return max(sum(value for value, _ in self.parts), self.whisker[1] if self.whisker else 0)


def svg(results: Results) -> str:
    """Return the plot: a panel for throughput, and one for CPU a check-in in each way."""
    panels = [
        ("Check-ins a second, 64 connections that stay", _rate_bars(results)),
        (
            "CPU ms a check-in on a connection that stays: server, and PostgreSQL (green)",
            _cpu_bars(results, "keep-alive"),
        ),
        (
            "CPU ms a check-in with a fresh TLS 1.3 connection: server, and PostgreSQL (green)",
            _cpu_bars(results, "handshake"),
        ),
    ]
    body, top = [], _MARGIN
    for title, bars in panels:
        if bars:
            body += _panel(title, bars, top)
            top += _HEAD + len(bars) * (_BAR + _GAP)
    machine = ", ".join(results.machine.get(name, "") for name in ("CPU", "kernel"))
    body.append(_text(_MARGIN, top + 22, f"{results.date[:10]}, {machine}", size=11))
    height = top + 22 + _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
        f' viewBox="0 0 {_WIDTH} {height}" role="img" font-family="sans-serif">\n'
        f"<title>Check-ins: throughput and CPU of each server</title>\n"
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _rate_bars(results: Results) -> list[_Bar]:
    bars = []
    for row in results.rows:
        rate = results.summary("keep-alive", row.name, "rate")
        if rate is not None:
            parts = ((rate.median, _colour(row)),)
            bars.append(_Bar(row.title, parts, (rate.low, rate.high), f"{rate.median:,.0f}"))
    return bars


def _cpu_bars(results: Results, workload: str) -> list[_Bar]:
    bars = []
    for row in results.rows:
        server = results.summary(workload, row.name, "server_cpu_ms")
        database = results.summary(workload, row.name, "database_cpu_ms")
        if server is not None and database is not None:
            mine = database.median if row.does_the_job else 0.0
            parts = ((server.median, _colour(row)), (mine, _DATABASE))
            bars.append(_Bar(row.title, parts, None, f"{server.median + mine:.3f}"))
    return bars


def _colour(row: Row) -> str:
    if row.name == "tornado_status":
        return _OURS
    return _SERVER if row.does_the_job else _CEILING


def _panel(title: str, bars: Sequence[_Bar], top: int) -> list[str]:
    scale = (_WIDTH - _LABELS - _VALUES - _MARGIN) / (max(bar.end for bar in bars) or 1)
    lines = [_text(_MARGIN, top + 26, title, size=14, weight="bold")]
    for number, bar in enumerate(bars):
        y = top + _HEAD - 8 + number * (_BAR + _GAP)
        lines.append(_text(_LABELS - 8, y + 13, bar.label.replace("`", ""), anchor="end"))
        x = float(_LABELS)
        for value, colour in bar.parts:
            width = value * scale
            lines.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>'
            )
            x += width
        if bar.whisker is not None:
            low, high = (_LABELS + value * scale for value in bar.whisker)
            middle = y + _BAR / 2
            lines.append(
                f'<path d="M{low:.1f} {middle - 4}v8M{low:.1f} {middle}H{high:.1f}'
                f'M{high:.1f} {middle - 4}v8" stroke="{_TEXT}" fill="none"/>'
            )
        lines.append(_text(_LABELS + bar.end * scale + 6, y + 13, bar.value))
    return lines


def _text(
    x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
        f' font-weight="{weight}" fill="{_TEXT}">{escape(text)}</text>'
    )
