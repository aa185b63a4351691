"""Bytes and segments of a check-in's TCP connection, as the kernel counts them (Linux)."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from typing import NamedTuple

from benchmarks.contender import LOOPBACK
from benchmarks.identities import Identities
from benchmarks.programs import BenchmarkError

# Ethernet without a VLAN: header, check sequence, 8 bytes before the header, the gap of two frames.
ETHERNET = 14 + 4 + 8 + 12
UDP_HEADERS = ETHERNET + 20 + 8  # IPv4
TCP_HEADERS = ETHERNET + 20 + 20 + 12  # with time stamps

CHECK_INS = 5
PAUSE_S = 0.1  # between two: as a client that waits, whose acknowledgement then travels alone
TIMEOUT_S = 10.0
REQUEST = b"POST /api/client HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"

# struct tcp_info (linux/tcp.h): bytes acknowledged and received, segments sent and received.
_COUNTERS, _COUNTERS_AT = struct.Struct("=QQII"), 120


class Traffic(NamedTuple):
    """Of TCP, both ways together: bytes of the data, and the segments that carried them."""

    bytes: float
    segments: float

    @property
    def on_ethernet(self) -> float:
        """Bytes on Ethernet, with all headers."""
        return self.bytes + self.segments * TCP_HEADERS

    def less(self, other: Traffic) -> Traffic:
        return Traffic(self.bytes - other.bytes, self.segments - other.segments)


def measure(port: int, identities: Identities) -> dict[str, Traffic]:
    """Return the traffic of one `check-in` on an open connection, a `handshake`, a `resumed` one.

    The handshake's goes from the first segment to before the first check-in. Raises
    `BenchmarkError`.
    """
    context = identities.client_context(identities.emails[0])
    try:
        first, check_in, session = _converse(context, port, None)
        resumed, _, _ = _converse(context, port, session)
    except OSError as error:
        raise BenchmarkError(f"a check-in is not answered: {error}") from error
    return {
        "check-in": check_in,
        "handshake": first.less(check_in),
        "resumed": resumed.less(check_in),
    }


def _converse(
    context: ssl.SSLContext, port: int, session: ssl.SSLSession | None
) -> tuple[Traffic, Traffic, ssl.SSLSession | None]:
    """Return the traffic up to the first answer, that of each later check-in, and a ticket."""
    with (
        socket.create_connection((LOOPBACK, port), TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost", session=session) as sock,
    ):
        if session is not None and not sock.session_reused:
            raise BenchmarkError("a session is not resumed")
        first = _check_in(sock)
        for _ in range(CHECK_INS):
            last = _check_in(sock)
        every = Traffic(*(total / CHECK_INS for total in last.less(first)))
        return first, every, sock.session


def _check_in(sock: ssl.SSLSocket) -> Traffic:
    """Check in, and return the traffic of the connection until now."""
    sock.sendall(REQUEST)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        part = sock.recv(4096)
        if not part:
            raise BenchmarkError("the server closed the connection")
        answer += part
    if not answer.startswith(b"HTTP/1.1 204 "):
        raise BenchmarkError(f"a check-in was answered {answer[:20]!r}")
    time.sleep(PAUSE_S)
    information = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    sent, received, out, in_ = _COUNTERS.unpack_from(information, _COUNTERS_AT)
    return Traffic(sent + received, out + in_)
