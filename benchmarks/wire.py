"""What is sent: bytes and segments of a check-in's TCP connection, and announced datagrams."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass

from benchmarks.errors import BenchmarkError
from benchmarks.identities import Identities
from benchmarks.peers.base import GROUP, LOOPBACK

# Ethernet without a VLAN: header and check sequence, the preamble and the gap between two frames.
ETHERNET = 14 + 4 + 8 + 12
UDP_HEADERS = ETHERNET + 20 + 8  # IPv4
TCP_HEADERS = ETHERNET + 20 + 20 + 12  # with time stamps

CHECK_INS = 5
PAUSE_S = 0.1  # between two: as a client that waits, whose acknowledgement then travels alone
TIMEOUT_S = 10.0
DRAIN_S = 1.0
REQUEST = b"POST /api/client HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"

# struct tcp_info (linux/tcp.h): bytes acknowledged and received, segments sent and received.
_COUNTERS = struct.Struct("=QQII")
_COUNTERS_AT = 120


@dataclass(frozen=True, slots=True)
class Traffic:
    """Of TCP, both ways together: bytes of the streams, and the segments that carried them."""

    bytes: float
    segments: float

    @property
    def on_ethernet(self) -> float:
        """Bytes on Ethernet, with all headers."""
        return self.bytes + self.segments * TCP_HEADERS

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(self.bytes - other.bytes, self.segments - other.segments)


def measure(port: int, identities: Identities) -> dict[str, Traffic]:
    """Return what one `check-in` moves on an open connection, a `handshake`, and a `resumed` one.

    The handshake's goes from the first segment to before the first check-in. Linux only. Raises
    `BenchmarkError`.
    """
    context = ssl.create_default_context(cafile=str(identities.ca))
    context.load_cert_chain(*identities.pair(identities.emails[0]))
    try:
        first, check_in, session = _converse(context, port, None)
        resumed, _, _ = _converse(context, port, session)
    except OSError as error:
        raise BenchmarkError(f"a check-in is not answered: {error}") from error
    return {"check-in": check_in, "handshake": first - check_in, "resumed": resumed - check_in}


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
        _check_in(sock)
        first = _traffic(sock)
        for _ in range(CHECK_INS):
            _check_in(sock)
        every = _traffic(sock) - first
        return first, Traffic(every.bytes / CHECK_INS, every.segments / CHECK_INS), sock.session


def _check_in(sock: ssl.SSLSocket) -> None:
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


def _traffic(sock: ssl.SSLSocket) -> Traffic:
    information = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    sent, received, out, in_ = _COUNTERS.unpack_from(information, _COUNTERS_AT)
    return Traffic(sent + received, out + in_)


class Ear:
    """Counts what is announced to the group for the `with` block, without reading it.

    `datagrams` and `bytes` are without headers.
    """

    def __init__(self, port: int) -> None:
        self.datagrams = 0
        self.bytes = 0
        sock = self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind((GROUP, port))
        membership = socket.inet_aton(GROUP) + socket.inet_aton(LOOPBACK)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        sock.settimeout(0.05)

    def __enter__(self) -> Ear:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        buffer = bytearray(2048)
        deadline = float("inf")
        while time.monotonic() < deadline:
            try:
                self.bytes += self._socket.recv_into(buffer)
                self.datagrams += 1
            except TimeoutError:
                if self._ended.is_set():
                    return
            if self._ended.is_set():  # what has arrived already still counts
                deadline = min(deadline, time.monotonic() + DRAIN_S)
