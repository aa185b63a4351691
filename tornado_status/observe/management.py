"""The management port: serves health, readiness and metrics without authentication."""

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

from tornado_status.config.settings import ManagementSettings
from tornado_status.errors import ConfigError
from tornado_status.observe.health import Check
from tornado_status.runtime import http_timeouts
from tornado_status.runtime.base_acceptor import Acceptor, Address
from tornado_status.runtime.http_timeouts import HttpTimeouts, TimeoutStream
from tornado_status.runtime.listening import bind_address, error_text

MAX_CONNECTIONS = 32  # scrapers and probes are few; they must not use up all descriptors
MAX_HEAD = 8192  # browsers and scrapers send far less
IDLE_S = 60.0  # between two requests; a scraper that comes less often connects again


class ManagementServer:
    """Serves /healthz, /readyz and /metrics, over TLS if it has a `context`.

    `checks` returns all readiness checks; `registry` collects the metrics. A head that takes longer
    than `head_timeout_s` from its first byte on gets `late_answer()`.
    """

    def __init__(
        self,
        settings: ManagementSettings,
        checks: Callable[[], Sequence[Check]],
        registry: CollectorRegistry,
        context: ssl.SSLContext | None,
        head_timeout_s: float,
        late_answer: Callable[[], bytes],
    ) -> None:
        self._settings = settings
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._acceptor = Acceptor(MAX_CONNECTIONS, self._begin, self._make_room)
        self._streams: set[_PlainStream | _SecureStream] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._timeouts = HttpTimeouts(IDLE_S, head_timeout_s, late_answer)
        self._server = HTTPServer(
            Application(
                [
                    (r"/healthz", _Health),
                    (r"/readyz", _Ready, {"checks": checks}),
                    (r"/metrics", _Metrics, {"registry": registry}),
                ],
                log_function=lambda handler: None,
            ),
            idle_connection_timeout=http_timeouts.NEVER_S,
            body_timeout=http_timeouts.BODY_TIMEOUT_S,
            max_header_size=MAX_HEAD,
            max_body_size=http_timeouts.MAX_BODY,
        )

    def use(self, context: ssl.SSLContext | None) -> None:
        """Use another TLS context for new connections."""
        self._context = context

    def listen(self) -> None:
        """Bind the port and start to accept. Raises `ConfigError` if it is taken."""
        settings = self._settings
        try:
            sockets = bind_sockets(settings.port, address=bind_address(settings.host))
        except OSError as error:
            message = error_text("management", settings.host, settings.port, error)
            raise ConfigError(message) from error
        self._acceptor.listen(sockets)
        self._sweep()

    async def close(self) -> None:
        """Stop accepting, and close all connections."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._acceptor.stop_accepting()
        await self._server.close_all_connections()

    def _sweep(self) -> None:
        """Close slow clients, so that they do not use up the connections."""
        for stream in list(self._streams):
            stream.close_if_overdue(self._loop.time())
        self._sweeping = self._loop.call_later(self._timeouts.sweep_every_s, self._sweep)

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for a request, or else for its answer.

        A probe must get in, whoever holds the others.
        """
        min(self._streams, key=lambda s: (s.idle_since() is None, s.quiet_since)).close()
        return True

    def _begin(self, connection: socket.socket, address: Address) -> None:
        connection.setblocking(False)
        if self._context is None:
            self._serve(_PlainStream(connection), address)
            return
        try:
            secure = self._context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        except OSError:
            connection.close()  # the peer is gone already
            return
        self._serve(_SecureStream(secure, ssl_options=self._context), address)

    def _serve(self, stream: _PlainStream | _SecureStream, address: Address) -> None:
        stream.timeouts = self._timeouts
        stream.on_closed = functools.partial(self._closed, stream)
        self._streams.add(stream)
        self._acceptor.count_open(1)
        self._server.handle_stream(stream, address)

    def _closed(self, stream: _PlainStream | _SecureStream) -> None:
        self._streams.discard(stream)
        self._acceptor.count_open(-1)


class _CountedStream(TimeoutStream):
    on_closed: Callable[[], None] | None = None

    def close_fd(self) -> None:
        """See `BaseIOStream.close_fd`. It runs once, however the stream ends."""
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
    """200 while the event loop runs."""

    def get(self) -> None:
        self.write_json(200, {"alive": True})


class _Ready(_Handler):
    """200 if check-ins are recorded, else 503; the reasons are in the body."""

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
