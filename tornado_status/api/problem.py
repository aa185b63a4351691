"""Errors as `application/problem+json` (RFC 9457), and what every handler has in common."""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
from collections.abc import Awaitable
from email.utils import formatdate
from types import TracebackType
from typing import Any, NoReturn, Protocol

import structlog
from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPServerRequest
from tornado.iostream import StreamClosedError
from tornado.web import Finish, HTTPError, RequestHandler, stream_request_body

from tornado_status.api.in_flight import InFlight
from tornado_status.api.request_id import HEADER, request_id
from tornado_status.errors import (
    HeadTooSlow,
    IdentityError,
    StatusError,
    StoreUnavailable,
    TooFrequent,
    UserUnknown,
)
from tornado_status.model.records import CheckIn, Peer
from tornado_status.runtime.host_header import is_host
from tornado_status.runtime.rate_limit import RateLimit

MAX_SHOWN = 200  # characters of a refused path that are logged: a path may be as long as a head

MAX_BODY = 4096  # a check-in has no body; what proxies and old clients add is read and ignored

CONTENT_TYPE = "application/problem+json"
UNAVAILABLE = "Not known to be recorded: the database is away or overloaded. Try again."
MISTAKE = "The server made a mistake; its log says more"

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def problem_body(status: int, detail: str | None) -> bytes:
    """Return the JSON of a problem without a type of its own."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
    }
    if detail is not None:
        body["detail"] = detail
    return json.dumps(body).encode()


def problem_answer(error: StatusError) -> bytes:
    """Return the whole HTTP answer to who is told of `error` without a handler."""
    status, detail, headers = describe(error)
    body = problem_body(status, detail)
    lines = [
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {CONTENT_TYPE}",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def describe(error: StatusError) -> tuple[int, str, dict[str, str]]:
    """Return status, detail and headers of the answer to an error."""
    if isinstance(error, IdentityError):
        return error.status, error.detail, {"Connection": "close"}
    if isinstance(error, HeadTooSlow):
        return 408, "The head of the request took too long", {"Connection": "close"}
    if isinstance(error, UserUnknown):
        return 403, "User unknown", {}
    if isinstance(error, TooFrequent):
        return 429, "More check-ins than allowed", {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, StoreUnavailable):
        return 503, UNAVAILABLE, {"Retry-After": str(error.retry_after_s)}
    return 500, MISTAKE, {}


class Problem(HTTPError):
    """An answer of 4xx or 5xx whose `detail` is one sentence for the client."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, reason=http.HTTPStatus(status).phrase)
        self.detail = detail
        self.headers = headers or {}


def same_origin(request: HTTPServerRequest) -> bool:
    """Say whether a request may be the user's own will.

    Any web page can make a browser send requests, and the browser adds the user's certificate. It
    also says where they come from (Fetch Metadata, RFC 6454); programs say nothing of the kind.
    """
    origin = request.headers.get("Origin")
    if origin is not None and origin != f"https://{request.host}":
        return False
    return request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")


def check_framing(request: HTTPServerRequest) -> None:
    """Raise `Problem` for what RFC 9112 has refused, or ended, and Tornado lets pass."""
    close = {"Connection": "close"}
    if request.version == "HTTP/1.0" and "Transfer-Encoding" in request.headers:
        # 6.1: who speaks HTTP/1.0 and passes it on may not have understood it.
        raise Problem(400, "HTTP/1.0 has no Transfer-Encoding", close)
    if not is_host(request.host):  # 3.2
        raise Problem(400, "The Host header is not a host", close)


class Peers(Protocol):
    """Who sent a request, as judged now, and whether its connection ends with it."""

    def peer_of(self, request: HTTPServerRequest) -> Peer: ...

    def is_last(self, request: HTTPServerRequest) -> bool: ...

    def begin(self, request: HTTPServerRequest) -> bool: ...

    def end(self, request: HTTPServerRequest) -> None: ...


class RequestSpan(Protocol):
    """One request of a trace, until it is answered: `tracing.RequestSpan`."""

    trace_id: str

    def mark(self, check_in: CheckIn) -> CheckIn: ...

    def end(
        self,
        request_id: str,
        check_in: CheckIn | None,
        status: int | None,
        error: BaseException | None,
    ) -> None: ...


class Tracing(Protocol):
    """Makes the spans of requests that are sampled: `tracing.Tracing`."""

    def begin(self, request: HTTPServerRequest, route: str) -> RequestSpan | None: ...


@stream_request_body  # so that `prepare` runs before the body: a large one is never read
class Handler(RequestHandler):
    """Base of all handlers: knows its peer, refuses whom `identity` refused, answers errors.

    Handlers raise `Problem` and `StoreUnavailable`; everything else is a 500 and logged.
    """

    in_flight: InFlight
    peers: Peers
    mistakes: RateLimit  # of tracebacks: whoever finds a mistake can make it again and again
    refusals: RateLimit
    tracing: Tracing | None = None
    route = ""  # its path as a template, /api/users/{email}
    span: RequestSpan | None = None
    _gone = False  # the client, before it was answered
    _last = False  # the connection ends with this request
    request_id = ""  # the sender's, or a new one; set before anything is answered
    check_in: CheckIn  # what the caller's certificate says; set by `prepare`
    error: BaseException | None = None  # what the answer is about, where it is one

    def initialize(self, **services: object) -> None:
        self._counted = False
        self._begun = False
        for name, service in services.items():
            setattr(self, name, service)

    def set_default_headers(self) -> None:
        if not self.request_id:
            self.request_id = request_id(self.request.headers.get(HEADER))
        self.set_header(HEADER, self.request_id)
        self.clear_header("Server")  # which version of what answers is nobody's business
        self.clear_header("Content-Type")
        self.set_header("Cache-Control", "no-store")
        if self._last:
            self.set_header("Connection", "close")

    def prepare(self) -> Awaitable[None] | None:
        if not self.peers.begin(self.request):
            raise Finish
        self._begun = True
        self.in_flight.begin()
        self._counted = True
        # For this task alone, which is this request's: each line of the log has it.
        structlog.contextvars.bind_contextvars(request_id=self.request_id)
        if self.tracing is not None:
            self.span = self.tracing.begin(self.request, self.route)
            if self.span is not None:
                structlog.contextvars.bind_contextvars(trace_id=self.span.trace_id)
        peer = self.peers.peer_of(self.request)
        if self.peers.is_last(self.request):
            self._last = True
            self.set_header("Connection", "close")
        if peer.check_in is None:
            if peer.refusal is None:
                raise Problem(400, "No required SSL certificate was sent")
            # Tornado closes where the body was not waited for; a proxy has to know.
            close = {"Connection": "close"}
            raise Problem(peer.refusal.status, peer.refusal.detail, close)
        self.check_in = peer.check_in
        check_framing(self.request)
        if not same_origin(self.request):
            self.refuse("Requests from other web sites are not served")
        length = self.request.headers.get("Content-Length", "0")
        if length.isdecimal() and int(length[:20]) > MAX_BODY:
            raise Problem(
                413, f"A check-in has no body; at most {MAX_BODY} bytes are read and ignored"
            )
        return None

    def refuse(self, detail: str) -> NoReturn:
        """Answer 403 in a sentence, and log who is refused what: once a minute of each kind."""
        request, peer = self.request, self.check_in
        suppressed = self.refusals.allow((peer.email, request.method, type(self)))
        if suppressed is not None:
            structlog.get_logger().warning(
                "refused",
                who=peer.email,
                what=f"{request.method} {request.path[:MAX_SHOWN]}",
                why=detail,
                client_ip=peer.client_ip,
                suppressed=suppressed,
            )
        raise Problem(403, detail)

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """See `RequestHandler.decode_argument`; PostgreSQL has no text with a NUL in it."""
        text = super().decode_argument(value, name)
        if "\0" in text:
            raise Problem(400, "A NUL character is in no parameter")
        return text

    def data_received(self, chunk: bytes) -> None:
        """Ignore the body. What comes in chunks is bounded by the server's own limit."""

    def leave_flight(self) -> None:
        """Count as answered. Twice is once."""
        if self._counted:
            self._counted = False
            self.in_flight.end()
            if self.span is not None:
                status = None if self._gone else self.get_status()
                check_in = getattr(self, "check_in", None)
                self.span.end(self.request_id, check_in, status, self.error)

    def on_finish(self) -> None:
        self.leave_flight()
        if self._begun:
            self._begun = False
            self.peers.end(self.request)
        if self._last and isinstance(self.request.connection, HTTP1Connection):
            stream = self.request.connection.stream
            with contextlib.suppress(StreamClosedError):
                # Behind what is being written.
                asyncio.ensure_future(stream.write(b"")).add_done_callback(lambda _: stream.close())

    def on_connection_close(self) -> None:
        # The client is gone; Tornado never calls on_finish for it.
        self._gone = True
        self.on_finish()

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if isinstance(value, HTTPError | StoreUnavailable | TooFrequent | UserUnknown | Finish):
            return
        suppressed = self.mistakes.allow((type(self), typ, _raised_at(tb)))
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
        detail = None
        if isinstance(error, Problem):
            detail = error.detail
            for name, value in error.headers.items():
                self.set_header(name, value)
        elif isinstance(error, StatusError):
            _, detail, headers = describe(error)
            for name, value in headers.items():
                self.set_header(name, value)
        elif status_code == 405:
            self.set_header("Allow", ", ".join(self._allowed()))
        elif status_code >= 500:
            detail = MISTAKE
        self.set_header("Content-Type", CONTENT_TYPE)
        self.finish(problem_body(status_code, detail))

    def write_json(self, body: bytes) -> None:
        """Answer 200 with a body that is JSON already."""
        self.set_header("Content-Type", "application/json")
        self.finish(body)

    def _allowed(self) -> list[str]:
        base = RequestHandler
        return [
            m for m in METHODS if getattr(type(self), m.lower()) is not getattr(base, m.lower())
        ]


def _raised_at(tb: TracebackType | None) -> tuple[str, int] | None:
    """Return the file and line that an exception was raised in."""
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    return None if tb is None else (tb.tb_frame.f_code.co_filename, tb.tb_lineno)


class NotFound(Handler):
    """Any path that is nothing."""

    def prepare(self) -> Awaitable[None] | None:
        super().prepare()
        raise Problem(404, "There is nothing here")
