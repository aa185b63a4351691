"""A receiver of alerts that answers what a test says, as far as the server takes it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterable
from types import TracebackType

from tests.support.harness import LOOPBACK, PATIENCE_S

ENOUGH = 128 * 1024 * 1024  # bytes of one answer

Answer = Callable[[], Iterable[bytes]]


class HostileReceiver:
    """`answer` yields what is sent after a request has begun. Then nothing comes."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._socket = socket.create_server((LOOPBACK, 0))
        self.url = f"http://{LOOPBACK}:{self._socket.getsockname()[1]}/"
        self.requests = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> HostileReceiver:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping = True
        with contextlib.suppress(OSError):
            socket.create_connection(self._socket.getsockname()).close()
        self._thread.join(PATIENCE_S)
        self._socket.close()

    def _accept(self) -> None:
        while not self._stopping:
            connection, _ = self._socket.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(PATIENCE_S)
                if not connection.recv(65536):
                    continue
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
