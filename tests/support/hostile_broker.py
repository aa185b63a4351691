"""A NATS broker that answers as one until a subscription, and then sends what a test says.

It sends `ENOUGH` bytes at most, and counts what it could send before the peer closed.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable

from tests.support.hostile_peer import HostilePeer

ENOUGH = 48 * 1024 * 1024  # bytes
KERNEL = 24 * 1024 * 1024  # bytes that the sockets' buffers may take, generously
NO_RESPONDERS = b"NATS/1.0 503\r\n\r\n"
INFO = {"server_id": "x", "version": "2.10.0", "max_payload": 1 << 30, "headers": True}

Attack = Callable[[bytes, bytes], Iterable[bytes]]


class HostileBroker(HostilePeer):
    """`attack` gets a subscription's subject and number, and yields what is sent after it.

    It begins with the first subscription whose subject begins with `subject`. Requests get the
    answer that there is no JetStream.
    """

    def __init__(self, attack: Attack, subject: bytes = b"") -> None:
        super().__init__()
        self._attack = attack
        self._subject = subject
        self.url = f"nats://{self.address}"
        self.sent: list[int] = []  # bytes that each connection took, once it ended

    def serve(self, connection: socket.socket) -> None:
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
