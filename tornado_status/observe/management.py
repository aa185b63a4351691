"""The management port: serves health, readiness and metrics to everybody who reaches it."""

from __future__ import annotations

import asyncio
import functools
import json
import socket
import ssl
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream, SSLIOStream
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from tornado_status.config import ManagementSettings
from tornado_status.errors import ConfigError
from tornado_status.observe.health import Check
from tornado_status.runtime import http_timeouts
from tornado_status.runtime.http_timeouts import HttpTimeouts, TimeoutStream

MAX_CONNECTIONS = 32  # scrapers and probes are few; they are not to take all descriptors
MAX_HEAD = 8192  # what browsers and scrapers send is far below
MAX_BODY = 4096  # nothing that is asked for here has one
IDLE_S = 60.0  # between two requests: who scrapes less often connects anew
SWEEP_EVERY_S = 1.0  # looks for who takes nothing of an answer

ACCEPT_PAUSE_S = 0.1  # where it fails, as without descriptors: until then others go on


class ManagementServer:
    """Serves /healthz, /readyz and /metrics, over TLS where it has a `context`.

    `checks` looks at everything that readiness is about; `registry` collects the metrics.
    A head has `head_timeout_s` from its first byte on, or gets `late()`.
    """

    def __init__(
        self,
        settings: ManagementSettings,
        checks: Callable[[], Sequence[Check]],
        registry: CollectorRegistry,
        context: ssl.SSLContext | None,
        head_timeout_s: float,
        late: Callable[[], bytes],
    ) -> None:
        self._settings = settings
        self._context = context
        self._sockets: list[socket.socket] = []
        self._streams: set[_PlainStream | _SecureStream] = set()
        self._full = False
        self._sweeping: asyncio.TimerHandle | None = None
        self._deadlines = HttpTimeouts(IDLE_S, head_timeout_s, late)
        self._server = HTTPServer(
            Application(
                [
                    (r"/healthz", _Health),
                    (r"/readyz", _Ready, {"checks": checks}),
                    (r"/metrics", _Metrics, {"registry": registry}),
                ],
                log_function=lambda handler: None,
            ),
            idle_connection_timeout=self._deadlines.both_s,
            body_timeout=http_timeouts.BODY_TIMEOUT_S,
            max_header_size=MAX_HEAD,
            max_body_size=MAX_BODY,
        )

    def use(self, context: ssl.SSLContext | None) -> None:
        """Put another TLS context in force, for connections from now on."""
        self._context = context

    def listen(self) -> None:
        """Raises `ConfigError` where the port is taken."""
        try:
            sockets = bind_sockets(self._settings.port, address=self._settings.host)
        except OSError as error:
            raise ConfigError(
                f"management.port: cannot listen on {self._settings.host} port "
                f"{self._settings.port}: {error.strerror}"
            ) from error
        self._sockets = sockets
        for sock in sockets:
            asyncio.get_running_loop().add_reader(sock, self._accept, sock)
        self._sweep()

    def _sweep(self) -> None:
        """Close those who do not take what they have asked for: they are not to fill the port."""
        loop = asyncio.get_running_loop()
        for stream in list(self._streams):
            if stream.is_stalled(loop.time()):
                stream.close()
        self._sweeping = loop.call_later(SWEEP_EVERY_S, self._sweep)

    def _accept(self, listening: socket.socket) -> None:
        if len(self._streams) >= MAX_CONNECTIONS:
            self._full = True
            for sock in self._sockets:
                asyncio.get_running_loop().remove_reader(sock)
            return
        # Not Tornado's: without descriptors that would be called again at once, and for ever.
        try:
            connection, address = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            loop = asyncio.get_running_loop()
            loop.remove_reader(listening)
            loop.call_later(ACCEPT_PAUSE_S, self._resume, listening)
            return
        connection.setblocking(False)
        if self._context is None:
            self._serve(_PlainStream(connection), address)
            return
        try:
            secure = self._context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        except OSError:
            connection.close()  # gone before we looked
            return
        self._serve(_SecureStream(secure, ssl_options=self._context), address)

    def _serve(self, stream: _PlainStream | _SecureStream, address: tuple[str, int]) -> None:
        stream.deadlines = self._deadlines
        stream.on_closed = functools.partial(self._closed, stream)
        self._streams.add(stream)
        self._server.handle_stream(stream, address)

    def _closed(self, stream: _PlainStream | _SecureStream) -> None:
        self._streams.discard(stream)
        if self._full:
            self._full = False
            for listening in self._sockets:
                self._resume(listening)

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._sockets and not self._full:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    async def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        sockets, self._sockets = self._sockets, []
        for sock in sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        await self._server.close_all_connections()


class _CountedStream(TimeoutStream):
    on_closed: Callable[[], None] | None = None

    def close_fd(self) -> None:
        """See `BaseIOStream.close_fd`: runs once, however the stream ends."""
        super().close_fd()
        on_closed, self.on_closed = self.on_closed, None
        if on_closed is not None:
            on_closed()


class _PlainStream(_CountedStream, IOStream):
    pass


class _SecureStream(_CountedStream, SSLIOStream):
    pass


class _Handler(RequestHandler):
    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("Cache-Control", "no-store")

    def write_json(self, status: int, state: dict[str, object]) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(state) + "\n")


class _Health(_Handler):
    """200 as long as the loop turns."""

    def get(self) -> None:
        self.write_json(200, {"alive": True})


class _Ready(_Handler):
    """200 when check-ins are recorded, else 503; the reasons are in the body."""

    def initialize(self, checks: Callable[[], Sequence[Check]]) -> None:
        self._checks = checks

    def get(self) -> None:
        checks = self._checks()
        problems = [text for check in checks for text in check.problems.values()]
        self.write_json(
            503 if problems else 200,
            {
                "ready": not problems,
                "problems": problems,
                "warnings": [text for check in checks for text in check.warnings.values()],
                "checks": {
                    check.name: {"status": check.status, "reasons": check.reasons}
                    for check in checks
                },
            },
        )


class _Metrics(_Handler):
    def initialize(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def get(self) -> None:
        encode, content_type = choose_encoder(self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", content_type)
        self.finish(encode(self._registry))
