"""A receiver of alerts that answers what a test says, as far as the server takes it."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterable

from tests.support.hostile_peer import HostilePeer

ENOUGH = 128 * 1024 * 1024  # bytes of one answer

Answer = Callable[[], Iterable[bytes]]


class HostileReceiver(HostilePeer):
    """`answer` yields what is sent after a request has begun. Then nothing comes."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer
        self.url = f"http://{self.address}/"
        self.requests = 0

    def serve(self, connection: socket.socket) -> None:
        if not connection.recv(65536):
            return
        self.requests += 1
        sent = 0
        for chunk in self._answer():
            connection.sendall(chunk)
            sent += len(chunk)
            if sent > ENOUGH:
                break
        while connection.recv(65536):
            pass


def no_answer() -> Iterable[bytes]:
    return ()


def endless_headers() -> Iterable[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    yield from itertools.repeat(b"A: " + b"a" * 65_533 + b"\r\n")


def endless_body() -> Iterable[bytes]:
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    yield from itertools.repeat(bytes(65_536))


def endless_chunks() -> Iterable[bytes]:
    """Of one byte each."""
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    yield from itertools.repeat(b"1\r\nx\r\n" * 10_000)


def endless_chunk_size() -> Iterable[bytes]:
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    yield from itertools.repeat(b"0" * 65_536)


def endless_promises() -> Iterable[bytes]:
    yield from itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
