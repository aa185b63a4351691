"""What many users need, computed from what was measured. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.results import Results
from benchmarks.wire import UDP_HEADERS

DAY_S = 86_400
BUSY = 0.5  # of a process's core: the rest is for bursts and for what is not a check-in
RETENTION_DAYS = 7  # history.retention, as it is shipped
FULL = "full"


@dataclass(frozen=True, slots=True)
class Needs:
    """Of `users` who check in once in `interval_s`, over cores like those that were measured.

    Cores are whole ones, all of them busy; rates are a second; megabits are with all headers of
    Ethernet; gigabytes are 10^9, gibibytes 2^30 bytes.
    """

    users: int
    interval_s: float
    rate: float
    server_cores: float
    servers: int  # processes, each busy for half of a core
    database_cores: float
    handshake_cores: float  # of servers, where each check-in makes its connection
    resumed_cores: float  # the same, with tickets
    stream_share: float  # of what one stream took, written with full batches
    connections_gib: float
    wal_mb_s: float
    wal_gb_day: float
    log_gb_day: float
    log_gb: float  # of the retention
    status_gb: float
    check_ins_mbit_s: float
    handshakes_mbit_s: float
    datagrams_s: float  # to each target
    announcements_mbit_s: float  # to each target
    listener_cores: float


def needs(results: Results, users: int, interval_s: float) -> Needs:
    """Compute it from medians. PostgreSQL's share is that of the number of servers it cost most at.

    Raises `KeyError` where something was not measured.
    """

    def median(workload: str, row: str, number: str) -> float:
        summary = results.summary(workload, row, number)
        if summary is None:
            raise KeyError(f"{workload}, {row}: not measured")
        return summary.median

    rate = users / interval_s
    server_cores = rate * median("rates", FULL, "server_cpu_ms") / 1000
    dearest = max(median("servers", row, "database_cpu_ms") for row in results.rounds["servers"])
    wal_s = rate * median("rates", FULL, "wal_bytes")
    log_day = rate * DAY_S * median("disk", "row", "log_bytes")
    datagrams_s = rate / median("rates", FULL, "updates_per_datagram")
    datagram = median("rates", FULL, "datagram_bytes") + UDP_HEADERS
    fullest = max(results.rounds["in_flight"], key=int)
    return Needs(
        users=users,
        interval_s=interval_s,
        rate=rate,
        server_cores=server_cores,
        servers=math.ceil(server_cores / BUSY),
        database_cores=rate * dearest / 1000,
        handshake_cores=rate * median("rates", "handshake", "server_cpu_ms") / 1000,
        resumed_cores=rate * median("rates", "resumed", "server_cpu_ms") / 1000,
        stream_share=rate / median("in_flight", fullest, "rate"),
        connections_gib=users * median("idle", "connection", "kib") / 2**20,
        wal_mb_s=wal_s / 1e6,
        wal_gb_day=wal_s * DAY_S / 1e9,
        log_gb_day=log_day / 1e9,
        log_gb=log_day * RETENTION_DAYS / 1e9,
        status_gb=users * median("disk", "row", "status_bytes") / 1e9,
        check_ins_mbit_s=rate * median("tcp", "check-in", "on_ethernet") * 8 / 1e6,
        handshakes_mbit_s=rate * median("tcp", "handshake", "on_ethernet") * 8 / 1e6,
        datagrams_s=datagrams_s,
        announcements_mbit_s=datagrams_s * datagram * 8 / 1e6,
        listener_cores=rate * median("burst", _only(results, "burst"), "cpu_us_per_update") / 1e6,
    )


def _only(results: Results, workload: str) -> str:
    (row,) = results.rounds[workload]
    return row
