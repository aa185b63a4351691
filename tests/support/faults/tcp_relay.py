"""A TCP relay before PostgreSQL's Unix socket: a network that freezes, delays, loses and breaks."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from urllib.parse import parse_qs, urlsplit

from tests.support.harness import LOOPBACK


class Relay:
    """Listens on a port of its own. `upstream` returns the URL of the PostgreSQL behind it."""

    def __init__(self, upstream: Callable[[], str]) -> None:
        self._upstream = upstream
        self._state = threading.Condition()
        self._frozen = False
        self._answers_pass = False
        self._swallowing = False
        self._delay_s = 0.0
        self._closing = False
        self._links: set[_Link] = set()
        self._listening = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self.swallowed = threading.Event()

    @property
    def url(self) -> str:
        parts = urlsplit(self._upstream())
        return f"postgresql://{parts.username}@{LOOPBACK}:{self.port}{parts.path}"

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._state:
            self._closing = True
            self._state.notify_all()
        self.cut()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def freeze(self, *, answers_pass: bool = False) -> None:
        """Hold every byte, both ways unless what is on its way back may pass."""
        with self._state:
            self._frozen = True
            self._answers_pass = answers_pass

    def thaw(self) -> None:
        """Deliver what was held, and go on."""
        with self._state:
            self._frozen = False
            self._state.notify_all()

    def swallow(self) -> None:
        """Deliver what is said to PostgreSQL and lose what it answers, until `cut`."""
        with self._state:
            self.swallowed.clear()
            self._swallowing = True

    def slow(self, delay_s: float) -> None:
        """Delay every packet."""
        self._delay_s = delay_s

    def cut(self) -> None:
        """Break all connections; what was held is lost. New ones are relayed as before."""
        with self._state:
            links, self._links = self._links, set()
            self._swallowing = False
            for link in links:
                link.cut = True
            self._state.notify_all()
        for link in links:
            link.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with self._state:
                self._state.wait_for(lambda: not self._frozen or self._closing)
            link = _Link(client)
            query = parse_qs(urlsplit(self._upstream()).query)
            try:
                link.server.connect(f"{query['host'][0]}/.s.PGSQL.5432")
            except OSError:
                link.close()  # no server is there: the client sees a reset
                continue
            with self._state:
                self._links.add(link)
            for source, target, answers in (
                (link.client, link.server, False),
                (link.server, link.client, True),
            ):
                threading.Thread(
                    target=self._pump, args=(link, source, target, answers), daemon=True
                ).start()

    def _pump(
        self, link: _Link, source: socket.socket, target: socket.socket, answers: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self._delay_s:
                    time.sleep(self._delay_s)
                with self._state:
                    self._state.wait_for(
                        lambda: (
                            not self._frozen
                            or (answers and self._answers_pass)
                            or link.cut
                            or self._closing
                        )
                    )
                    if link.cut or self._closing:
                        break
                    if answers and self._swallowing:
                        self.swallowed.set()
                        continue
                target.sendall(data)
        link.close()


class _Link:
    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.server = socket.socket(socket.AF_UNIX)
        self.cut = False

    def close(self) -> None:
        for sock in (self.client, self.server):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
