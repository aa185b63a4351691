"""Instruments beside a load: each is entered for the measured time, and then has its numbers."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

import psycopg2
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.contender import GROUP, LOOPBACK, management
from benchmarks.postgresql import PostgreSql
from benchmarks.processes import cpu_s
from benchmarks.results import Numbers

SAMPLE_S = 0.02  # often enough for a share, seldom enough to cost little; its CPU is known


class Meter:
    """The CPU time of a server and of PostgreSQL."""

    server_s = database_s = 0.0

    def __init__(self, server: Iterable[int], database: Iterable[int]) -> None:
        self._server, self._database = tuple(server), tuple(database)

    def __enter__(self) -> Meter:
        self._from = cpu_s(self._server), cpu_s(self._database)
        return self

    def __exit__(self, *_: object) -> None:
        self.server_s = cpu_s(self._server) - self._from[0]
        self.database_s = cpu_s(self._database) - self._from[1]


# The connections that write check-ins, by the statement that they run or have run.
_SAMPLE = """\
SELECT state, wait_event_type, wait_event FROM pg_stat_activity
WHERE query LIKE 'EXECUTE lock_head (%; EXECUTE record_%'
"""
_WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"

# Shares of the samples of all writing connections. `running`: on a processor, or waiting for one.
SHARES = ("idle", "running", "head_lock", "flush", "other")


def wait_of(state: str | None, kind: str | None, event: str | None) -> str:
    """Return which of `SHARES` a row of pg_stat_activity belongs to (PostgreSQL, table 27.4)."""
    if state != "active":
        return "idle"
    if kind is None:
        return "running"
    if kind == "Lock":
        return "head_lock"  # the only row that two commits want
    if (event or "").lower() in ("walsync", "walwrite"):  # IO and LWLock, spelled in two ways
        return "flush"
    return "other"


class CommitSampler:
    """The WAL written, and the waits of the commits.

    `cpu_s` is PostgreSQL's CPU time for the sampling itself.
    """

    wal_bytes, cpu_s = 0, 0.0

    def __init__(self, postgres: PostgreSql) -> None:
        self._postgres = postgres
        self._samples: Counter[str] = Counter()

    def numbers(self, check_ins: float) -> Numbers:
        total = self._samples.total() or 1
        shares = {f"share_{name}": self._samples[name] / total for name in SHARES}
        return {"wal_bytes": self.wal_bytes / check_ins, **shares}

    def __enter__(self) -> CommitSampler:
        self._connection = psycopg2.connect(self._postgres.url("postgres"))
        self._connection.autocommit = True
        self._backend = [self._connection.info.backend_pid]
        self._ended = threading.Event()
        self._from = self._query(_WAL)[0][0], cpu_s(self._backend)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with closing(self._connection):
            self.wal_bytes = int(self._query(_WAL)[0][0] - self._from[0])
            self.cpu_s = cpu_s(self._backend) - self._from[1]

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self._samples.update(wait_of(*row) for row in self._query(_SAMPLE))

    def _query(self, sql: str) -> Sequence[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()


# The sample's name, and a label with the beginning of its value.
_COUNTED = {
    "check_ins": ("tornado_status_check_ins_total", "result", "recorded"),
    "batches": ("tornado_status_commit_batch_size_count", "", ""),
    "commit_s": ("tornado_status_commit_duration_seconds_sum", "", ""),  # sent to answered
    "datagrams": ("tornado_status_datagrams_sent_total", "target", "multicast"),
}


class OwnCounts:
    """Counts of the servers' own, from their /metrics: the sums of all. See `_COUNTED`."""

    def __init__(self, management_ports: Iterable[int]) -> None:
        self._ports = tuple(management_ports)

    def __getitem__(self, name: str) -> float:
        return self._until[name] - self._from[name]

    def __enter__(self) -> OwnCounts:
        self._from = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        self._until = self._read()

    def _read(self) -> dict[str, float]:
        samples = [
            sample
            for port in self._ports
            for family in text_string_to_metric_families(management(port, "metrics"))
            for sample in family.samples
        ]
        return {
            name: sum(
                sample.value
                for sample in samples
                if sample.name == metric and sample.labels.get(label, "").startswith(value)
            )
            for name, (metric, label, value) in _COUNTED.items()
        }


def receiver(address: str, port: int) -> socket.socket:
    """Return a socket that receives what is announced to `address`, on loopback."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind((address, port))
    if address == GROUP:
        membership = socket.inet_aton(GROUP) + socket.inet_aton(LOOPBACK)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    return sock


class DatagramSampler:
    """The size of the first datagrams to the group: as many as its receive buffer takes."""

    datagrams = bytes = 0

    def __init__(self, port: int) -> None:
        self._port = port

    @property
    def mean_bytes(self) -> float:
        return self.bytes / max(1, self.datagrams)

    def __enter__(self) -> DatagramSampler:
        self._socket = receiver(GROUP, self._port)
        return self

    def __exit__(self, *_: object) -> None:
        with self._socket as sock:
            sock.setblocking(False)
            try:
                while True:
                    self.bytes += len(sock.recv(2048))
                    self.datagrams += 1
            except BlockingIOError:
                pass
