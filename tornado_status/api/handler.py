"""The base of all handlers: authenticates, checks, counts and traces a request, answers errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import structlog
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError
from tornado.web import Finish, HTTPError, RequestHandler, stream_request_body

from tornado_status.api.error_page.render import (
    HTML,
    Advice,
    error_page,
    set_page_headers,
    wants_page,
)
from tornado_status.api.problem import (
    CONTENT_TYPE,
    INTERNAL_ERROR,
    Problem,
    describe,
    problem_body,
)
from tornado_status.api.request_checks import (
    asks_to_close,
    check_body_size,
    check_framing,
    is_same_origin,
)
from tornado_status.api.request_id import HEADER, request_id
from tornado_status.errors import (
    IdentityError,
    StatusError,
    StoreError,
    StoreUnavailable,
    TooFrequent,
    UserUnknown,
)
from tornado_status.model.records import CheckIn

if TYPE_CHECKING:
    from tornado_status.api.dependencies import Authenticator
    from tornado_status.api.in_flight import RequestsInFlight
    from tornado_status.observe.tracing import RequestSpan, Tracing
    from tornado_status.runtime.fair_semaphore import FairSemaphore
    from tornado_status.runtime.rate_limit import RateLimit

MAX_LOGGED_PATH = 200  # characters: a path may be as long as a head

# Answers to reads that are made, or that their client has not taken. The next ones wait.
MAX_READS_EACH = 4  # of one identity: it leaves connections of the database to others
MAX_READS = 256  # of all: a piece of an answer has less than 100 KB
# Requests of one identity that are served at once; each takes up to a millisecond of the loop.
MAX_REQUESTS_EACH = 8  # more than reads: one that downloads can still check in
READ_WAIT_S = 10.0  # then 503
TAKE_TIMEOUT_S = 60.0  # for a client to take one piece of an answer
CHECK_EVERY_S = 0.25  # a revocation ends an answer within a second
TOO_MANY = "As many answers as allowed are under way: read yours, then try again"

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@stream_request_body  # `prepare` runs before the body arrives: a large one is never read
class Handler(RequestHandler):
    """Base of all handlers.

    Handlers raise `Problem` and `StoreUnavailable`. The server logs any other exception and
    answers 500.
    """

    in_flight: RequestsInFlight
    authenticator: Authenticator
    reads: FairSemaphore
    requests: FairSemaphore
    error_log_limit: RateLimit  # of tracebacks: a client that causes one can cause it again
    refusal_log_limit: RateLimit
    tracing: Tracing | None = None
    route = ""  # the path as a template, /api/users/{email}
    span: RequestSpan | None = None
    request_id = ""  # the client's or a new one; set before any response
    check_in: CheckIn  # what the client certificate says; set by `prepare`
    error: BaseException | None = None  # the error that the response is about
    ends_connection = False  # the connection closes after this request
    _is_disconnected = False  # the client hung up before the response
    _wait: asyncio.Timeout | None = None  # while it waits for its turn

    def initialize(self, **services: object) -> None:
        self._is_in_flight = False
        self._has_place = False
        self._has_begun = False
        for name, service in services.items():
            setattr(self, name, service)

    def set_default_headers(self) -> None:
        if not self.request_id:
            self.request_id = request_id(self.request.headers.get(HEADER))
        self.set_header(HEADER, self.request_id)
        self.clear_header("Server")  # versions are no client's business
        self.clear_header("Content-Type")
        self.set_header("Cache-Control", "no-store")
        if self.ends_connection:
            self.set_header("Connection", "close")

    async def prepare(self) -> None:
        if not self.authenticator.begin(self.request):
            raise Finish
        self._has_begun = True
        self.in_flight.begin()
        self._is_in_flight = True
        # Bound for this request's task only: each of its log lines has the fields.
        structlog.contextvars.bind_contextvars(request_id=self.request_id)
        peer = self.authenticator.peer_of(self.request)
        if self.tracing is not None:
            email = None if peer.check_in is None else peer.check_in.email
            self.span = self.tracing.begin(self.request, self.route, email)
            if self.span is not None:
                structlog.contextvars.bind_contextvars(trace_id=self.span.trace_id)
        if self.authenticator.is_last(self.request) or asks_to_close(self.request):
            self.ends_connection = True
            self.set_header("Connection", "close")
        if peer.check_in is None:
            if peer.refusal is None:
                raise Problem(
                    400, "No required SSL certificate was sent", advice=Advice.NO_CERTIFICATE
                )
            # Tornado closes the connection if the body was not read; a proxy has to know.
            close = {"Connection": "close"}
            refusal = peer.refusal
            if refusal.status == 429:
                raise Problem(429, refusal.detail, {**close, "Retry-After": "10"})
            is_missing = refusal.reason == "no-certificate"
            advice = Advice.NO_CERTIFICATE if is_missing else Advice.BAD_CERTIFICATE
            raise Problem(refusal.status, refusal.detail, close, advice)
        self.check_in = peer.check_in
        await self._wait_for(self.requests)
        self._has_place = True
        check_framing(self.request)
        if not is_same_origin(self.request):
            self.forbid("Requests from other web sites are not served", Advice.OTHER_SITE)
        check_body_size(self.request)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until this client may have one more answer to a read. Raises `Problem`.

        Hold it until the client has taken the answer: see `send_whole` and `send_pieces`.
        """
        await self._wait_for(self.reads)
        try:
            yield
        finally:
            self.reads.release(self.check_in.email)

    async def _wait_for(self, places: FairSemaphore) -> None:
        """Wait for a place of this client. Raises `Problem`."""
        try:
            async with asyncio.timeout(READ_WAIT_S) as self._wait:
                await places.acquire(self.check_in.email)
        except TimeoutError as error:
            raise Problem(503, TOO_MANY, {"Retry-After": "10"}) from error
        finally:
            self._wait = None

    async def send_whole(self, body: bytes) -> None:
        """Send the body of an answer, and wait until the client has taken it."""
        writing = self.finish(body)
        try:
            await self._taken(writing)
        except (IdentityError, TimeoutError, StreamClosedError) as error:
            self._cut_off(error)

    async def send_pieces(self, pieces: AsyncIterator[bytes]) -> None:
        """Send the body of an answer piece by piece, at the pace of the client.

        An error ends it without HTTP's last chunk: the client sees that it is incomplete.
        """
        if self.request.version == "HTTP/1.0":
            self.ends_connection = True  # without chunks, the end of the connection is that of it
        try:
            async for piece in pieces:
                self._require_accepted()
                self.write(piece)
                await self._taken(self.flush())
        except (IdentityError, StoreError, TimeoutError, StreamClosedError) as error:
            self._cut_off(error)

    async def _taken(self, writing: asyncio.Future[None]) -> None:
        """Wait until the client has taken what is being written, unless it is refused by then."""
        async with asyncio.timeout(TAKE_TIMEOUT_S):
            while not (await asyncio.wait({writing}, timeout=CHECK_EVERY_S))[0]:
                self._require_accepted()
        writing.result()

    def _require_accepted(self) -> None:
        """Raise `IdentityError` if the client's certificate is no longer accepted."""
        refusal = self.authenticator.peer_of(self.request).refusal
        if refusal is not None:
            raise IdentityError(*refusal)

    def _cut_off(self, error: Exception) -> None:
        email = self.check_in.email
        suppressed = self.refusal_log_limit.allow((email, type(error), type(self)))
        if suppressed is not None:
            structlog.get_logger().warning(
                "answer cut off",
                email=email,
                path=self.request.path[:MAX_LOGGED_PATH],
                reason=error.detail
                if isinstance(error, IdentityError)
                else str(error) or "the client did not take it in time",
                suppressed=suppressed,
            )
        if isinstance(self.request.connection, HTTP1Connection):
            self.request.connection.stream.close()

    def forbid(self, detail: str, advice: Advice = Advice.NONE) -> NoReturn:
        """Answer 403 with one sentence. The log has one line a minute for each kind."""
        request, peer = self.request, self.check_in
        suppressed = self.refusal_log_limit.allow((peer.email, request.method, type(self)))
        if suppressed is not None:
            structlog.get_logger().warning(
                "request forbidden",
                email=peer.email,
                method=request.method,
                path=request.path[:MAX_LOGGED_PATH],
                reason=detail,
                client_ip=peer.client_ip,
                suppressed=suppressed,
            )
        raise Problem(403, detail, advice=advice)

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """See `RequestHandler.decode_argument`. PostgreSQL stores no text with a NUL in it."""
        text = super().decode_argument(value, name)
        if "\0" in text:
            raise Problem(400, "A parameter contains a NUL character")
        return text

    def data_received(self, chunk: bytes) -> None:
        """Ignore the body. The HTTP server bounds one that comes in chunks."""

    def count_as_answered(self) -> None:
        """End the request's span, and no longer count it as in flight. Idempotent."""
        if self._has_place:
            self._has_place = False
            self.requests.release(self.check_in.email)
        if self._is_in_flight:
            self._is_in_flight = False
            self.in_flight.end()
            if self.span is not None:
                status = None if self._is_disconnected else self.get_status()
                check_in = getattr(self, "check_in", None)
                self.span.end(self.request_id, check_in, status, self.error)

    def on_finish(self) -> None:
        self.count_as_answered()
        if self._has_begun:
            self._has_begun = False
            self.authenticator.end(self.request)
        if self.ends_connection and isinstance(self.request.connection, HTTP1Connection):
            stream = self.request.connection.stream
            with contextlib.suppress(StreamClosedError):
                # Completes after what is being written.
                asyncio.ensure_future(stream.write(b"")).add_done_callback(lambda _: stream.close())

    def on_connection_close(self) -> None:
        # Tornado does not call on_finish if the client hangs up.
        self._is_disconnected = True
        if self._wait is not None:
            self._wait.reschedule(0)  # its client has gone
        self.on_finish()

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if isinstance(value, HTTPError | StoreUnavailable | TooFrequent | UserUnknown | Finish):
            return
        suppressed = self.error_log_limit.allow((type(self), typ, _raised_at(tb)))
        if suppressed is None:
            return
        structlog.get_logger().error(
            "request failed",
            method=self.request.method,
            path=self.request.path,
            suppressed=suppressed,
            exc_info=(typ, value, tb),
        )

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        error = self.error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, StatusError):
            status_code = describe(error)[0]
        super().send_error(status_code, **kwargs)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        detail: str | None = None
        headers: dict[str, str] = {}
        advice = Advice.NONE
        if isinstance(error, Problem):
            detail, headers, advice = error.detail, error.headers, error.advice
        elif isinstance(error, StatusError):
            _, detail, headers = describe(error)
        elif status_code == 405:
            headers = {"Allow": ", ".join(self._allowed_methods())}
        elif status_code >= 500:
            detail = INTERNAL_ERROR
        for name, value in headers.items():
            self.set_header(name, value)
        if wants_page(self.request):
            set_page_headers(self)
            self.set_header("Content-Type", HTML)
            check_in = getattr(self, "check_in", None)
            email = None if check_in is None else check_in.email
            self.finish(error_page(status_code, detail, advice, email, self.request_id))
            return
        self.set_header("Content-Type", CONTENT_TYPE)
        self.finish(problem_body(status_code, detail))

    def write_json(self, body: bytes) -> None:
        """Answer 200 with a body that is JSON already."""
        self.set_header("Content-Type", "application/json")
        self.finish(body)

    def _allowed_methods(self) -> list[str]:
        base = RequestHandler
        return [
            m for m in METHODS if getattr(type(self), m.lower()) is not getattr(base, m.lower())
        ]


class NotFoundHandler(Handler):
    """Any path that has no route."""

    async def prepare(self) -> None:
        await super().prepare()
        raise Problem(404, "There is nothing here")


def _raised_at(tb: TracebackType | None) -> tuple[str, int] | None:
    """Return the file and line that an exception was raised in."""
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    return None if tb is None else (tb.tb_frame.f_code.co_filename, tb.tb_lineno)
