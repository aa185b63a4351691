"""What measuring a check-in costs the server: `python -m benchmarks.cost_of_metrics`.

Times, in nanoseconds of CPU, what the check-in path does for `/metrics`, per check-in, for batches
of several sizes; beside it prometheus-client's own counter and histogram, asked once for each.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Histogram

from tornado_status.observe import counters
from tornado_status.observe.counters import SECONDS, CheckIns

ROUNDS = 9
CHECK_INS = 50_000  # in a round

LOOP = asyncio.new_event_loop()
HANDSHAKES = counters.Histogram(SECONDS)
COUNTED = CheckIns()
REGISTRY = CollectorRegistry()
RECORDED = Counter("check_ins", "answered", ["result"], registry=REGISTRY).labels("recorded")
DURATIONS = Histogram("duration_seconds", "of a check-in", buckets=SECONDS, registry=REGISTRY)


def ours(batch: int) -> None:
    """Queue and count `batch` check-ins as the group commit does."""
    queue: deque[tuple[None, None, float]] = deque()
    for _ in range(batch):
        queue.append((None, None, time.monotonic()))
    sent = time.monotonic()
    committed = time.monotonic()
    COUNTED.batch([submitted for _, _, submitted in queue], batch, sent, committed)


def library(batch: int) -> None:
    """Queue them and count each with prometheus-client."""
    queue: deque[tuple[None, None, float]] = deque()
    for _ in range(batch):
        queue.append((None, None, time.monotonic()))
    now = time.monotonic()
    for _, _, submitted in queue:
        RECORDED.inc()
        DURATIONS.observe(now - submitted)


def bare(batch: int) -> None:
    """Queue them without metrics."""
    queue: deque[tuple[None, None]] = deque()
    for _ in range(batch):
        queue.append((None, None))


def handshake(batch: int) -> None:
    """Time `batch` handshakes as the acceptor does; without TLS."""
    for _ in range(batch):
        began = LOOP.time()
        HANDSHAKES.observe(LOOP.time() - began)


def nothing(batch: int) -> None:
    """The loop alone."""
    for _ in range(batch):
        pass


def median_ns(work: Callable[[], object], times: int) -> float:
    """Return the CPU nanoseconds of one call: the median of rounds of so many."""
    found = []
    for _ in range(ROUNDS):
        begun = time.process_time_ns()
        for _ in range(times):
            work()
        found.append((time.process_time_ns() - begun) / times)
    return statistics.median(found)


def per_check_in(work: Callable[[int], None], beside: Callable[[int], None], batch: int) -> float:
    """Return what `work` costs a check-in more than `beside`, in nanoseconds."""
    times = CHECK_INS // batch
    return (
        median_ns(partial(work, batch), times) - median_ns(partial(beside, batch), times)
    ) / batch


def main() -> None:
    print("batch  ours  prometheus-client   (nanoseconds a check-in)")
    for batch in (1, 8, 32, 128, 512):
        mine, theirs = (per_check_in(work, bare, batch) for work in (ours, library))
        print(f"{batch:5}  {mine:4.0f}  {theirs:17.0f}")
    print(f"a handshake: {per_check_in(handshake, nothing, 1000):.0f}")
    LOOP.close()


if __name__ == "__main__":
    main()
