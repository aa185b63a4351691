"""Clients that do not read, and what they cost the server."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from tests.support.harness import LOOPBACK, PATIENCE_S, Server, wait_until

SETTLED = 50  # as many looks, 20 ms apart, without a change


def ask(
    server: Server, request: bytes, cert: str = "operator", *, answered: bool = True
) -> ssl.SSLSocket:
    """Send a request over a connection that can hold little of its answer; read its beginning.

    Do not wait for that unless it is `answered`.
    """
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.settimeout(PATIENCE_S)
    raw.connect((LOOPBACK, server.port))
    connection = server.client_context(cert).wrap_socket(raw, server_hostname="localhost")
    connection.sendall(request)
    if answered:
        assert connection.recv(12).startswith(b"HTTP/1.1 ")
    return connection


def in_kernel(server: Server, connection: socket.socket) -> tuple[int, int]:
    """Return how many bytes of a connection wait in the server's kernel: to be sent, to be read.

    See proc_net(5).
    """
    ends = [f":{port:04X}" for port in (server.port, connection.getsockname()[1])]
    for line in Path("/proc/net/tcp").read_text().splitlines():
        fields = line.split()
        if [fields[1][-5:], fields[2][-5:]] == ends:
            unsent, unread = fields[4].split(":")
            return int(unsent, 16), int(unread, 16)
    raise AssertionError("the connection is closed")


def settled(measure: Callable[[], int]) -> int:
    """Return a value above 0 that has not changed for a while."""
    last, same = 0, 0

    def is_settled() -> bool:
        nonlocal last, same
        value = measure()
        last, same = value, same + 1 if value == last else 0
        return value > 0 and same >= SETTLED

    wait_until(is_settled, "an end of the changes")
    return last
