"""What scaling measured, as Markdown: one block of tables a subject, and a page filled with them.

Pure: no measuring, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks import cost_of_listening, pages
from benchmarks.capacity import FULL, Needs, needs
from benchmarks.report import MICRO, NOTHING, short, table
from benchmarks.results import Results
from benchmarks.watch import SHARES
from benchmarks.wire import UDP_HEADERS

MILLION = 1_000_000
EVERY_S = 60.0

COMMAND = "python -m benchmarks.scaling"


def markdown(results: Results) -> str:
    """Return all blocks, one after the other."""
    return "\n\n".join(blocks(results).values()) + "\n"


def fill(page: str, results: Results) -> str:
    """Return `page` with all blocks in their places. Raises `ValueError`: see `pages.fill`."""
    return pages.fill(page, blocks(results), COMMAND)


def blocks(results: Results) -> dict[str, str]:
    """Return each block's Markdown by its name, in order."""
    found: Mapping[str, Callable[[Results], Sequence[str]]] = {
        "machine": machine,
        "one-server": one_server,
        "batches": batches,
        "servers": servers,
        "streams": streams,
        "sizes": sizes,
        "listeners": listening,
        "million": million,
    }
    return {name: "\n\n".join(make(results)) for name, make in found.items()}


# ------------------------------------------------------------------------------------- the blocks


def machine(results: Results) -> Sequence[str]:
    of_machine = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    settings = results.settings
    lines = [
        f"{results.date}, UTC. {of_machine}.",
        f"Medians of {_rounds(settings['rounds'])} of {settings['seconds']:g} s; ± is half of the"
        " range.",
        *(f"Note: {note}" for note in results.notes),
    ]
    return ["\n".join(f"- {line}" for line in lines)]


def one_server(results: Results) -> Sequence[str]:
    lines = [
        [
            "what is offered",
            "check-ins/s",
            "p50 / p99 ms",
            f"CPU {MICRO}: server",
            f"CPU {MICRO}: PostgreSQL",
            "a core of the server would carry",
        ]
    ]
    for row in results.rounds["rates"]:
        server, database = (
            _median(results, "rates", row, f"{part}_cpu_ms") * 1000
            for part in ("server", "database")
        )
        lines.append(
            [
                _OFFERED.get(row) or f"{int(row):,} a second",
                _rate(results, "rates", row),
                _latency(results, "rates", row),
                f"{server:,.0f}",
                f"{database:,.0f}",
                f"{1e6 / server:,.0f}/s" if server else NOTHING,
            ]
        )
    return [table(lines)]


_OFFERED = {
    FULL: "as many as are answered",
    "resumed": "each resumes a session",
    "handshake": "each makes a handshake",
}


def batches(results: Results) -> Sequence[str]:
    lines = [
        [
            "what is offered",
            "check-ins a commit",
            "commits/s",
            "ms a commit",
            "WAL bytes",
            "updates a datagram",
            "datagrams/s",
            "Mbit/s",
        ]
    ]
    for row in results.rounds["rates"]:
        if row in ("resumed", "handshake"):
            continue

        def number(name: str, row: str = row) -> float:
            return _median(results, "rates", row, name)

        on_ethernet = number("datagram_bytes") + UDP_HEADERS
        lines.append(
            [
                _OFFERED.get(row) or f"{int(row):,} a second",
                f"{number('batch'):.1f}",
                f"{number('commits_rate'):,.0f}",
                f"{number('commit_ms'):.2f}",
                f"{number('wal_bytes'):,.0f}",
                f"{number('updates_per_datagram'):.1f}",
                f"{number('datagrams_rate'):,.0f}",
                f"{number('datagrams_rate') * on_ethernet * 8 / 1e6:.2f}",
            ]
        )
    alone = [
        [
            "check-ins in the store",
            "check-ins/s",
            "check-ins a commit",
            "ms a commit",
            f"CPU {MICRO}: store",
            f"CPU {MICRO}: PostgreSQL",
            "WAL bytes",
        ]
    ]
    for row in results.rounds["in_flight"]:
        alone.append([f"{int(row):,}", *_store(results, "in_flight", row)])
    return [
        table(lines),
        "The store alone, without TLS, HTTP and announcements, with so many check-ins in it at a"
        " time:",
        table(alone),
    ]


def _store(results: Results, workload: str, row: str) -> list[str]:
    def number(name: str) -> float:
        return _median(results, workload, row, name)

    return [
        _rate(results, workload, row),
        f"{number('batch'):.1f}",
        f"{number('commit_ms'):.2f}",
        f"{number('server_cpu_ms') * 1000:.1f}",
        f"{number('database_cpu_ms') * 1000:.1f}",
        f"{number('wal_bytes'):,.0f}",
    ]


def servers(results: Results) -> Sequence[str]:
    lines = [
        [
            "servers",
            "check-ins/s",
            "p50 / p99 ms",
            f"CPU {MICRO}: server",
            f"CPU {MICRO}: PostgreSQL",
            "check-ins a commit",
            *_WAITS,
        ]
    ]
    for row in results.rounds["servers"]:
        server, database = (
            _median(results, "servers", row, f"{part}_cpu_ms") * 1000
            for part in ("server", "database")
        )
        lines.append(
            [
                row,
                _rate(results, "servers", row),
                _latency(results, "servers", row),
                f"{server:,.0f}",
                f"{database:,.0f}",
                f"{_median(results, 'servers', row, 'batch'):.1f}",
                *_shares(results, "servers", row),
            ]
        )
    return [table(lines)]


_WAITS = ("no commit", "running", "head row", "flush", "other")


def _shares(results: Results, workload: str, row: str) -> list[str]:
    """What the connections that write did, in percent of the time, in the order of `_WAITS`."""
    return [f"{_median(results, workload, row, f'share_{name}'):.0%}" for name in SHARES]


def streams(results: Results) -> Sequence[str]:
    lines = [
        [
            "stores",
            "streams",
            "check-ins/s",
            "ms a commit",
            f"CPU {MICRO}: PostgreSQL",
            *_WAITS,
        ]
    ]
    for workload, streams_of in (("one_stream", lambda _: "1"), ("own_streams", str)):
        for row in results.rounds.get(workload, {}):
            database = _median(results, workload, row, "database_cpu_ms") * 1000
            lines.append(
                [
                    row,
                    streams_of(row),
                    _rate(results, workload, row),
                    f"{_median(results, workload, row, 'commit_ms'):.2f}",
                    f"{database:.1f}",
                    *_shares(results, workload, row),
                ]
            )
    return [table(lines)]


def sizes(results: Results) -> Sequence[str]:
    disk = [_median(results, "disk", "row", name) for name in ("log_bytes", "status_bytes")]
    lines = [
        ["what", "bytes"],
        ["an entry of the log, on disk, with its index", f"{disk[0]:,.0f}"],
        ["a user's status, on disk, with its index and free room", f"{disk[1]:,.0f}"],
        [
            "WAL of a check-in, under full load",
            f"{_median(results, 'rates', FULL, 'wal_bytes'):,.0f}",
        ],
    ]
    for row, what in (
        ("check-in", "a check-in on an open connection"),
        ("handshake", "a handshake"),
        ("resumed", "a resumed handshake"),
    ):
        total, on_ethernet = (
            _median(results, "tcp", row, name) for name in ("bytes", "on_ethernet")
        )
        lines.append([f"{what}, both ways, in TCP", f"{total:,.0f}"])
        lines.append([f"the same on Ethernet, with {TCP_SEGMENTS}", f"{on_ethernet:,.0f}"])
    datagram = _median(results, "rates", FULL, "datagram_bytes")
    lines.append(["a datagram, under full load", f"{datagram:,.0f}"])
    lines.append(["the same on Ethernet", f"{datagram + UDP_HEADERS:,.0f}"])
    kib = _median(results, "idle", "connection", "kib")
    lines.append(["memory of the server for an open connection", f"{kib * 1024:,.0f}"])
    return [table(lines)]


TCP_SEGMENTS = "all headers and acknowledgements"


def listening(results: Results) -> Sequence[str]:
    """Also what cost_of_listening prints."""
    lines = [
        [
            "what is announced",
            "in time",
            "dropped",
            "repaired",
            f"CPU {MICRO} an update",
            f"CPU {MICRO} a datagram",
        ]
    ]
    rows = [("listening", row) for row in results.rounds["listening"]]
    (burst,), (fetched,) = results.rounds["burst"], results.rounds["fetching"]
    for workload, row in [*rows, ("burst", burst)]:

        def number(name: str, workload: str = workload, row: str = row) -> float:
            return _median(results, workload, row, name)

        lines.append(
            [
                _announced(workload, row, number("rate")),
                f"{number('in_time'):.0%}" if workload == "listening" else NOTHING,
                f"{number('dropped') + number('kernel_drops'):,.0f}",
                f"{number('repaired'):,.0f}",
                f"{number('cpu_us_per_update'):.0f}",
                f"{number('cpu_us_per_datagram'):.0f}",
            ]
        )
    drained = _median(results, "burst", burst, "heard_rate")
    kept = cost_of_listening.keeps_up(results)
    fetching = {
        name: _median(results, "fetching", fetched, name)
        for name in (
            *("cpu_us_per_update", "server_us_per_update", "database_us_per_update"),
            "heard_rate",
        )
    }
    return [
        table(lines),
        f"- The highest of these paces that it kept up with in all rounds: {kept:,} a second.\n"
        f"- A burst of {int(burst):,} updates was heard and shown at {drained:,.0f} a second.\n"
        f"- {int(fetched):,} updates that nobody announced were fetched at"
        f" {fetching['heard_rate']:,.0f} a second, for {fetching['cpu_us_per_update']:.0f} {MICRO}"
        f" of the listener's CPU each, {fetching['server_us_per_update']:.1f} of the server's and"
        f" {fetching['database_us_per_update']:.1f} of PostgreSQL's.",
    ]


def _announced(workload: str, row: str, rate: float) -> str:
    if workload == "burst":
        return f"{int(row):,} updates at once"
    if row == cost_of_listening.ALONE:
        return f"{rate:,.0f} updates a second, one a datagram"
    return f"{int(row):,} updates a second"


def million(results: Results) -> Sequence[str]:
    need = needs(results, MILLION, EVERY_S)
    lines = [["what", "how much"], *([what, how_much(need)] for what, how_much in _NEEDS)]
    return [table(lines)]


_NEEDS: tuple[tuple[str, Callable[[Needs], str]], ...] = (
    ("check-ins a second", lambda n: f"{n.rate:,.0f}"),
    ("cores for servers, connections kept", lambda n: f"{n.server_cores:.1f}"),
    ("processes of the server, each half busy", lambda n: f"{n.servers}"),
    ("cores for PostgreSQL", lambda n: f"{n.database_cores:.1f}"),
    (
        "cores for servers, if each check-in made a handshake",
        lambda n: f"{n.handshake_cores:.0f}",
    ),
    ("the same, with tickets", lambda n: f"{n.resumed_cores:.0f}"),
    (
        "share of what one stream took on this machine, with full commits",
        lambda n: f"{n.stream_share:.0%}",
    ),
    ("memory for a million open connections, GiB", lambda n: f"{n.connections_gib:.0f}"),
    ("WAL, MB a second", lambda n: f"{n.wal_mb_s:.1f}"),
    ("WAL, GB a day, to archive or to a standby", lambda n: f"{n.wal_gb_day:,.0f}"),
    ("log, GB a day", lambda n: f"{n.log_gb_day:,.0f}"),
    ("log, GB, of 7 days (`history.retention`)", lambda n: f"{n.log_gb:,.0f}"),
    ("status of all users, GB", lambda n: f"{n.status_gb:.2f}"),
    ("clients' network, Mbit/s, both ways", lambda n: f"{n.check_ins_mbit_s:.0f}"),
    (
        "the same of handshakes, if each check-in made one",
        lambda n: f"{n.handshakes_mbit_s:,.0f}",
    ),
    ("datagrams a second, to each target", lambda n: f"{n.datagrams_s:,.0f}"),
    ("announcements, Mbit/s, to each target", lambda n: f"{n.announcements_mbit_s:.1f}"),
    ("share of a core, for each listener", lambda n: f"{n.listener_cores:.0%}"),
)


# ------------------------------------------------------------------------------------------ cells


def _median(results: Results, workload: str, row: str, number: str) -> float:
    summary = results.summary(workload, row, number)
    if summary is None:
        raise KeyError(f"{workload}, {row}: not measured")
    return summary.median


def _rate(results: Results, workload: str, row: str) -> str:
    rate = results.summary(workload, row, "rate")
    return f"{rate.median:,.0f} ±{rate.spread:.0%}" if rate else NOTHING


def _latency(results: Results, workload: str, row: str) -> str:
    low, high = (_median(results, workload, row, name) for name in ("p50_ms", "p99_ms"))
    return f"{short(low)} / {short(high)}"


def _rounds(count: float) -> str:
    return "one round" if count == 1 else f"{count:.0f} rounds"
