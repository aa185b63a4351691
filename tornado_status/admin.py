"""The admin port: is it alive, is it ready, how is it doing. For loopback: no TLS, no names."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from tornado_status.config import Admin
from tornado_status.errors import ConfigError

PREFIX = "tornado_status_"

ACCEPT_PAUSE_S = 0.1  # where it fails, as without descriptors: until then others go on


@dataclass(frozen=True, slots=True)
class Vitals:
    """What the admin port shows, read when it is asked for.

    `problems` are reasons why nothing can be recorded now; empty when ready. `warnings` are what
    should be seen to before it becomes one.
    """

    problems: Callable[[], list[str]]
    warnings: Callable[[], list[str]]
    head: Callable[[], int]
    pending: Callable[[], int]
    refused: Callable[[], Iterable[tuple[str, int]]]
    datagrams_sent: Callable[[], Iterable[tuple[str, int]]]
    datagrams_refused: Callable[[], Iterable[tuple[tuple[str, str], int]]]


class AdminServer:
    """Serves /healthz, /readyz and /metrics over plain HTTP."""

    def __init__(self, settings: Admin, vitals: Vitals) -> None:
        self._settings = settings
        self._sockets: list[socket.socket] = []
        registry = CollectorRegistry()
        registry.register(_VitalsCollector(vitals))
        self._server = HTTPServer(
            Application(
                [
                    (r"/healthz", _Health),
                    (r"/readyz", _Ready, {"vitals": vitals}),
                    (r"/metrics", _Metrics, {"registry": registry}),
                ],
                log_function=lambda handler: None,
            ),
            idle_connection_timeout=60,
            max_header_size=8192,
            max_body_size=4096,
        )

    def listen(self) -> None:
        """Raises `ConfigError` where the port is taken."""
        try:
            sockets = bind_sockets(self._settings.port, address=self._settings.host)
        except OSError as error:
            raise ConfigError(
                f"admin.port: cannot listen on {self._settings.host} port {self._settings.port}: "
                f"{error.strerror}"
            ) from error
        self._sockets = sockets
        for sock in sockets:
            asyncio.get_running_loop().add_reader(sock, self._accept, sock)

    def _accept(self, listening: socket.socket) -> None:
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
        self._server.handle_stream(IOStream(connection), address)

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    async def close(self) -> None:
        sockets, self._sockets = self._sockets, []
        for sock in sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        await self._server.close_all_connections()


class _Health(RequestHandler):
    """200 as long as the loop turns."""

    def get(self) -> None:
        self.set_header("Content-Type", "text/plain")
        self.finish("ok\n")


class _Ready(RequestHandler):
    """200 when check-ins are recorded, else 503; the reasons are in the body."""

    def initialize(self, vitals: Vitals) -> None:
        self._vitals = vitals

    def get(self) -> None:
        problems = self._vitals.problems()
        self.set_status(503 if problems else 200)
        self.set_header("Content-Type", "application/json")
        state = {
            "ready": not problems,
            "problems": problems,
            "warnings": self._vitals.warnings(),
        }
        self.finish(json.dumps(state) + "\n")


class _Metrics(RequestHandler):
    def initialize(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def get(self) -> None:
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        self.finish(generate_latest(self._registry))


class _VitalsCollector(Collector):
    def __init__(self, vitals: Vitals) -> None:
        self._vitals = vitals

    def collect(self) -> Iterable[Metric]:
        vitals = self._vitals
        yield GaugeMetricFamily(
            PREFIX + "head", "Largest number known to be committed", value=vitals.head()
        )
        yield GaugeMetricFamily(
            PREFIX + "commit_queue_length", "Check-ins waiting for a commit", value=vitals.pending()
        )
        yield GaugeMetricFamily(
            PREFIX + "ready", "1 when check-ins are recorded", value=float(not vitals.problems())
        )
        refused = CounterMetricFamily(
            PREFIX + "connections_refused", "Handshakes and identities refused", labels=["reason"]
        )
        for reason, count in vitals.refused():
            refused.add_metric([reason], count)
        yield refused
        sent = CounterMetricFamily(
            PREFIX + "datagrams_sent", "Datagrams handed to the kernel", labels=["target"]
        )
        for target, count in vitals.datagrams_sent():
            sent.add_metric([target], count)
        yield sent
        errors = CounterMetricFamily(
            PREFIX + "announce_errors", "Datagrams not sent", labels=["target", "errno"]
        )
        for (target, name), count in vitals.datagrams_refused():
            errors.add_metric([target, name], count)
        yield errors
