"""The page of an error. Programs get `application/problem+json` instead: see `Handler`."""

from __future__ import annotations

import base64
import enum
import functools
import hashlib
import http
import re
from importlib import resources

from tornado.httputil import HTTPServerRequest
from tornado.template import Template
from tornado.web import RequestHandler

HTML = "text/html; charset=utf-8"

_REFUSED = re.compile(r"q=0(?:\.0*)?")  # a weight of 0 (RFC 9110, 12.4.2)

# The part of the board's style sheet before this line is the pages' too: colours, fonts, focus.
END_OF_SHARED_STYLE = "/* Error pages have the style above this line, too. */"


class Advice(enum.Enum):
    """The advice of a page. The value is its heading; None: the sentence of the error."""

    NO_CERTIFICATE = "Your browser sent no certificate"
    BAD_CERTIFICATE = "Your certificate is not accepted"
    READERS = "Only readers may see this page"
    OTHER_SITE = "This page does not open from a link"
    NONE = None


def wants_page(request: HTTPServerRequest) -> bool:
    """Return whether a person waits for the answer: a browser opens a page with GET and says so."""
    if request.method != "GET":
        return False
    for media_range in request.headers.get("Accept", "").lower().split(","):
        name, *parameters = (part.strip() for part in media_range.split(";"))
        if name == "text/html":
            return not any(_REFUSED.fullmatch(parameter) for parameter in parameters)
    return False


def error_page(
    status: int, detail: str | None, advice: Advice, email: str | None, request_id: str
) -> bytes:
    """Return the page. `email` is the user's, if the certificate is accepted."""
    phrase = http.HTTPStatus(status).phrase
    page: bytes = _template().generate(
        advice=advice,
        Advice=Advice,
        heading=advice.value or detail or phrase,
        detail=detail or phrase,
        email=email,
        status=status,
        request_id=request_id,
        style=_style(),
    )
    return page


def set_page_headers(handler: RequestHandler) -> None:
    """Set the headers of an error's page: the browser runs nothing, and loads nothing."""
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    set_security_headers(handler, f"style-src 'sha256-{digest}'", "img-src data:")


def set_security_headers(handler: RequestHandler, *sources: str) -> None:
    """Set the headers of a page: content from `sources` only, and in no frame."""
    policy = (
        "default-src 'none'",
        *sources,
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
    handler.set_header("Content-Security-Policy", "; ".join(policy))
    handler.set_header("X-Content-Type-Options", "nosniff")
    handler.set_header("Referrer-Policy", "no-referrer")
    handler.set_header("Cross-Origin-Opener-Policy", "same-origin")


@functools.cache
def _template() -> Template:
    return Template((resources.files(__package__) / "page.html").read_bytes())


@functools.cache
def _style() -> str:
    board = resources.files("tornado_status.api.board") / "files" / "board.css"
    shared, found, _ = board.read_text("utf-8").partition(END_OF_SHARED_STYLE)
    if not found:
        raise ValueError(f"board.css has no line {END_OF_SHARED_STYLE}")
    return shared + (resources.files(__package__) / "page.css").read_text("utf-8")
