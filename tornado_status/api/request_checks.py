"""Checks of a request before a handler serves it. Raises `Problem`."""

from __future__ import annotations

from tornado.httputil import HTTPServerRequest

from tornado_status.api.problem import Problem
from tornado_status.runtime.host_header import is_host
from tornado_status.runtime.http_timeouts import MAX_BODY


def check_framing(request: HTTPServerRequest) -> None:
    """Raise `Problem` for requests that RFC 9112 refuses and Tornado accepts."""
    close = {"Connection": "close"}
    if request.version == "HTTP/1.0":
        # RFC 9110, 10.1.1: no 100 Continue to a client that does not know it.
        request.headers.pop("Expect", None)
    if request.version == "HTTP/1.0" and "Transfer-Encoding" in request.headers:
        # 6.1: an HTTP/1.0 proxy may have forwarded it without understanding it.
        raise Problem(400, "HTTP/1.0 has no Transfer-Encoding", close)
    if not is_host(request.host):  # 3.2
        raise Problem(400, "The Host header is not a host", close)


def asks_to_close(request: HTTPServerRequest) -> bool:
    """Return whether one of the request's options for the connection is `close` (RFC 9112, 9.6).

    Tornado finds it only as the single option.
    """
    options = request.headers.get("Connection", "").lower().split(",")
    return "close" in (option.strip(" \t") for option in options)


def check_body_size(request: HTTPServerRequest) -> None:
    """Raise `Problem` if the body is larger than the server reads.

    A chunked body has no length here; the HTTP server bounds it.
    """
    length = request.headers.get("Content-Length", "0")
    if length.isdecimal() and int(length[:20]) > MAX_BODY:
        raise Problem(413, f"A check-in has no body; at most {MAX_BODY} bytes are read and ignored")


def is_same_origin(request: HTTPServerRequest) -> bool:
    """Return whether no other web site made the browser send this request.

    Any web page can make a browser send requests, and the browser adds the user's certificate.
    Browsers say where a request comes from (Fetch Metadata, RFC 6454); programs do not.
    """
    origin = request.headers.get("Origin")
    if origin is not None and origin != f"https://{request.host}":
        return False
    return request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
