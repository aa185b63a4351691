"""A server on loopback that serves one connection after another, in a thread, to do harm."""

from __future__ import annotations

import abc
import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

from tests.support.harness import LOOPBACK, PATIENCE_S


class HostilePeer(abc.ABC):
    """Accepts from when it is entered until it is left; subclasses serve a connection."""

    def __init__(self) -> None:
        self._socket = socket.create_server((LOOPBACK, 0))
        self._stopping = False
        self._thread = threading.Thread(target=self._accept)

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
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
                self.serve(connection)

    @abc.abstractmethod
    def serve(self, connection: socket.socket) -> None:
        """Serve one connection; an `OSError` ends it."""
