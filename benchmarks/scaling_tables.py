"""What scaling measured, as Markdown: one block of tables a subject, and a page filled with them.

Pure: no measuring, no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from benchmarks.instruments import SHARES
from benchmarks.results import Results
from benchmarks.tables import (
    MICRO,
    NOTHING,
    Cells,
    Columns,
    bullets,
    columns_table,
    machine_line,
    percent,
    table,
)
from benchmarks.tables import fill as fill_page
from benchmarks.wire import UDP_HEADERS

COMMAND = "python -m benchmarks.scaling"

FULL = "full"  # as many check-ins as are answered
ALONE = "alone"  # one update a datagram, as under light load
IN_TIME = 0.98  # shown at the end of the sending: it keeps up

MILLION = 1_000_000
EVERY_S = 60.0
DAY_S = 86_400
BUSY = 0.5  # of a process's core: the rest is for bursts and for what is not a check-in
RETENTION_DAYS = 7  # history.retention, as it is shipped


def markdown(results: Results) -> str:
    """Return all blocks, one after the other."""
    return "\n\n".join(blocks(results).values()) + "\n"


def fill(page: str, results: Results) -> str:
    """Return `page` with all blocks in their places. Raises `ValueError`: see `tables.fill`."""
    return fill_page(page, blocks(results), COMMAND)


def blocks(results: Results) -> dict[str, str]:
    """Return each block's Markdown by its name, in order."""
    makers: dict[str, Callable[[Results], list[str]]] = {
        "machine": machine,
        "one-server": one_server,
        "batches": batches,
        "servers": servers,
        "logs": logs,
        "sizes": sizes,
        "listeners": listeners,
        "million": million,
    }
    return {name: "\n\n".join(make(results)) for name, make in makers.items()}


# ------------------------------------------------------------------------------------ the columns


def _number(name: str, spec: str = ",.0f", factor: float = 1.0) -> Callable[[Cells], str]:
    return lambda m: format(m[name] * factor, spec)


def _cpu(of: str, spec: str = ",.0f") -> Callable[[Cells], str]:
    return _number(f"{of}_cpu_ms", spec, 1000)


def _rate(m: Cells) -> str:
    return f"{m.rate().median:,.0f} {percent(m.rate())}"


def _core(m: Cells) -> str:
    server_us = m["server_cpu_ms"] * 1000
    return f"{1e6 / server_us:,.0f}/s" if server_us else NOTHING


def _megabits(m: Cells) -> str:
    return f"{m['datagrams_rate'] * (m['datagram_bytes'] + UDP_HEADERS) * 8 / 1e6:.2f}"


# What the connections that write did, in percent of the time.
_WAITS: Columns = {
    title: _number(f"share_{name}", ".0%")
    for title, name in zip(
        ("no commit", "running", "head row", "flush", "other"), SHARES, strict=True
    )
}
_RATE: Columns = {"check-ins/s": _rate}
_SERVED: Columns = {
    **_RATE,
    "p50 / p99 ms": Cells.latency,
    f"CPU {MICRO}: server": _cpu("server"),
    f"CPU {MICRO}: PostgreSQL": _cpu("database"),
}
_BATCH: Columns = {"check-ins a commit": _number("batch", ".1f")}
_COMMIT: Columns = {"ms a commit": _number("commit_ms", ".2f")}
_WAL: Columns = {"WAL bytes": _number("wal_bytes")}
_DATABASE: Columns = {f"CPU {MICRO}: PostgreSQL": _cpu("database", ".1f")}

_OFFERED = {
    FULL: "as many as are answered",
    "resumed": "each resumes a session",
    "handshake": "each makes a handshake",
}


def _rows(
    results: Results, workload: str, label: Callable[[str], str] = str
) -> list[tuple[str, Cells]]:
    by_row = results.rounds.get(workload, {})
    return [(label(row), Cells(results, workload, row)) for row in by_row]


def _offered(row: str) -> str:
    return _OFFERED.get(row) or f"{int(row):,} a second"


# ------------------------------------------------------------------------------------- the blocks


def machine(results: Results) -> list[str]:
    rounds, seconds = results.settings["rounds"], results.settings["seconds"]
    of_rounds = "one round" if rounds == 1 else f"{rounds:.0f} rounds"
    medians = f"Medians of {of_rounds} of {seconds:g} s; ± is half of the range."
    return [bullets([machine_line(results), medians, *(f"Note: {n}" for n in results.notes)])]


def one_server(results: Results) -> list[str]:
    columns: Columns = {**_SERVED, "a core of the server would carry": _core}
    return [columns_table("what is offered", _rows(results, "rates", _offered), columns)]


def batches(results: Results) -> list[str]:
    rows = [(label, m) for label, m in _rows(results, "rates", _offered) if m.row[0] not in "hr"]
    columns: Columns = {
        **_BATCH,
        "commits/s": _number("commits_rate"),
        **_COMMIT,
        **_WAL,
        "updates a datagram": _number("updates_per_datagram", ".1f"),
        "datagrams/s": _number("datagrams_rate"),
        "Mbit/s": _megabits,
    }
    stores: Columns = {
        **_RATE,
        **_BATCH,
        **_COMMIT,
        f"CPU {MICRO}: store": _cpu("server", ".1f"),
        **_DATABASE,
        **_WAL,
    }
    alone = _rows(results, "in_flight", lambda row: f"{int(row):,}")
    return [
        columns_table("what is offered", rows, columns),
        "The store alone, without TLS, HTTP and announcements, with so many check-ins in it at a"
        " time:",
        columns_table("check-ins in the store", alone, stores),
    ]


def servers(results: Results) -> list[str]:
    columns: Columns = {**_SERVED, **_BATCH, **_WAITS}
    return [columns_table("servers", _rows(results, "servers"), columns)]


def logs(results: Results) -> list[str]:
    columns: Columns = {
        "logs": lambda m: m.row if m.workload == "own_logs" else "1",
        **_RATE,
        **_COMMIT,
        **_DATABASE,
        **_WAITS,
    }
    rows = _rows(results, "one_log") + _rows(results, "own_logs")
    return [columns_table("stores", rows, columns)]


def sizes(results: Results) -> list[str]:
    disk, full = Cells(results, "disk", "row"), Cells(results, "rates", FULL)
    found = {
        "an entry of the log, on disk, with its index": disk["log_bytes"],
        "a user's status, on disk, with its index and free room": disk["status_bytes"],
        "WAL of a check-in, under full load": full["wal_bytes"],
    }
    headers = "all headers and acknowledgements"
    lines = [["what", "bytes"], *([what, f"{size:,.0f}"] for what, size in found.items())]
    for row, what in (
        ("check-in", "a check-in on an open connection"),
        ("handshake", "a handshake"),
        ("resumed", "a resumed handshake"),
    ):
        tcp = Cells(results, "tcp", row)
        lines.append([f"{what}, both ways, in TCP", f"{tcp['bytes']:,.0f}"])
        lines.append([f"the same on Ethernet, with {headers}", f"{tcp['on_ethernet']:,.0f}"])
    datagram = full["datagram_bytes"]
    lines.append(["a datagram, under full load", f"{datagram:,.0f}"])
    lines.append(["the same on Ethernet", f"{datagram + UDP_HEADERS:,.0f}"])
    kib = Cells(results, "idle", "connection")["kib"]
    lines.append(["memory of the server for an open connection", f"{kib * 1024:,.0f}"])
    return [table(lines)]


def listeners(results: Results) -> list[str]:
    """Also what cost_of_listening prints."""

    def announced(row: str) -> str:
        if row == ALONE:
            rate = Cells(results, "listening", row)["rate"]
            return f"{rate:,.0f} updates a second, one a datagram"
        return f"{int(row):,} updates a second"

    columns: Columns = {
        "in time": lambda m: f"{m['in_time']:.0%}" if m.workload == "listening" else NOTHING,
        "dropped": lambda m: f"{m['dropped'] + m['kernel_drops']:,.0f}",
        "repaired": _number("repaired"),
        f"CPU {MICRO} an update": _number("cpu_us_per_update", ".0f"),
        f"CPU {MICRO} a datagram": _number("cpu_us_per_datagram", ".0f"),
    }
    bursts = _rows(results, "burst", lambda row: f"{int(row):,} updates at once")
    ((_, burst),), ((_, fetched),) = bursts, _rows(results, "fetching")
    rows = [*_rows(results, "listening", announced), *bursts]
    return [
        columns_table("what is announced", rows, columns),
        f"- The highest of these paces that it kept up with in all rounds: {keeps_up(results):,} a"
        " second.\n"
        f"- A burst of {int(burst.row):,} updates was heard and shown at"
        f" {burst['heard_rate']:,.0f} a second.\n"
        f"- {int(fetched.row):,} updates that were not announced were fetched at"
        f" {fetched['heard_rate']:,.0f} a second, for {fetched['cpu_us_per_update']:.0f} {MICRO}"
        f" of the listener's CPU each, {fetched['server_us_per_update']:.1f} of the server's and"
        f" {fetched['database_us_per_update']:.1f} of PostgreSQL's.",
    ]


def keeps_up(results: Results) -> int:
    """Return the highest pace that was shown in time, nothing repaired, in all rounds; or 0."""
    found = 0
    for name in results.rounds["listening"]:
        repaired = results.summary("listening", name, "repaired")
        in_time = results.summary("listening", name, "in_time")
        if name != ALONE and repaired.high == 0 and in_time.median >= IN_TIME:
            found = max(found, int(name))
    return found


def million(results: Results) -> list[str]:
    lines = [["what", "how much"]]
    found = needs(results, MILLION, EVERY_S)
    return [table([*lines, *([what, format(n, spec)] for what, (n, spec) in found.items())])]


def needs(results: Results, users: int, interval_s: float) -> dict[str, tuple[float, str]]:
    """Return what users need who check in once in `interval_s`: numbers, and their format.

    They are computed from medians, over cores like those that were measured. PostgreSQL's share is
    that of the number of servers at which it was largest. Megabits are with all headers; gigabytes
    are 10^9, gibibytes 2^30 bytes. Raises `KeyError` if something was not measured.
    """
    full, disk = Cells(results, "rates", FULL), Cells(results, "disk", "row")
    fresh, resumed = (Cells(results, "rates", row) for row in ("handshake", "resumed"))
    check_in, handshake = (Cells(results, "tcp", row) for row in ("check-in", "handshake"))
    largest_batches = Cells(results, "in_flight", max(results.rounds["in_flight"], key=int))
    ((_, burst),) = _rows(results, "burst")
    database_ms = max(m["database_cpu_ms"] for _, m in _rows(results, "servers"))

    rate = users / interval_s
    server_cores = rate * full["server_cpu_ms"] / 1000
    wal_s = rate * full["wal_bytes"]
    log_day_gb = rate * DAY_S * disk["log_bytes"] / 1e9
    datagrams_s = rate / full["updates_per_datagram"]
    datagram = full["datagram_bytes"] + UDP_HEADERS
    return {
        "check-ins a second": (rate, ",.0f"),
        "cores for servers, connections kept": (server_cores, ".1f"),
        "processes of the server, each half busy": (math.ceil(server_cores / BUSY), "d"),
        "cores for PostgreSQL": (rate * database_ms / 1000, ".1f"),
        "cores for servers, if each check-in made a handshake": (
            rate * fresh["server_cpu_ms"] / 1000,
            ".0f",
        ),
        "the same, with tickets": (rate * resumed["server_cpu_ms"] / 1000, ".0f"),
        "share of what one log took on this machine, with full commits": (
            rate / largest_batches["rate"],
            ".0%",
        ),
        "memory for a million open connections, GiB": (
            users * Cells(results, "idle", "connection")["kib"] / 2**20,
            ".0f",
        ),
        "WAL, MB a second": (wal_s / 1e6, ".1f"),
        "WAL, GB a day, to archive or to a standby": (wal_s * DAY_S / 1e9, ",.0f"),
        "log, GB a day": (log_day_gb, ",.0f"),
        "log, GB, of 7 days (`history.retention`)": (log_day_gb * RETENTION_DAYS, ",.0f"),
        "status of all users, GB": (users * disk["status_bytes"] / 1e9, ".2f"),
        "clients' network, Mbit/s, both ways": (rate * check_in["on_ethernet"] * 8 / 1e6, ".0f"),
        "the same of handshakes, if each check-in made one": (
            rate * handshake["on_ethernet"] * 8 / 1e6,
            ",.0f",
        ),
        "datagrams a second, to each target": (datagrams_s, ",.0f"),
        "announcements, Mbit/s, to each target": (datagrams_s * datagram * 8 / 1e6, ".1f"),
        "share of a core, for each listener": (rate * burst["cpu_us_per_update"] / 1e6, ".0%"),
    }
