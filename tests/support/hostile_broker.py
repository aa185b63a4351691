"""A NATS broker that answers as one until a subscription, and then sends what a test says.

It sends `ENOUGH` bytes at most, and counts what it could send before the peer closed.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterable
from types import TracebackType

from tests.support.harness import LOOPBACK, PATIENCE_S

ENOUGH = 48 * 1024 * 1024  # bytes
KERNEL = 24 * 1024 * 1024  # bytes that the sockets' buffers may take, generously
NO_RESPONDERS = b"NATS/1.0 503\r\n\r\n"
INFO = {"server_id": "x", "version": "2.10.0", "max_payload": 1 << 30, "headers": True}

Attack = Callable[[bytes, bytes], Iterable[bytes]]


class HostileBroker:
    """`attack` gets a subscription's subject and number, and yields what is sent after it.

    It begins with the first subscription whose subject begins with `subject`. Requests get the
    answer that there is no JetStream.
    """

    def __init__(self, attack: Attack, subject: bytes = b"") -> None:
        self._attack = attack
        self._subject = subject
        self._socket = socket.create_server((LOOPBACK, 0))
        self.url = f"nats://{LOOPBACK}:{self._socket.getsockname()[1]}"
        self.sent: list[int] = []  # bytes that each connection took, once it ended
        self._stopping = False
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> HostileBroker:
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
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.sendall(b"INFO " + json.dumps(INFO).encode() + b"\r\n")
        buffer = inbox = b""
        while data := connection.recv(65536):
            *lines, buffer = (buffer + data).split(b"\r\n")
            for line in lines:
                if line == b"PING":
                    connection.sendall(b"PONG\r\n")
                elif line.startswith(b"PUB ") and inbox:
                    reply = line.split(b" ")[2]
                    connection.sendall(hmsg(reply, inbox, NO_RESPONDERS))
                elif line.startswith(b"SUB "):
                    _, subject, *_, number = line.split(b" ")
                    if subject.startswith(self._subject):
                        self._send_all(connection, self._attack(subject, number))
                    inbox = inbox or number

    def _send_all(self, connection: socket.socket, chunks: Iterable[bytes]) -> None:
        sent = 0
        try:
            for chunk in chunks:
                connection.sendall(chunk)
                sent += len(chunk)
                if sent >= ENOUGH:
                    return
        finally:
            self.sent.append(sent)


def hmsg(subject: bytes, number: bytes, headers: bytes) -> bytes:
    """Return a message that has headers and no payload."""
    size = b"%d" % len(headers)
    return b" ".join([b"HMSG", subject, number, size, size]) + b"\r\n" + headers + b"\r\n"


def huge_message(subject: bytes, number: bytes) -> Iterable[bytes]:
    """99 GB, as far as it gets."""
    yield b"MSG " + subject + b" " + number + b" 99000000000\r\n"
    while True:
        yield bytes(65536)


def endless_line(subject: bytes, number: bytes) -> Iterable[bytes]:
    yield b"MSG " + subject
    while True:
        yield b"a" * 65536


def huge_headers(subject: bytes, number: bytes) -> Iterable[bytes]:
    """Messages without a payload: the library counts 0 bytes of each."""
    while True:
        yield hmsg(subject, number, b"NATS/1.0\r\nA: " + b"a" * 500_000 + b"\r\n\r\n")


def other_brokers(subject: bytes, number: bytes) -> Iterable[bytes]:
    """Name another member of the cluster, then send one message."""
    members = json.dumps({**INFO, "connect_urls": ["elsewhere.example.com:4222"]}).encode()
    yield b"INFO " + members + b"\r\n"
    yield b"MSG " + subject + b" " + number + b" 2\r\nhi\r\n"
