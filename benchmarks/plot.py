"""The plot of the comparison: results.svg. Pure."""

from __future__ import annotations

from xml.sax.saxutils import escape

from benchmarks.results import Results, Row

# In the middle between black and white: to be read on either.
_TEXT = "#7c7c7c"
_SERVER, _OURS, _DATABASE, _CEILING = "#5b8dbf", "#d9822b", "#8c9a5b", "#9a9a9a"

_WIDTH, _LABELS, _VALUES = 780, 250, 90
_BAR, _GAP, _HEAD, _MARGIN = 18, 8, 46, 12
_ROOM = _WIDTH - _LABELS - _VALUES - _MARGIN

_PARTS = "server, and PostgreSQL (green)"
_PANELS = (  # title, workload, numbers that lie side by side
    ("Check-ins a second, 64 connections that stay", "keep-alive", ("rate",)),
    *(
        (f"CPU ms a check-in {which}: {_PARTS}", workload, ("server_cpu_ms", "database_cpu_ms"))
        for which, workload in (
            ("on a connection that stays", "keep-alive"),
            ("with a fresh TLS 1.3 connection", "handshake"),
        )
    ),
)


def svg(results: Results) -> str:
    """Return the plot: a panel for throughput, and one for CPU a check-in in each way."""
    body: list[str] = []
    top = _MARGIN
    for title, workload, numbers in _PANELS:
        rows = [row for row in results.rows if row.name in results.rounds.get(workload, {})]
        if rows:
            body.append(_text(_MARGIN, top + 26, title, 'font-size="14" font-weight="bold"'))
            body += _bars(results, rows, workload, numbers, top + _HEAD - 8)
            top += _HEAD + len(rows) * (_BAR + _GAP)
    machine = ", ".join(results.machine.get(name, "") for name in ("CPU", "kernel"))
    body.append(_text(_MARGIN, top + 22, f"{results.date[:10]}, {machine}", 'font-size="11"'))
    height = top + 22 + _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" role="img"'
        f' viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">\n'
        "<title>Check-ins: throughput and CPU of each server</title>\n"
        + "\n".join([*body, "</svg>\n"])
    )


def _bars(
    results: Results, rows: list[Row], workload: str, numbers: tuple[str, ...], y: int
) -> list[str]:
    """Return a bar for each row: its numbers side by side, the sum, the range of a single one."""
    measured = [[results.summary(workload, row.name, number) for number in numbers] for row in rows]
    ends = [
        parts[0].high if len(parts) == 1 else sum(part.median for part in parts)
        for parts in measured
    ]
    scale = _ROOM / (max(ends) or 1)
    lines = []
    for row, parts, end in zip(rows, measured, ends, strict=True):
        label = row.title.replace("`", "")
        lines.append(_text(_LABELS - 8, y + 13, label, 'text-anchor="end"'))
        server = _OURS if row.name == "tornado_status" else _SERVER
        fills = [server if row.does_the_job else _CEILING, _DATABASE]
        x = float(_LABELS)
        for part, fill in zip(parts, fills[: len(parts)], strict=True):
            width = part.median * scale
            size = f'width="{width:.1f}" height="{_BAR}"'
            lines.append(f'<rect x="{x:.1f}" y="{y}" {size} fill="{fill}"/>')
            x += width
        shown = f"{sum(part.median for part in parts):.3f}"
        if len(parts) == 1:
            shown = f"{parts[0]:,.0f}"
            low, high = (_LABELS + edge * scale for edge in (parts[0].low, parts[0].high))
            whisker = f"M{low:.1f} {y + 5}v8m0-4H{high:.1f}m0-4v8"
            lines.append(f'<path d="{whisker}" stroke="{_TEXT}" fill="none"/>')
        lines.append(_text(_LABELS + end * scale + 6, y + 13, shown))
        y += _BAR + _GAP
    return lines


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{_TEXT}" {attributes}>{escape(text)}</text>'
