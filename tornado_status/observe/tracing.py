"""Traces: spans of requests and of commits, exported by OpenTelemetry's SDK over OTLP/HTTP.

Imported only if `tracing.endpoint` is set, because the SDK is an extra. A trace is sampled, or not,
before the SDK is called: those that are not cost next to nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client.core import Metric
from tornado.httputil import HTTPServerRequest

from tornado_status import __version__
from tornado_status.config.settings import TracingSettings
from tornado_status.errors import TooFrequent
from tornado_status.model.check_in_rate_limit import CheckInRateLimit
from tornado_status.model.records import CheckIn, CommittedBatch
from tornado_status.observe import metrics
from tornado_status.observe.counters import Batch
from tornado_status.runtime.waiting import wait_set

MAX_QUEUED = 2048  # spans, a few MB; beyond it the oldest are dropped
MAX_EXPORTED = 512  # spans in one message to the collector
EXPORT_EVERY_S = 5.0
# Traces that one identity may ask for, with ten at once: a client must not fill the queue.
CONTINUED_PER_SECOND = 1.0
EXPORT_TIMEOUT_S = 10.0  # of an export with its retries; then the spans are lost
FLUSH_S = 2.0  # at shutdown: a slow collector must not delay a restart

PROPAGATED = ("traceparent", "tracestate")  # W3C Trace Context, without baggage

# OpenTelemetry's convention: others are `_OTHER`, because a client may send any word.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

Subscriber = Callable[[CommittedBatch], None]


class _Exporter(OTLPSpanExporter):
    """Counts spans by outcome, in the exporting thread."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint, timeout=EXPORT_TIMEOUT_S)
        self.spans = Counter({"exported": 0, "failed": 0})
        self.failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        self.failing = result is not SpanExportResult.SUCCESS
        self.spans["failed" if self.failing else "exported"] += len(spans)
        return result


class Tracing:
    """Makes spans of requests and commits, and exports them between `start` and `close`."""

    def __init__(self, settings: TracingSettings, endpoint: str) -> None:
        self._ratio = settings.sample_ratio
        self._personal = settings.personal_data
        self._exporter = _Exporter(endpoint)
        named = Resource.create({"service.name": "tornado_status", "service.version": __version__})
        self._provider = TracerProvider(
            # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override ours.
            resource=named.merge(OTELResourceDetector().detect()),
            sampler=ParentBased(ALWAYS_ON),  # `_sampled` decides on traces without a parent
            shutdown_on_exit=False,  # it would wait for 30 s: see `close`
        )
        self._tracer = self._provider.get_tracer("tornado_status", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._continued = CheckInRateLimit(CONTINUED_PER_SECOND)
        self._waiting: dict[int, SpanContext] = {}  # of traced check-ins, by their id()
        self._announced = (0.0, 0.0, 0)

    def start(self) -> None:
        """Begin to export. Spans that end before are lost."""
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=MAX_QUEUED,
                schedule_delay_millis=EXPORT_EVERY_S * 1000,
                max_export_batch_size=MAX_EXPORTED,
            )
        )

    async def close(self, timeout_s: float) -> None:
        """Export what is queued, for at most `timeout_s` or `FLUSH_S`. Idempotent.

        If the last export failed, do not wait.
        """
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            try:
                loop.call_soon_threadsafe(done.set)
            except RuntimeError:
                pass  # the loop is closed

        # A daemon thread: it may still wait for its collector when the process exits.
        threading.Thread(target=shut_down, name="last spans", daemon=True).start()
        if self._exporter.failing:
            return
        await wait_set(done, min(timeout_s, FLUSH_S))

    def metrics(self) -> Iterable[Metric]:
        yield metrics.counters("trace_spans", "Spans by outcome", ["outcome"], self._exporter.spans)

    def begin(
        self, request: HTTPServerRequest, route: str, email: str | None
    ) -> RequestSpan | None:
        """Begin the span of a request; return None if its trace is not sampled.

        A valid `traceparent` of the client decides that, within a limit for each `email`. Otherwise
        chance does. All clients without an identity share one limit.
        """
        headers = request.headers
        parent = Context()
        if "traceparent" in headers:
            sent = {name: headers[name] for name in PROPAGATED if name in headers}
            parent = self._propagator.extract(sent, context=parent)
        caller = trace.get_current_span(parent).get_span_context()
        if caller.is_valid and not caller.trace_flags.sampled:
            return None
        if not (caller.is_valid and self._may_ask(email)) and not self._sampled():
            return None
        method = request.method if request.method in METHODS else "_OTHER"
        attributes: dict[str, str | int] = {
            "http.request.method": method or "_OTHER",
            "url.scheme": request.protocol,
            "network.protocol.version": request.version.removeprefix("HTTP/"),
        }
        if route:
            attributes["http.route"] = route
        if self._personal or (route and "{email}" not in route):
            attributes["url.path"] = request.path  # without the query, which names users, too
        span = self._tracer.start_span(
            f"{method if method != '_OTHER' else 'HTTP'} {route}".rstrip(),
            context=parent,
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=time.time_ns() - int(request.request_time() * 1e9),
        )
        if not span.is_recording():
            return None  # OTEL_SDK_DISABLED
        return RequestSpan(span, self._waiting, self._personal)

    def timed(self, announce: Subscriber) -> Subscriber:
        """Return `announce` with a clock, for the span that `batch` makes of it."""

        def timed(batch: CommittedBatch) -> None:
            begun = time.monotonic()
            announce(batch)
            self._announced = (begun, time.monotonic(), len(batch.events))

        return timed

    def batch(self, batch: Batch) -> None:
        """Make the span of a commit, if one of its requests is traced or it is sampled."""
        waiting = self._waiting
        links = []
        if waiting:
            found = [waiting.get(id(check_in)) for check_in in batch.check_ins]
            links = [Link(context) for context in found if context is not None]
        if not links and not self._sampled():
            return
        ahead = time.time_ns() - int(time.monotonic() * 1e9)  # of the monotonic clock, in ns
        attributes: dict[str, str | int | float] = {
            "db.system.name": "postgresql",
            "tornado_status.batch.size": len(batch.check_ins),
            "tornado_status.batch.recorded": batch.recorded,
            "tornado_status.queued_s": max(0.0, batch.sent - batch.submitted),
        }
        if batch.error is None:
            attributes["tornado_status.head"] = batch.head
        span = self._tracer.start_span(
            "commit",
            context=Context(),
            kind=SpanKind.CLIENT,
            attributes=attributes,
            links=links,
            start_time=ahead + int(batch.sent * 1e9),
        )
        ended = batch.ended
        if batch.error is not None:
            _fail(span, batch.error)
        begun, ready, events = self._announced
        if batch.recorded and begun >= batch.ended:
            announced = self._tracer.start_span(
                "announce",
                context=trace.set_span_in_context(span, Context()),
                kind=SpanKind.PRODUCER,
                attributes={"tornado_status.events": events},
                start_time=ahead + int(begun * 1e9),
            )
            announced.end(ahead + int(ready * 1e9))
        span.end(ahead + int(ended * 1e9))

    def _may_ask(self, email: str | None) -> bool:
        try:
            self._continued.allow(email or "", time.monotonic())
        except TooFrequent:
            return False
        return True

    def _sampled(self) -> bool:
        return random.random() < self._ratio  # noqa: S311 - a sample


class RequestSpan:
    """The span of one request, until it is answered."""

    __slots__ = ("_check_in", "_personal", "_span", "_waiting", "trace_id")

    def __init__(self, span: Span, waiting: dict[int, SpanContext], personal: bool) -> None:
        self._span = span
        self._waiting = waiting
        self._personal = personal
        self._check_in: CheckIn | None = None
        self.trace_id = trace.format_trace_id(span.get_span_context().trace_id)

    def mark(self, check_in: CheckIn) -> CheckIn:
        """Return a check-in to submit instead: its commit is linked to this span."""
        # A copy: all requests of a connection submit the same value.
        self._check_in = dataclasses.replace(check_in)
        self._waiting[id(self._check_in)] = self._span.get_span_context()
        return self._check_in

    def end(
        self,
        request_id: str,
        check_in: CheckIn | None,
        status: int | None,
        error: BaseException | None,
    ) -> None:
        """End the span. `status` is None if the client closed before the answer."""
        if self._check_in is not None:
            del self._waiting[id(self._check_in)]
        span = self._span
        span.set_attribute("tornado_status.request_id", request_id)
        if check_in is not None and self._personal:
            span.set_attribute("user.email", check_in.email)
            span.set_attribute("client.address", check_in.client_ip)
            span.set_attribute("client.port", check_in.client_port)
        if status is not None:
            span.set_attribute("http.response.status_code", status)
        if status is None:
            _fail(span, "client_closed")
        elif status >= 500:
            _fail(span, str(status) if error is None else type(error).__name__)
        span.end()


def _fail(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))
