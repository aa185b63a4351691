"""What traces cost the loop: `python -m benchmarks.cost_of_tracing`, with the extra `otel`.

Times, in microseconds of CPU, what is done for a commit and for a request of ordinary HTTP. Sending
the spans is not in it: a thread does that, for at most as many as are sampled.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from benchmarks.cost_of_metrics import median_ns
from tornado_status.config import TracingSettings
from tornado_status.model.records import CheckIn, CommittedBatch
from tornado_status.observe.counters import Batch
from tornado_status.observe.tracing import Tracing

TIMES = 2_000  # in a round
ENDPOINT = "http://127.0.0.1:4318/v1/traces"  # nothing is sent there

CHECK_INS = [CheckIn("a@example.com", "127.0.0.1", 1, "", str(n)) for n in range(512)]
TRACED = {"traceparent": "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"}


def tracing(ratio: float) -> Tracing:
    return Tracing(TracingSettings(endpoint=ENDPOINT, sample_ratio=ratio), ENDPOINT)


def commit(made_by: Tracing, size: int) -> Callable[[], None]:
    """Commit and announce, as the store and the server do."""
    announce = made_by.timed(lambda batch: None)
    check_ins = CHECK_INS[:size]
    nothing = CommittedBatch(uuid.UUID(int=0), 1, ())

    def work() -> None:
        now = time.monotonic()
        announce(nothing)
        made_by.batch(Batch(check_ins, size, 1, now, now, now, None))

    return work


def http_request(headers: dict[str, str]) -> HTTPServerRequest:
    return HTTPServerRequest(
        start_line=RequestStartLine("POST", "/api/client", "HTTP/1.1"),
        headers=HTTPHeaders({"Host": "localhost", **headers}),
    )


def request(made_by: Tracing, headers: dict[str, str]) -> Callable[[], None]:
    """A request from its beginning to its end."""
    asked = http_request(headers)

    def work() -> None:
        span = made_by.begin(asked, "/api/client")
        if span is not None:
            span.mark(CHECK_INS[0])
            span.end("0", None, 204, None)

    return work


def main() -> None:
    none, every, beside = tracing(0), tracing(1), tracing(0)
    waiting = beside.begin(http_request(TRACED), "/api/client")
    if waiting is None:
        raise SystemExit("nothing is traced: is OTEL_SDK_DISABLED set?")
    waiting.mark(CHECK_INS[0])
    for what, work in {
        "a commit, not sampled": commit(none, 512),
        "a commit of 512, not sampled, while a traced check-in waits": commit(beside, 512),
        "a commit, sampled": commit(every, 512),
        "a request, not sampled": request(none, {}),
        "a request, sampled": request(none, TRACED),
    }.items():
        print(f"{median_ns(work, TIMES) / 1000:7.1f}  {what}")


if __name__ == "__main__":
    main()
