"""The measurements of `scaling` as Markdown: one block of tables a subject. Pure."""

from __future__ import annotations

import math

from benchmarks.instruments import SHARES
from benchmarks.results import Results
from benchmarks.tables import (
    LATENCY,
    MICRO,
    NOTHING,
    RATE,
    Show,
    bullets,
    columns_table,
    machine_line,
    rows,
    table,
)
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

_OFFERED = {
    FULL: "as many as are answered",
    "resumed": "each resumes a session",
    "handshake": "each makes a handshake",
}

Columns = dict[str, Show]
_WAITS: Columns = {  # of the connections that write, in percent of the time
    title: f"{{share_{name}:.0%}}"
    for title, name in zip(
        ("no commit", "running", "head row", "flush", "other"), SHARES, strict=True
    )
}
_RATE: Columns = {"check-ins/s": RATE}
_SERVED: Columns = {
    **_RATE,
    "p50 / p99 ms": LATENCY,
    f"CPU {MICRO}: server": "{server_cpu_us:,.0f}",
    f"CPU {MICRO}: PostgreSQL": "{database_cpu_us:,.0f}",
}
_BATCH: Columns = {"check-ins a commit": "{batch:.1f}"}
_COMMIT: Columns = {"ms a commit": "{commit_ms:.2f}"}
_WAL: Columns = {"WAL bytes": "{wal_bytes:,.0f}"}
_DATABASE: Columns = {f"CPU {MICRO}: PostgreSQL": "{database_cpu_us:.1f}"}


def blocks(results: Results) -> dict[str, str]:
    """Return each block's Markdown by its name, in the order of the page."""
    makers = (machine, one_server, batches, servers, logs, sizes, listeners, million)
    return {make.__name__.replace("_", "-"): make(results) for make in makers}


def markdown(results: Results) -> str:
    """Return all blocks, one after the other."""
    return "\n\n".join(blocks(results).values()) + "\n"


def _offered(row: str) -> str:
    return _OFFERED.get(row) or f"{int(row):,} a second"


def _counted(row: str) -> str:
    return f"{int(row):,}"


def _value(results: Results, workload: str, row: str, number: str) -> float:
    return results.summary(workload, row, number).median


def machine(results: Results) -> str:
    count, seconds = results.settings["rounds"], results.settings["seconds"]
    of_rounds = "one round" if count == 1 else f"{count:.0f} rounds"
    medians = f"Medians of {of_rounds} of {seconds:g} s; ± is half of the range."
    versions = f"{machine_line(results)} <!-- prose: a list of versions -->"
    return bullets([versions, medians, *(f"Note: {n}" for n in results.notes)])


def one_server(results: Results) -> str:
    columns: Columns = {
        **_SERVED,
        "a core of the server would carry": lambda m: f"{1e6 / m['server_cpu_us'].median:,.0f}/s",
    }
    return columns_table("what is offered", rows(results, "rates", _offered), columns)


def batches(results: Results) -> str:
    offered: Columns = {
        **_BATCH,
        "commits/s": "{commits_rate:,.0f}",
        **_COMMIT,
        **_WAL,
        "updates a datagram": "{updates_per_datagram:.1f}",
        "datagrams/s": "{datagrams_rate:,.0f}",
        "Mbit/s": lambda m: (
            f"{m['datagrams_rate'].median * (m['datagram_bytes'].median + UDP_HEADERS) * 8e-6:.2f}"
        ),
    }
    store: Columns = {
        **_RATE,
        **_BATCH,
        **_COMMIT,
        f"CPU {MICRO}: store": "{server_cpu_us:.1f}",
        **_DATABASE,
        **_WAL,
    }
    kept = [m for m in rows(results, "rates", _offered) if m.row not in ("handshake", "resumed")]
    return "\n\n".join(
        (
            columns_table("what is offered", kept, offered),
            "The store alone, without TLS, HTTP and announcements, with so many check-ins in it at"
            " a time:",
            columns_table("check-ins in the store", rows(results, "in_flight", _counted), store),
        )
    )


def servers(results: Results) -> str:
    return columns_table("servers", rows(results, "servers"), {**_SERVED, **_BATCH, **_WAITS})


def logs(results: Results) -> str:
    columns: Columns = {
        "logs": lambda m: m.row if m.workload == "own_logs" else "1",
        **_RATE,
        **_COMMIT,
        **_DATABASE,
        **_WAITS,
    }
    measured = rows(results, "one_log") + rows(results, "own_logs")
    return columns_table("stores", measured, columns)


def sizes(results: Results) -> str:
    ethernet = "the same on Ethernet"
    headers = f"{ethernet}, with all headers and acknowledgements"
    datagram = _value(results, "rates", FULL, "datagram_bytes")
    log, status = (_value(results, "disk", "row", f"{name}_bytes") for name in ("log", "status"))
    found = [
        ("an entry of the log, on disk, with its index", log),
        ("a user's status, on disk, with its index and free room", status),
        ("WAL of a check-in, under full load", _value(results, "rates", FULL, "wal_bytes")),
    ]
    for row, what in (
        ("check-in", "a check-in on an open connection"),
        ("handshake", "a handshake"),
        ("resumed", "a resumed handshake"),
    ):
        tcp = f"{what}, both ways, in TCP"
        found.append((tcp, _value(results, "tcp", row, "bytes")))
        found.append((headers, _value(results, "tcp", row, "on_ethernet")))
    kib = _value(results, "idle", "connection", "kib")
    found += [
        ("a datagram, under full load", datagram),
        (ethernet, datagram + UDP_HEADERS),
        ("memory of the server for an open connection", kib * 1024),
    ]
    return table([["what", "bytes"], *([what, f"{size:,.0f}"] for what, size in found)])


def listeners(results: Results) -> str:
    columns: Columns = {
        "in time": lambda m: (
            "{in_time:.0%}".format_map(m) if m.workload == "listening" else NOTHING
        ),
        "dropped": "{dropped+kernel_drops:,.0f}",
        "repaired": "{repaired:,.0f}",
        f"CPU {MICRO} an update": "{cpu_us_per_update:.0f}",
        f"CPU {MICRO} a datagram": "{cpu_us_per_datagram:.0f}",
    }

    def announced(row: str) -> str:
        if row != ALONE:
            return f"{int(row):,} updates a second"
        return f"{results.summary('listening', row, 'rate'):,.0f} updates a second, one a datagram"

    (burst,) = rows(results, "burst", _counted)
    (fetched,) = rows(results, "fetching", _counted)
    at_once = rows(results, "burst", lambda row: f"{int(row):,} updates at once")
    sentences = (
        f"The highest of these paces that it kept up with in all rounds: {keeps_up(results):,} a"
        " second.",
        f"A burst of {burst.label} updates was heard and shown at {burst['heard_rate']:,.0f} a"
        " second.",
        f"{fetched.label} updates that were not announced were fetched at"
        f" {fetched['heard_rate']:,.0f} a second. Each cost {fetched['cpu_us_per_update']:.0f}"
        f" {MICRO} of the listener's CPU, {fetched['server_us_per_update']:.1f} of the server's and"
        f" {fetched['database_us_per_update']:.1f} of PostgreSQL's.",
    )
    measured = rows(results, "listening", announced) + at_once
    return f"{columns_table('what is announced', measured, columns)}\n\n{bullets(sentences)}"


def keeps_up(results: Results) -> int:
    """Return the highest pace that was shown in time, nothing repaired, in all rounds; or 0."""
    found = 0
    for name in results.rounds["listening"]:
        repaired = results.summary("listening", name, "repaired")
        in_time = results.summary("listening", name, "in_time")
        if name != ALONE and repaired.high == 0 and in_time.median >= IN_TIME:
            found = max(found, int(name))
    return found


def million(results: Results) -> str:
    found = needs(results, MILLION, EVERY_S)
    lines = [[what, format(number, spec)] for what, (number, spec) in found.items()]
    return table([["what", "how much"], *lines])


def needs(results: Results, users: int, interval_s: float) -> dict[str, tuple[float, str]]:
    """Return what users need who check in once in `interval_s`: numbers, and their format.

    They are computed from medians, over cores like those that were measured. PostgreSQL's share is
    that of the number of servers at which it was largest. Megabits are with all headers; gigabytes
    are 10^9, gibibytes 2^30 bytes. Raises `KeyError` if something was not measured.
    """

    def of(number: str, row: str = FULL, workload: str = "rates") -> float:
        return _value(results, workload, row, number)

    rate = users / interval_s
    cores, fresh, resumed = (
        rate * of("server_cpu_ms", row) / 1000 for row in (FULL, "handshake", "resumed")
    )
    share = rate / of("rate", max(results.rounds["in_flight"], key=int), "in_flight")
    listener = rate * of("cpu_us_per_update", next(iter(results.rounds["burst"])), "burst") / 1e6
    memory_gib = users * of("kib", "connection", "idle") / 2**20
    postgresql_ms = max(of("database_cpu_ms", m.row, "servers") for m in rows(results, "servers"))
    wal_s = rate * of("wal_bytes")
    log_day_gb = rate * DAY_S * of("log_bytes", "row", "disk") / 1e9
    datagrams_s = rate / of("updates_per_datagram")
    announced = datagrams_s * (of("datagram_bytes") + UDP_HEADERS) * 8e-6
    network, handshakes = (
        rate * of("on_ethernet", row, "tcp") * 8e-6 for row in ("check-in", "handshake")
    )
    return {
        "check-ins a second": (rate, ",.0f"),
        "cores for servers, connections kept": (cores, ".1f"),
        "processes of the server, each half busy": (math.ceil(cores / BUSY), "d"),
        "cores for PostgreSQL": (rate * postgresql_ms / 1000, ".1f"),
        "cores for servers, if each check-in made a handshake": (fresh, ".0f"),
        "the same, with tickets": (resumed, ".0f"),
        "share of what one log took on this machine, with full commits": (share, ".0%"),
        "memory for a million open connections, GiB": (memory_gib, ".0f"),
        "WAL, MB a second": (wal_s / 1e6, ".1f"),
        "WAL, GB a day, to archive or to a standby": (wal_s * DAY_S / 1e9, ",.0f"),
        "log, GB a day": (log_day_gb, ",.0f"),
        "log, GB, of 7 days (`history.retention`)": (log_day_gb * RETENTION_DAYS, ",.0f"),
        "status of all users, GB": (users * of("status_bytes", "row", "disk") / 1e9, ".2f"),
        "clients' network, Mbit/s, both ways": (network, ".0f"),
        "the same of handshakes, if each check-in made one": (handshakes, ",.0f"),
        "datagrams a second, to each target": (datagrams_s, ",.0f"),
        "announcements, Mbit/s, to each target": (announced, ".1f"),
        "share of a core, for each listener": (listener, ".0%"),
    }
