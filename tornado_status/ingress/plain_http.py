"""Plain HTTP on a TLS port: the handshake fails, and the client gets one 400 in words."""

from __future__ import annotations

import contextlib
import socket
from email.utils import formatdate

# Kinds of failed handshakes: OpenSSL knows the methods by their first five bytes.
KINDS = ("http-request", "https-proxy-request")
SENTENCE = "This port speaks HTTPS: write https:// instead of http:// in the address.\n"


def answer(connection: socket.socket) -> None:
    """Send the 400, as far as the socket takes it at once; the caller closes."""
    body = SENTENCE.encode()
    lines = (
        "HTTP/1.1 400 Bad Request",
        f"Date: {formatdate(usegmt=True)}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close",
        "X-Content-Type-Options: nosniff",
        "",
        "",
    )
    with contextlib.suppress(OSError):
        connection.send("\r\n".join(lines).encode() + body)
