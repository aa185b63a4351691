"""The comparison of all contenders as Markdown: results.md, and the block of README.md. Pure."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.results import Results
from benchmarks.tables import (
    MICRO,
    NOTHING,
    TIMES,
    Cells,
    bullets,
    cell,
    columns_table,
    machine_line,
    percent,
    table,
)

COMMAND = "python -m benchmarks"


def markdown(results: Results) -> str:
    """Return the table of all rows, the tables of tornado_status alone, and what to know."""
    parts = [_main_table(results)]
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
    parts += [*_streams_table(results), _footer(results)]
    return "\n\n".join(filter(None, parts)) + "\n"


def summary(results: Results) -> dict[str, str]:
    """Return the blocks of README.md: a table that is short, and where it comes from."""
    lines = [["server", "check-ins/s", f"CPU {MICRO}", f"CPU {MICRO}, fresh connection"]]
    for row in results.rows:
        kept, fresh = (
            Cells(results, workload, row.name, results.rows[0].name)
            for workload in ("keep-alive", "handshake")
        )
        rate = cell(lambda m: f"{m.rate().median:,.0f}{m.ratio(Cells.rate, 1)}", kept)
        lines.append([row.title, rate, cell(_cpu_us, kept), cell(_cpu_us, fresh)])
    machine = results.machine
    known = [machine.get("CPU", ""), f"{machine.get('cores')} cores" if "cores" in machine else ""]
    known += [f"{name} {machine[name]}" for name in ("Python", "PostgreSQL") if name in machine]
    source = f"{results.date[:10]}, {', '.join(filter(None, known))}; {TIMES} the ratio to the"
    return {"results": f"{table(lines)}\n\n{source} first row."}


def _rate(m: Cells) -> str:
    return f"{m.rate().median:,.0f} {percent(m.rate())}{m.ratio(Cells.rate, 1)}"


def _cpu(m: Cells) -> str:
    return f"{m.cpu_parts(3)} {percent(m.cpu())}{m.ratio(Cells.cpu, 2)}"


def _cpu_us(m: Cells) -> str:
    return f"{m.cpu().median * 1000:,.0f}{m.ratio(Cells.cpu, 2)}"


_COLUMNS: tuple[tuple[str, str, Callable[[Cells], str]], ...] = (
    ("keep-alive", "keep-alive: check-ins/s", _rate),
    ("keep-alive", "p50 / p99 ms", Cells.latency),
    ("keep-alive", "CPU ms", _cpu),
    ("handshake", "handshake: check-ins/s", _rate),
    ("handshake", "CPU ms", _cpu),
    ("resumed", "resumed: check-ins/s", _rate),
    ("resumed", "CPU ms", _cpu),
    ("storm", "storm: p50 / p99 ms", Cells.latency),
    ("storm", "the same alone", lambda m: m.latency("alone_p50_ms", "alone_p99_ms")),
    ("idle", "idle: KiB", lambda m: f"{m['kib_per_connection']:.1f}"),
)


def _main_table(results: Results) -> str:
    columns = [column for column in _COLUMNS if results.rounds.get(column[0])]
    if not columns:
        return ""
    lines = [["server", *(title for _, title, _ in columns)]]
    for row in results.rows:
        cells = (
            cell(show, Cells(results, workload, row.name, results.rows[0].name))
            for workload, _, show in columns
        )
        lines.append([row.title, *cells])
    return table(lines)


def _own_table(results: Results, workload: str, head: str, sentence: str) -> list[str]:
    by_row = list(results.rounds.get(workload, ()))
    if not by_row:
        return []
    columns: dict[str, Callable[[Cells], str]] = {
        "check-ins/s": lambda m: (
            f"{m.rate().median:,.0f} {percent(m.rate())}{m.ratio(Cells.rate, 2)}"
        ),
        "CPU ms: server + PostgreSQL": lambda m: (
            f"{m.cpu_parts(4)} {percent(m.cpu())}{m.ratio(Cells.cpu, 2)}"
        ),
    }
    rows = []
    for name in by_row:
        number, _, condition = name.partition(" ")
        label = f"{int(number):,}{condition and f', {condition}'}"
        rows.append((label, Cells(results, workload, name, by_row[0])))
    wal: Callable[[Cells], str] = lambda m: f"{m['wal_bytes']:,.0f}"  # noqa: E731
    if any(cell(wal, cells) != NOTHING for _, cells in rows):
        columns["WAL bytes"] = wal
    return [sentence, columns_table(head, rows, columns)]


def _streams_table(results: Results) -> list[str]:
    by_row = results.rounds.get("streams")
    if not by_row:
        return []
    sentence = (
        "Streams of all events (`/api/stream`) at once: memory of each; the server's CPU for one"
        " message to one stream, at a steady pace; and keep-alive as above while they are open:"
    )
    rows = [(f"{int(name):,}", Cells(results, "streams", name)) for name in by_row]
    columns: dict[str, Callable[[Cells], str]] = {
        "KiB each": lambda m: f"{m['kib_per_stream']:.1f}" if int(m.row) else NOTHING,
        f"CPU {MICRO} a message": lambda m: (
            f"{m['cpu_us_per_message']:.2f}" if int(m.row) else NOTHING
        ),
        "check-ins/s beside": lambda m: f"{m['rate']:,.0f}",
        "p50 / p99 ms": Cells.latency,
    }
    return [sentence, columns_table("streams", rows, columns)]


def _footer(results: Results) -> str:
    settings = results.settings
    lines = [
        machine_line(results),
        f"Medians of {settings['rounds']:.0f} rounds of {settings['seconds']:g} s each; ± is"
        f" half of the range, {TIMES} the ratio to the first row.",
        "CPU ms: of one check-in, the server's processes + PostgreSQL's. Latency: of the client.",
    ]
    titles: dict[str, list[str]] = {}
    for row in results.rows:
        titles.setdefault(row.writes, []).append(row.title)
    written = "; ".join(f"{writes} ({', '.join(names)})" for writes, names in titles.items())
    lines += [f"Each check-in writes: {written}."] if written else []
    lines += [f"Left out: {title}: {reason}" for title, reason in results.left_out.items()]
    return bullets([*lines, *(f"Note: {note}" for note in results.notes)])
