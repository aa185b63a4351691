"""Reading a PROXY header in front of a TLS handshake, and not a byte of what follows."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from tornado_status.errors import ProxyHeaderError
from tornado_status.ingress.handshake import Address
from tornado_status.ingress.proxy_protocol import header


class Owner(Protocol):
    """Who is told how a header ends. Each ends in one call of one of these.

    `announced`: whose connection it is, and how many seconds of its time are left. `unannounced`:
    why not, or None where there is nothing to tell: a health check, or a peer that is gone.
    """

    def announced(
        self,
        preamble: ProxyHeaderReader,
        connection: socket.socket,
        address: Address,
        left_s: float,
    ) -> None: ...

    def unannounced(
        self,
        preamble: ProxyHeaderReader,
        connection: socket.socket,
        proxy: Address,
        error: ProxyHeaderError | None,
    ) -> None: ...


class ProxyHeaderReader:
    """One PROXY header under way. The loop waits for it; reads are of exactly what is missing."""

    __slots__ = (
        "_deadline",
        "_is_local",
        "_loop",
        "_owner",
        "_proxy",
        "_read",
        "_socket",
        "_until",
    )

    def __init__(
        self,
        owner: Owner,
        loop: asyncio.AbstractEventLoop,
        connection: socket.socket,
        proxy: Address,
        timeout_s: float,
    ) -> None:
        self._owner = owner
        self._loop = loop
        self._socket = connection
        self._proxy = proxy
        self._read = b""
        self._is_local = False  # a health check: what comes next decides
        self._until = loop.time() + timeout_s
        self._deadline = loop.call_later(timeout_s, self._expire)
        loop.add_reader(connection, self._readable)

    def abandon(self) -> None:
        """Close without a word."""
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
        announced = header.parse(fixed, self._read[header.FIXED :])
        if announced.client_ip is None or announced.client_port is None:
            self._is_local = True
            return None
        return announced.client_ip, announced.client_port

    def _receive(self, size: int) -> int:
        data = self._socket.recv(size)
        if not data:
            raise ConnectionResetError
        self._read += data
        return len(data)

    def _await_handshake(self) -> None:
        # A health check says that it is one, and mostly nothing else: no failed handshake, then.
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
        self._owner.announced(self, self._socket, address, left_s)

    def _fail(self, error: ProxyHeaderError | None) -> None:
        self._finish()
        self._owner.unannounced(self, self._socket, self._proxy, error)

    def _finish(self) -> None:
        self._deadline.cancel()
        self._loop.remove_reader(self._socket)


def looks_proxied(connection: socket.socket) -> bool:
    """Say whether a connection begins like a PROXY header, as far as can be seen now."""
    try:
        seen = connection.recv(len(header.SIGNATURE), socket.MSG_PEEK)
    except OSError:
        return False
    return header.begins_like_one(seen)
