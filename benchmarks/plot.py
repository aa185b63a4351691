"""The plot of the comparison: results.svg. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.results import Results, Row
from benchmarks.tables import Cells

# In the middle between black and white: to be read on either.
_TEXT = "#7c7c7c"
_SERVER, _OURS, _DATABASE, _CEILING = "#5b8dbf", "#d9822b", "#8c9a5b", "#9a9a9a"

_WIDTH, _LABELS, _VALUES = 780, 250, 90
_BAR, _GAP, _HEAD, _MARGIN = 18, 8, 46, 12

_PANELS = {
    "Check-ins a second, 64 connections that stay": "",
    "CPU ms a check-in on a connection that stays: server, and PostgreSQL (green)": "keep-alive",
    "CPU ms a check-in with a fresh TLS 1.3 connection: server, and PostgreSQL (green)": (
        "handshake"
    ),
}

# A label, values and colours side by side, a range, and the number at the end.
_Bar = tuple[str, list[tuple[float, str]], "tuple[float, float] | None", str]


def svg(results: Results) -> str:
    """Return the plot: a panel for throughput, and one for CPU a check-in in each way."""
    body: list[str] = []
    top = _MARGIN
    for title, workload in _PANELS.items():
        bars = _cpu_bars(results, workload) if workload else _rate_bars(results)
        if bars:
            body += _panel(title, bars, top)
            top += _HEAD + len(bars) * (_BAR + _GAP)
    machine = ", ".join(results.machine.get(name, "") for name in ("CPU", "kernel"))
    body.append(_text(_MARGIN, top + 22, f"{results.date[:10]}, {machine}", size=11))
    height = top + 22 + _MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
        f' viewBox="0 0 {_WIDTH} {height}" role="img" font-family="sans-serif">',
        "<title>Check-ins: throughput and CPU of each server</title>",
        *body,
        "</svg>\n",
    ]
    return "\n".join(lines)


def _measured(results: Results, workload: str) -> list[tuple[Row, Cells]]:
    by_row = results.rounds.get(workload, {})
    return [(r, Cells(results, workload, r.name)) for r in results.rows if r.name in by_row]


def _rate_bars(results: Results) -> list[_Bar]:
    bars: list[_Bar] = []
    for row, cells in _measured(results, "keep-alive"):
        rate = cells.rate()
        parts = [(rate.median, _colour(row))]
        bars.append((row.title, parts, (rate.low, rate.high), f"{rate.median:,.0f}"))
    return bars


def _cpu_bars(results: Results, workload: str) -> list[_Bar]:
    bars: list[_Bar] = []
    for row, cells in _measured(results, workload):
        server = cells["server_cpu_ms"]
        database = cells["database_cpu_ms"] if row.does_the_job else 0.0
        parts = [(server, _colour(row)), (database, _DATABASE)]
        bars.append((row.title, parts, None, f"{server + database:.3f}"))
    return bars


def _colour(row: Row) -> str:
    if row.name == "tornado_status":
        return _OURS
    return _SERVER if row.does_the_job else _CEILING


def _panel(title: str, bars: Sequence[_Bar], top: int) -> list[str]:
    ends = [
        max(sum(value for value, _ in parts), whisker[1] if whisker else 0)
        for _, parts, whisker, _ in bars
    ]
    scale = (_WIDTH - _LABELS - _VALUES - _MARGIN) / (max(ends) or 1)
    lines = [_text(_MARGIN, top + 26, title, size=14, weight="bold")]
    for number, (label, parts, whisker, shown) in enumerate(bars):
        y = top + _HEAD - 8 + number * (_BAR + _GAP)
        lines.append(_text(_LABELS - 8, y + 13, label.replace("`", ""), anchor="end"))
        x = float(_LABELS)
        for value, colour in parts:
            width = value * scale
            lines.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>'
            )
            x += width
        if whisker is not None:
            low, high = (_LABELS + value * scale for value in whisker)
            middle = y + _BAR / 2
            lines.append(
                f'<path d="M{low:.1f} {middle - 4}v8M{low:.1f} {middle}H{high:.1f}'
                f'M{high:.1f} {middle - 4}v8" stroke="{_TEXT}" fill="none"/>'
            )
        lines.append(_text(_LABELS + ends[number] * scale + 6, y + 13, shown))
    return lines


def _text(
    x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
        f' font-weight="{weight}" fill="{_TEXT}">{escape(text)}</text>'
    )
