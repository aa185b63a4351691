"""The request heads that are plain check-ins: parsed by Tornado's own parser, cached by bytes.

The answer is "surely" or "no": Tornado's ordinary HTTP handles any unusual request, so no request
is parsed in two ways.
"""

from __future__ import annotations

import re

from tornado.httputil import (
    HTTPHeaders,
    HTTPInputError,
    HTTPServerRequest,
    parse_request_start_line,
)

from tornado_status.runtime.host_header import is_host

PATH = "/api/client"
METHODS = frozenset({"POST", "PUT", "PATCH"})

# The end of a head, as HTTP1Connection looks for it.
END_OF_HEAD = re.compile(rb"\r?\n\r?\n")

MAX_HEAD = 1024  # bytes; a plain client sends fewer than 300
MAX_REMEMBERED = 1024  # heads: programs times versions that check in, far below

# Headers that programs add by themselves and that change nothing. Any other, such as Origin, Expect
# or Transfer-Encoding, makes the request an ordinary one.
HARMLESS = frozenset(
    {"Host", "User-Agent", "Accept", "Accept-Encoding", "Content-Length", "Connection"}
)


class PlainHeads:
    """Caches the heads that are plain check-ins, in `known`."""

    def __init__(self) -> None:
        self.known: set[bytes] = set()

    def is_plain(self, head: bytes) -> bool:
        """Return whether `head`, up to and with its empty line, is a check-in without a body."""
        if head in self.known:
            return True
        if len(head) > MAX_HEAD or not _is_plain(head):
            return False
        if len(self.known) >= MAX_REMEMBERED:
            self.known.clear()  # a client varies its heads; each is parsed again at worst
        self.known.add(head)
        return True


def _is_plain(head: bytes) -> bool:
    return plain_headers(head) is not None


def plain_headers(head: bytes, also: frozenset[str] = frozenset()) -> HTTPHeaders | None:
    """Return the headers of a head that surely is a check-in without a body, else None.

    `also` are the names of further headers that change nothing.
    """
    text = head.decode("latin1")
    start_line, newline, rest = text.partition("\r\n")
    if not newline or not text.endswith("\r\n\r\n"):
        return None  # bare line feeds
    try:
        request = HTTPServerRequest(
            start_line=parse_request_start_line(start_line), headers=HTTPHeaders.parse(rest)
        )
    except HTTPInputError:
        return None
    headers = request.headers
    plain = (
        request.method in METHODS
        and request.uri == PATH
        and request.version == "HTTP/1.1"
        and (HARMLESS | also).issuperset(headers)
        and headers.get("Content-Length", "0") == "0"
        and is_host(headers["Host"])  # there is one: Tornado's request asks for it
        and headers.get("Connection", "keep-alive").lower() == "keep-alive"
    )
    return headers if plain else None
