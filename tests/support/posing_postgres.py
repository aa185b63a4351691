"""A program that poses as a PostgreSQL, and one that gives a real one a certificate."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, urlsplit

from tests.support.harness import LOOPBACK, PATIENCE_S

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
CLEARTEXT_PASSWORD = b"R" + struct.pack("!ii", 8, 3)


class Listening:
    """Serves each connection in a thread of its own. `port` is its port on loopback."""

    def __init__(self) -> None:
        self._socket = socket.create_server((LOOPBACK, 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Listening:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        with connection, contextlib.suppress(OSError):
            self.serve(connection)

    def serve(self, connection: socket.socket) -> None:
        raise NotImplementedError


class PosingPostgres(Listening):
    """Offers no TLS, and asks for the password in clear. `passwords` has what it got."""

    def __init__(self) -> None:
        self.passwords: list[str] = []
        self.asked = threading.Event()
        super().__init__()

    def __enter__(self) -> PosingPostgres:
        return self

    def serve(self, connection: socket.socket) -> None:
        start = connection.recv(8192)
        if start == SSL_REQUEST:
            self.asked.set()
            connection.sendall(b"N")
            start = connection.recv(8192)
        if start:
            self.asked.set()
            connection.sendall(CLEARTEXT_PASSWORD)
            answer = connection.recv(8192)
            if answer.startswith(b"p"):
                self.passwords.append(answer[5:-1].decode())


class TlsPostgres(Listening):
    """Terminates TLS in front of the PostgreSQL at `url`, which has only a Unix socket."""

    def __init__(self, url: str, certs: Path) -> None:
        self._path = f"{parse_qs(urlsplit(url).query)['host'][0]}/.s.PGSQL.5432"
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certs / "server.crt", certs / "server.key")
        super().__init__()

    def __enter__(self) -> TlsPostgres:
        return self

    def serve(self, connection: socket.socket) -> None:
        if connection.recv(8) != SSL_REQUEST:
            return
        connection.sendall(b"S")
        with (
            self._context.wrap_socket(connection, server_side=True) as secured,
            socket.socket(socket.AF_UNIX) as upstream,
        ):
            upstream.connect(self._path)
            # TLS on one socket cannot be read and written by two threads: PostgreSQL answers each
            # message, and NOTIFY may wait for the next one.
            secured.settimeout(0.01)
            upstream.settimeout(0.01)
            while _pass_on(secured, upstream) and _pass_on(upstream, secured):
                pass


def _pass_on(source: socket.socket, target: socket.socket) -> bool:
    """Return whether the source is still open."""
    try:
        data = source.recv(65536)
    except TimeoutError:
        return True
    if data:
        target.sendall(data)
    return bool(data)
