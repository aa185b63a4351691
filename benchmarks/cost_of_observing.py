"""The cost of metrics and traces: `python -m benchmarks.cost_of_observing`, with the extra `otel`.

Times the CPU of the check-in path's work for `/metrics`, for batches of several sizes, beside
prometheus-client's own counter and histogram. Then it times the work for traces, without sending
the spans: a thread does that.
"""

from __future__ import annotations

import statistics
import time
import timeit
import uuid
from collections import deque
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Histogram
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from tornado_status.config.settings import TracingSettings
from tornado_status.model.records import CheckIn, CommittedBatch
from tornado_status.observe import counters
from tornado_status.observe.counters import SECONDS, Batch, CheckIns
from tornado_status.observe.tracing import Tracing

ROUNDS = 9
TIMES = 50_000  # check-ins in a round
ENDPOINT = "http://127.0.0.1:4318/v1/traces"  # nothing is sent there

COUNTED = CheckIns()
HANDSHAKES = counters.Histogram(SECONDS)
REGISTRY = CollectorRegistry()
RECORDED = Counter("check_ins", "answered", ["result"], registry=REGISTRY).labels("recorded")
DURATIONS = Histogram("duration_seconds", "of a check-in", buckets=SECONDS, registry=REGISTRY)


def median_ns(work: Callable[[], object], times: int) -> float:
    """Return the CPU nanoseconds of one call: the median of rounds of `times` calls."""
    rounds = timeit.repeat(work, timer=time.process_time_ns, number=times, repeat=ROUNDS)
    return statistics.median(rounds) / times


def ours(batch: int) -> None:
    """Queue and count `batch` check-ins as the group commit does."""
    queue = deque((None, None, time.monotonic()) for _ in range(batch))
    sent = committed = time.monotonic()
    COUNTED.batch([submitted for _, _, submitted in queue], batch, sent, committed)


def library(batch: int) -> None:
    """Queue them and count each with prometheus-client."""
    queue = deque((None, None, time.monotonic()) for _ in range(batch))
    now = time.monotonic()
    for _, _, submitted in queue:
        RECORDED.inc()
        DURATIONS.observe(now - submitted)


def bare(batch: int) -> None:
    """Queue them without metrics."""
    deque((None, None) for _ in range(batch))


def metrics() -> None:
    print("nanoseconds a check-in\nbatch  ours  prometheus-client")
    for batch in (1, 8, 32, 128, 512):
        mine, theirs, less = (
            median_ns(partial(work, batch), TIMES // batch) / batch
            for work in (ours, library, bare)
        )
        print(f"{batch:5}  {mine - less:4.0f}  {theirs - less:17.0f}")
    spent = median_ns(lambda: HANDSHAKES.observe(time.monotonic() - time.monotonic()), TIMES)
    print(f"a handshake: {spent:.0f}")


def tracing(ratio: float) -> Tracing:
    return Tracing(TracingSettings(endpoint=ENDPOINT, sample_ratio=ratio), ENDPOINT)


def commit(made_by: Tracing, check_ins: list[CheckIn]) -> Callable[[], None]:
    """Commit and announce, as the store and the server do."""
    announce = made_by.timed(lambda batch: None)
    nothing = CommittedBatch(uuid.UUID(int=0), 1, ())

    def work() -> None:
        now = time.monotonic()
        announce(nothing)
        made_by.batch(Batch(check_ins, len(check_ins), 1, now, now, now, None))

    return work


def http_request(headers: dict[str, str]) -> HTTPServerRequest:
    return HTTPServerRequest(
        start_line=RequestStartLine("POST", "/api/client", "HTTP/1.1"),
        headers=HTTPHeaders({"Host": "localhost", **headers}),
    )


def request(made_by: Tracing, check_in: CheckIn, headers: dict[str, str]) -> Callable[[], None]:
    """A request from its beginning to its end."""
    asked = http_request(headers)

    def work() -> None:
        span = made_by.begin(asked, "/api/client", check_in.email)
        if span is not None:
            span.mark(check_in)
            span.end("0", None, 204, None)

    return work


def traces() -> None:
    check_ins = [CheckIn("a@example.com", "127.0.0.1", 1, "", str(n)) for n in range(512)]
    traced = {"traceparent": "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"}
    none, every, beside = tracing(0), tracing(1), tracing(0)
    waiting = beside.begin(http_request(traced), "/api/client", None)
    if waiting is None:
        raise SystemExit("nothing is traced: is OTEL_SDK_DISABLED set?")
    waiting.mark(check_ins[0])
    print("microseconds")
    for what, work in {
        "a commit, not sampled": commit(none, check_ins),
        "a commit of 512, not sampled, while a traced check-in waits": commit(beside, check_ins),
        "a commit, sampled": commit(every, check_ins),
        "a request, not sampled": request(none, check_ins[0], {}),
        "a request, sampled": request(every, check_ins[0], traced),
    }.items():
        print(f"{median_ns(work, 2_000) / 1000:7.1f}  {what}")


if __name__ == "__main__":
    metrics()
    traces()
