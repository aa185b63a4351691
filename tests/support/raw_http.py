"""Requests as bytes over TLS, and the answers to them."""

from __future__ import annotations

import re
import ssl

from tests.support.hostile_requests import CHECK_IN, HOST

PLAIN = CHECK_IN + b"\r\n"


GET = b"GET /api/client HTTP/1.1\r\n" + HOST + b"\r\n"


STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")


def read_answers(connection: ssl.SSLSocket, count: int) -> bytes:
    """Read until `count` status lines have come."""
    answers = b""
    while len(STATUS.findall(answers)) < count:
        data = connection.recv(65536)
        assert data, answers
        answers += data
    return answers
