"""The workloads: what is done to a running server, and which numbers one round of it gives.

Every number is of one measured time, under a name with its unit; `results` takes medians of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes
from benchmarks.errors import BenchmarkError
from benchmarks.identities import Identities
from benchmarks.load import Load, LoadResult, Mode, run
from benchmarks.processes import Meter

CONNECTIONS = 64  # keep-alive, each with an identity of its own
HANDSHAKES = 16  # under way at a time
STORM_CLIENTS = 8  # who check in beside the handshakes
BUSY = 0.9  # a load generator that computes for more of its time than this was the bottleneck

Numbers = dict[str, float]


@dataclass(frozen=True, slots=True)
class Bench:
    """A running server with what is needed to measure it. `notes` takes what a reader must know."""

    load_program: Path
    port: int
    identities: Identities
    server: list[int]
    database: list[int]
    seconds: float
    idle_connections: int
    notes: Callable[[str], None]

    def load(self, mode: Mode, connections: int, seconds: float | None = None) -> Load:
        return Load(
            self.load_program,
            mode,
            self.port,
            self.identities.listed,
            connections=connections,
            seconds=self.seconds if seconds is None else seconds,
            warmup_s=warmup_s(self.seconds),
        )


def warmup_s(seconds: float) -> float:
    """Return how long to go on before a measured time of `seconds`."""
    return min(1.0, seconds / 4)


def keep_alive(bench: Bench) -> Numbers:
    """64 connections with 64 identities, each checking in as soon as it was answered."""
    return _measure(bench, bench.load("keep-alive", CONNECTIONS))


def handshake(bench: Bench) -> Numbers:
    """A fresh TLS 1.3 connection for each check-in, 16 at a time."""
    return _measure(bench, bench.load("handshake", HANDSHAKES))


def resumed(bench: Bench) -> Numbers:
    """The same with the ticket that the identity was given before."""
    meter = Meter(bench.server, bench.database)
    result = run(bench.load("resumed", HANDSHAKES), meter.start, meter.stop)
    if result.count and result.resumed < 0.99 * result.count:
        bench.notes(f"only {result.resumed} of {result.count} connections were resumed")
    return _numbers(bench, result, meter)


def storm(bench: Bench) -> Numbers:
    """Eight who check in, alone and while 16 connections at a time are being made."""
    alone = _measure(bench, bench.load("keep-alive", STORM_CLIENTS))
    # Longer than needed: stopped when the other has measured.
    with bench.load("handshake", HANDSHAKES, seconds=bench.seconds + 120) as storming:
        storming.wait_event("measuring")
        beside = _measure(bench, bench.load("keep-alive", STORM_CLIENTS))
        storming.stop()
        handshakes = storming.result()
    _check(bench, handshakes)
    return {
        "alone_p50_ms": alone["p50_ms"],
        "alone_p99_ms": alone["p99_ms"],
        "p50_ms": beside["p50_ms"],
        "p99_ms": beside["p99_ms"],
        "rate": beside["rate"],
        "handshakes_rate": handshakes.rate,
    }


def idle(bench: Bench) -> Numbers:
    """Many connections that have checked in once and stay: memory of the server's processes."""
    before = processes.pss_kib(bench.server)
    with bench.load("idle", bench.idle_connections) as holding:
        holding.wait_event("holding")
        after = processes.pss_kib(bench.server)
        holding.release()
        _check(bench, holding.result())
    return {
        "kib_per_connection": (after - before) / bench.idle_connections,
        "kib_before": before,
    }


# Idle comes first: memory that an earlier workload left behind would hide what a connection takes.
WORKLOADS: dict[str, Callable[[Bench], Numbers]] = {
    "idle": idle,
    "keep-alive": keep_alive,
    "handshake": handshake,
    "resumed": resumed,
    "storm": storm,
}


def _measure(bench: Bench, load: Load) -> Numbers:
    meter = Meter(bench.server, bench.database)
    return _numbers(bench, run(load, meter.start, meter.stop), meter)


def _numbers(bench: Bench, result: LoadResult, meter: Meter) -> Numbers:
    _check(bench, result)
    latency_ms = {name: us / 1000 for name, us in result.latency_us.items()}
    return {
        "rate": result.rate,
        "p50_ms": latency_ms["p50"],
        "p90_ms": latency_ms["p90"],
        "p99_ms": latency_ms["p99"],
        "p99.9_ms": latency_ms["p99.9"],
        "max_ms": latency_ms["max"],
        "server_cpu_ms": meter.server_s / result.count * 1000,
        "database_cpu_ms": meter.database_s / result.count * 1000,
        "generator_busy": result.cpu_s / result.seconds,
    }


def _check(bench: Bench, result: LoadResult) -> None:
    if result.count == 0:
        raise BenchmarkError(f"{result.mode}: no check-in was answered ({result.first_error})")
    if result.errors:
        bench.notes(
            f"{result.mode}: {result.errors} errors beside {result.count} answers"
            f" ({result.first_error})"
        )
    if result.seconds and result.cpu_s / result.seconds > BUSY and result.mode != "idle":
        bench.notes(f"{result.mode}: the load generator was the bottleneck")
