"""The comparison of all contenders as Markdown: results.md, and the block of README.md. Pure."""

from __future__ import annotations

from benchmarks.results import Results
from benchmarks.tables import (
    LATENCY,
    MICRO,
    NOTHING,
    RATE,
    TIMES,
    Cells,
    Show,
    bullets,
    cell,
    columns_table,
    machine_line,
    rows,
    table,
)

COMMAND = "python -m benchmarks"

_TO_FIRST = "the median of the rounds' ratios to the first row"
_CPU = "server_cpu_ms+database_cpu_ms"
_SPREAD = f" ±{{{_CPU}.spread:.0%}} ({{{_CPU}.ratio:.2f}}{TIMES})"
_RATE = f"{RATE} ({{rate.ratio:.1f}}{TIMES})"


def _cpu(m: Cells) -> str:
    database = " + {database_cpu_ms:.3f}" if m["database_cpu_ms"].median else ""  # none: a ceiling
    return f"{{server_cpu_ms:.3f}}{database}{_SPREAD}".format_map(m)


_MAIN: tuple[tuple[str, str, Show], ...] = (
    ("keep-alive", "keep-alive: CPU ms", _cpu),
    ("keep-alive", "check-ins/s", _RATE),
    ("keep-alive", "p50 / p99 ms", LATENCY),
    ("handshake", "handshake: CPU ms", _cpu),
    ("handshake", "check-ins/s", _RATE),
    ("resumed", "resumed: CPU ms", _cpu),
    ("resumed", "check-ins/s", _RATE),
    ("storm", "storm: p50 / p99 ms", LATENCY),
    ("storm", "the same alone", "{alone_p50_ms:~} / {alone_p99_ms:~}"),
    ("idle", "idle: KiB", "{kib_per_connection:.1f}"),
)
_STORE: dict[str, Show] = {
    "CPU ms: server + PostgreSQL": f"{{server_cpu_ms:.4f}} + {{database_cpu_ms:.4f}}{_SPREAD}",
    "check-ins/s": f"{RATE} ({{rate.ratio:.2f}}{TIMES})",
}
_WAL: Show = "{wal_bytes:,.0f}"
_STREAMS: dict[str, Show] = {
    "KiB each": lambda m: "{kib_per_stream:.1f}".format_map(m) if m.row != "0" else NOTHING,
    f"CPU {MICRO} a message": lambda m: (
        "{cpu_us_per_message:.2f}".format_map(m) if m.row != "0" else NOTHING
    ),
    "check-ins/s beside": "{rate:,.0f}",
    "p50 / p99 ms": LATENCY,
}
_OWN = {
    "users": "The store alone, driven in its own process with random users, without TLS and HTTP:",
    "reuse_port": "The whole server, keep-alive as above:",
    "streams": "Streams of all events (`/api/stream`) at once: memory of each; the server's CPU for"
    " one message to one stream, at a steady pace; and keep-alive as above while they are open:",
}
_HEADS = {
    "users": "users in the database",
    "reuse_port": "servers on one port and database",
    "streams": "streams",
}


def markdown(results: Results) -> str:
    """Return the table of all rows, the tables of tornado_status alone, and what to know."""
    parts = []
    main = [column for column in _MAIN if results.rounds.get(column[0])]
    if main:
        lines = [["server", *(title for _, title, _ in main)]]
        for row in results.rows:
            cells = (
                cell(show, Cells(results, workload, row.name, "")) for workload, _, show in main
            )
            lines.append([row.title, *cells])
        parts.append(table(lines))
    for workload, sentence in _OWN.items():
        if measured := rows(results, workload, _counted):
            columns = _STREAMS if workload == "streams" else _STORE
            if any(cell(_WAL, m) != NOTHING for m in measured):
                columns = {**columns, "WAL bytes": _WAL}
            parts += [sentence, columns_table(_HEADS[workload], measured, columns)]
    return "\n\n".join([*parts, _footer(results)]) + "\n"


def summary(results: Results) -> dict[str, str]:
    """Return the blocks of README.md: a table that is short, and where it comes from."""
    cpu: Show = f"{{server_cpu_us+database_cpu_us:,.0f}} ({{{_CPU}.ratio:.2f}}{TIMES})"
    lines = [["server", f"CPU {MICRO}", f"CPU {MICRO}, fresh connection", "check-ins/s"]]
    for row in results.rows:
        kept, fresh = (Cells(results, name, row.name, "") for name in ("keep-alive", "handshake"))
        rate = cell(f"{{rate:,.0f}} ({{rate.ratio:.1f}}{TIMES})", kept)
        lines.append([row.title, cell(cpu, kept), cell(cpu, fresh), rate])
    machine = results.machine
    known = [machine.get("CPU", ""), f"{machine.get('cores')} cores" if "cores" in machine else ""]
    known += [f"{name} {machine[name]}" for name in ("Python", "PostgreSQL") if name in machine]
    source = f"{results.date[:10]}, {', '.join(filter(None, known))}; {TIMES} is {_TO_FIRST}."
    return {"results": f"{table(lines)}\n\n{source}"}


def _counted(row: str) -> str:
    number, _, condition = row.partition(" ")
    return f"{int(number):,}{condition and f', {condition}'}"


def _footer(results: Results) -> str:
    settings = results.settings
    lines = [
        machine_line(results),
        f"Medians of {settings['rounds']:.0f} rounds of {settings['seconds']:g} s each; ± is"
        f" half of the range, {TIMES} {_TO_FIRST}.",
        "CPU ms: of one check-in, the server's processes + PostgreSQL's. Latency: of the client.",
    ]
    titles: dict[str, list[str]] = {}
    for row in results.rows:
        titles.setdefault(row.writes, []).append(row.title)
    written = "; ".join(f"{writes} ({', '.join(names)})" for writes, names in titles.items())
    lines += [f"Each check-in writes: {written}."] if written else []
    lines += [f"Left out: {title}: {reason}" for title, reason in results.left_out.items()]
    return bullets([*lines, *(f"Note: {note}" for note in results.notes)])
