"""Reading a PROXY header in front of a TLS handshake, and not a byte of what follows."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from tornado_status.errors import ProxyHeaderError
from tornado_status.ingress.proxy_protocol import header
from tornado_status.runtime.base_acceptor import Address

if TYPE_CHECKING:
    from tornado_status.ingress.tls_acceptor import TlsAcceptor


class ProxyHeaderReader:
    """One PROXY header under way. The loop waits for it; each read is of the missing bytes only.

    It ends in one call of `proxy_header_read` or `proxy_header_failed`.
    """

    __slots__ = (
        "_acceptor",
        "_deadline",
        "_is_local",
        "_loop",
        "_proxy",
        "_read",
        "_socket",
        "_until",
    )

    def __init__(
        self,
        acceptor: TlsAcceptor,
        loop: asyncio.AbstractEventLoop,
        connection: socket.socket,
        proxy: Address,
        timeout_s: float,
    ) -> None:
        self._acceptor = acceptor
        self._loop = loop
        self._socket = connection
        self._proxy = proxy
        self._read = b""
        self._is_local = False  # a health check, unless a handshake follows
        self._until = loop.time() + timeout_s
        self._deadline = loop.call_later(timeout_s, self._expire)
        loop.add_reader(connection, self._readable)

    def abandon(self) -> None:
        """Close without an answer."""
        self._fail(None)

    def _readable(self) -> None:
        try:
            if self._is_local:
                self._await_handshake()
            elif (address := self._next()) is not None:
                self._succeed(address)
        except ProxyHeaderError as error:
            self._fail(error)
        except BlockingIOError:
            pass
        except OSError:
            self._fail(None)

    def _next(self) -> Address | None:
        """Read on; return the client's address once the header is whole."""
        fixed = self._read[: header.FIXED]
        if len(fixed) < header.FIXED:
            self._receive(header.FIXED - len(fixed))
            header.check_beginning(self._read)
            fixed = self._read
            if len(fixed) < header.FIXED:
                return None
        missing = header.FIXED + header.rest_length(fixed) - len(self._read)
        if missing:
            missing -= self._receive(missing)
        if missing:
            return None
        found = header.parse(fixed, self._read[header.FIXED :])
        if found.client_ip is None or found.client_port is None:
            self._is_local = True
            return None
        return found.client_ip, found.client_port

    def _receive(self, size: int) -> int:
        data = self._socket.recv(size)
        if not data:
            raise ConnectionResetError
        self._read += data
        return len(data)

    def _await_handshake(self) -> None:
        # Most health checks send nothing behind their header: that is no failed handshake.
        if self._socket.recv(1, socket.MSG_PEEK):
            self._succeed(self._proxy)
        else:
            self._fail(None)

    def _expire(self) -> None:
        self._fail(
            None
            if self._is_local
            else ProxyHeaderError("proxy-header-timeout", "the PROXY header took too long")
        )

    def _succeed(self, address: Address) -> None:
        self._finish()
        left_s = max(0.0, self._until - self._loop.time())
        self._acceptor.proxy_header_read(self, self._socket, address, left_s)

    def _fail(self, error: ProxyHeaderError | None) -> None:
        self._finish()
        self._acceptor.proxy_header_failed(self, self._socket, self._proxy, error)

    def _finish(self) -> None:
        self._deadline.cancel()
        self._loop.remove_reader(self._socket)


def looks_proxied(connection: socket.socket) -> bool:
    """Return whether the bytes of a connection that are there begin like a PROXY header."""
    try:
        seen = connection.recv(len(header.SIGNATURE), socket.MSG_PEEK)
    except OSError:
        return False
    return header.looks_like_header(seen)
