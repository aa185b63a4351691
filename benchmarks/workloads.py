"""The workloads: what is done to a running server, and which numbers one round of it gives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contender import Site
from benchmarks.instruments import Meter
from benchmarks.load import Load, LoadResult, Mode, percentiles_ms, run
from benchmarks.processes import pss_kib
from benchmarks.programs import BenchmarkError
from benchmarks.results import Numbers

CONNECTIONS = 64  # keep-alive, each with an identity of its own
HANDSHAKES = 16  # under way at a time
STORM_CLIENTS = 8  # who check in beside the handshakes
BUSY = 0.9  # a load generator that computes for more of its time than this was the bottleneck


@dataclass(frozen=True, slots=True)
class Bench:
    """A running server with what is needed to measure it. `note` takes what a reader must know.

    `server` are its process numbers, `database` is PostgreSQL's.
    """

    load_program: Path
    site: Site
    server: list[int]
    database: int
    seconds: float
    idle_connections: int
    note: Callable[[str], None]

    def load(
        self, mode: Mode, connections: int, *, seconds: float | None = None, rate: float = 0.0
    ) -> Load:
        return Load(
            self.load_program,
            mode,
            self.site.port,
            self.site.identities.listed,
            connections=connections,
            seconds=self.seconds if seconds is None else seconds,
            warmup_s=warmup_s(self.seconds),
            rate=rate,
        )

    def meter(self) -> Meter:
        return Meter(self.server, [self.database])

    def check_ins(
        self,
        mode: Mode,
        connections: int,
        *beside: AbstractContextManager[object],
        rate: float = 0.0,
    ) -> tuple[LoadResult, Numbers]:
        """Check in for the measured time, with instruments `beside`."""
        meter = self.meter()
        result = run(self.load(mode, connections, rate=rate), *beside, meter)
        self.check(result)
        return result, {
            "rate": result.rate,
            **percentiles_ms(result.latencies_us),
            "server_cpu_ms": meter.server_s / result.count * 1000,
            "database_cpu_ms": meter.database_s / result.count * 1000,
            "generator_busy": result.cpu_s / result.seconds,
        }

    def check(self, result: LoadResult) -> None:
        """Note what was wrong. Raises `BenchmarkError` if nothing was right."""
        if result.count == 0:
            raise BenchmarkError(f"{result.mode}: no check-in was answered ({result.first_error})")
        if result.errors:
            self.note(
                f"{result.mode}: {result.errors} errors beside {result.count} answers"
                f" ({result.first_error})"
            )
        if result.seconds and result.cpu_s / result.seconds > BUSY and result.mode != "idle":
            self.note(f"{result.mode}: the load generator was the bottleneck")


def warmup_s(seconds: float) -> float:
    """Return how long to go on before a measured time of `seconds`."""
    return min(1.0, seconds / 4)


def keep_alive(bench: Bench) -> Numbers:
    """64 connections with 64 identities, each checking in as soon as it was answered."""
    return bench.check_ins("keep-alive", CONNECTIONS)[1]


def handshake(bench: Bench) -> Numbers:
    """A fresh TLS 1.3 connection for each check-in, 16 at a time."""
    return bench.check_ins("handshake", HANDSHAKES)[1]


def resumed(bench: Bench) -> Numbers:
    """The same with the ticket that the identity was given before."""
    result, numbers = bench.check_ins("resumed", HANDSHAKES)
    if result.resumed < 0.99 * result.count:
        bench.note(f"only {result.resumed} of {result.count} connections were resumed")
    return numbers


def storm(bench: Bench) -> Numbers:
    """Eight who check in, alone and while 16 connections at a time are being made."""
    alone = bench.check_ins("keep-alive", STORM_CLIENTS)[1]
    # Longer than needed: stopped when the other has measured.
    with bench.load("handshake", HANDSHAKES, seconds=bench.seconds + 120) as storming:
        storming.wait("measuring")
        beside = bench.check_ins("keep-alive", STORM_CLIENTS)[1]
        storming.stop()
        handshakes = storming.result()
    bench.check(handshakes)
    return {
        **{f"alone_{name}": alone[name] for name in ("p50_ms", "p99_ms")},
        **{name: beside[name] for name in ("p50_ms", "p99_ms", "rate")},
        "handshakes_rate": handshakes.rate,
    }


def idle(bench: Bench) -> Numbers:
    """Many connections that have checked in once and stay: memory of the server's processes."""
    before = pss_kib(bench.server)
    with bench.load("idle", bench.idle_connections) as holding:
        holding.wait("holding")
        after = pss_kib(bench.server)
        holding.release()
        bench.check(holding.result())
    return {"kib_per_connection": (after - before) / bench.idle_connections, "kib_before": before}


# Idle comes first: memory that an earlier workload left behind would hide what a connection takes.
WORKLOADS: dict[str, Callable[[Bench], Numbers]] = {
    "idle": idle,
    "keep-alive": keep_alive,
    "handshake": handshake,
    "resumed": resumed,
    "storm": storm,
}
