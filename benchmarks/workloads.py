"""The workloads: what is done to a running server, and which numbers one round of it gives."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.processes import pss_kib
from benchmarks.results import Numbers
from benchmarks.rig import Bench

CONNECTIONS = 64  # keep-alive, each with an identity of its own
HANDSHAKES = 16  # under way at a time
STORM_CLIENTS = 8  # check in beside the handshakes


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
    """Eight clients check in, alone and while 16 connections at a time are being made."""
    alone = bench.check_ins("keep-alive", STORM_CLIENTS)[1]
    # Longer than needed: stopped when the other has measured.
    with bench.load("handshake", HANDSHAKES, seconds=bench.rig.seconds + 120) as storming:
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
    with bench.load("idle", bench.rig.idle_connections) as holding:
        holding.wait("holding")
        after = pss_kib(bench.server)
        holding.release()
        bench.check(holding.result())
    return {
        "kib_per_connection": (after - before) / bench.rig.idle_connections,
        "kib_before": before,
    }


# Idle comes first: memory that an earlier workload left behind would hide a connection's.
WORKLOADS: dict[str, Callable[[Bench], Numbers]] = {
    "idle": idle,
    "keep-alive": keep_alive,
    "handshake": handshake,
    "resumed": resumed,
    "storm": storm,
}
