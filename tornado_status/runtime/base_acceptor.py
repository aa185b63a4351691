"""Accepting TCP connections from listening sockets, up to a limit."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence

import structlog

from tornado_status.runtime.rate_limit import RateLimit
from tornado_status.runtime.waiting import wait_set

Address = tuple[str, int]

ACCEPTS_A_TURN = 64  # then connections that are open already have their turn
# Without it the kernel holds megabytes for a client whose window is shut.
MAX_UNSENT_BYTES = 65_536
PAUSE_S = 0.1  # after running out of descriptors: open connections go on, new ones wait
RETRY_S = 0.5  # while it is full: a connection that was busy may be idle by then

_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Accepts connections and passes them to `on_connection`, unless `is_full`.

    When it is full, `make_room` closes the connection that is needed least, for the one that waits.
    It returns False if all are needed: then connections wait in the kernel's backlog.
    `on_connection` counts a connection with `count_open`, which must be called again when it is
    closed.
    """

    def __init__(
        self,
        max_connections: int,
        on_connection: Callable[[socket.socket, Address], None],
        make_room: Callable[[], bool],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.log = structlog.get_logger()
        self.rate_limit = RateLimit()
        self.max_connections = max_connections
        self._on_connection = on_connection
        self._make_room = make_room
        self._listening: list[socket.socket] = []
        self._port = 0
        self._open = 0
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._full = False
        self._retry: asyncio.TimerHandle | None = None  # while it is full

    @property
    def connections(self) -> int:
        """Those open now."""
        return self._open

    def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Start to accept. The acceptor owns the sockets from here on."""
        for sock in sockets:  # what is accepted inherits it
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)
        self._listening += sockets
        self._port = self._listening[0].getsockname()[1]
        self._watch()

    def stop_accepting(self) -> None:
        """Close the listening sockets. Accepted connections stay open. Idempotent."""
        for sock in self._listening:
            self.loop.remove_reader(sock)
            sock.close()
        self._listening = []
        self._cancel_retry()

    async def wait_closed(self, timeout_s: float) -> bool:
        """Wait until all connections are closed; return False if that takes longer."""
        return await wait_set(self._none_open, timeout_s)

    def is_full(self) -> bool:
        """Return whether no connection may be added now."""
        if self._open < self.max_connections:
            return False
        if (suppressed := self.rate_limit.allow("connections")) is not None:
            self.log.warning(
                "connection limit reached",
                port=self._port,
                limit=self.max_connections,
                suppressed=suppressed,
            )
        return True

    def count_open(self, change: int) -> None:
        """Count a connection that was opened (1) or closed (-1)."""
        self._open += change
        if self._open:
            self._none_open.clear()
        else:
            self._none_open.set()
        if change < 0:
            self.resume_if_room()

    def resume_if_room(self) -> None:
        """Accept again if the acceptor was full and is not any more."""
        if self._full and not self.is_full():
            self.try_again()

    def try_again(self) -> None:
        """Accept again if the acceptor was full, as there may be a connection to close by now."""
        if self._full:
            self._full = False
            self._cancel_retry()
            self._watch()

    def _watch(self) -> None:
        for sock in self._listening:
            self.loop.add_reader(sock, self._accept, sock)

    def _accept(self, listening: socket.socket) -> None:
        for turn in range(ACCEPTS_A_TURN):
            if self.is_full():
                if turn:
                    return  # the loop calls again if another one waits
                if not self._make_room():
                    self._wait_for_room()
                    return
            try:
                connection, address = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    self._pause(listening, error)
                    return
                raise
            self._on_connection(connection, address)

    def _wait_for_room(self) -> None:
        self._full = True
        for sock in self._listening:
            self.loop.remove_reader(sock)
        self._retry = self.loop.call_later(RETRY_S, self.try_again)

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        # The connection stays in the backlog and the socket readable: without a pause the loop
        # would spin.
        if (suppressed := self.rate_limit.allow("descriptors")) is not None:
            self.log.error(
                "cannot accept connections",
                port=self._port,
                reason=error.strerror,
                suppressed=suppressed,
            )
        self.loop.remove_reader(listening)

        def resume() -> None:
            if listening in self._listening and not self._full:
                self.loop.add_reader(listening, self._accept, listening)

        self.loop.call_later(PAUSE_S, resume)
