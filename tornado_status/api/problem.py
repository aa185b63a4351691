"""Errors as `application/problem+json` (RFC 9457). Pure but for Tornado's exception."""

from __future__ import annotations

import http
import json
from email.utils import formatdate

from tornado.web import HTTPError

from tornado_status.api.error_page.render import Advice
from tornado_status.errors import (
    HeadTooSlow,
    IdentityError,
    StatusError,
    StoreUnavailable,
    TooFrequent,
    UserUnknown,
)

CONTENT_TYPE = "application/problem+json"
UNAVAILABLE = "Not known to be recorded: the database is away or overloaded. Try again."
INTERNAL_ERROR = "Internal error; the server's log has details"


class Problem(HTTPError):
    """A response of 4xx or 5xx whose `detail` is one sentence for the client.

    In a browser the page of the error gives `advice`.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        headers: dict[str, str] | None = None,
        advice: Advice = Advice.NONE,
    ) -> None:
        super().__init__(status, reason=http.HTTPStatus(status).phrase)
        self.detail = detail
        self.headers = headers or {}
        self.advice = advice


def problem_body(status: int, detail: str | None) -> bytes:
    """Return the JSON of a problem of type `about:blank`."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
    }
    if detail is not None:
        body["detail"] = detail
    return json.dumps(body).encode()


def problem_answer(error: StatusError) -> bytes:
    """Return the whole HTTP response to an error that no handler answers."""
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
    """Return status, detail and headers of the response to an error."""
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
    return 500, INTERNAL_ERROR, {}
