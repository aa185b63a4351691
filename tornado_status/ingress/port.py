"""The check-in port: fits the parts of this package together, for TLS here or at a proxy in front.

Connections come in from bound sockets; check-ins go out to the recorder, everything else to
ordinary HTTP.
"""

from __future__ import annotations

import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import structlog
from prometheus_client.core import Metric
from tornado.httpserver import HTTPServer
from tornado.web import Application

from tornado_status.config import Settings
from tornado_status.errors import StatusError
from tornado_status.ingress.acceptor import Acceptor
from tornado_status.ingress.authentication import ConnectionAuthenticator
from tornado_status.ingress.behind_proxy.plain_acceptor import PlainAcceptor
from tornado_status.ingress.behind_proxy.request_authentication import RequestAuthenticator
from tornado_status.ingress.behind_proxy.shared_connection import ClientCache, SharedConnection
from tornado_status.ingress.connection import Answers, CheckInService, Limit, Recorder
from tornado_status.ingress.handshake import Address
from tornado_status.ingress.iostream import READ_CHUNK, PeerStream, PlainStream, quick_stream_class
from tornado_status.ingress.refusals import Refusals
from tornado_status.ingress.tls_acceptor import TlsAcceptor
from tornado_status.ingress.trust import Trust
from tornado_status.ingress.trusted_proxies import TrustedProxies
from tornado_status.observe import metrics
from tornado_status.runtime import http_timeouts
from tornado_status.runtime.http_timeouts import HttpTimeouts

# A request's head; what browsers and proxies send is far below. One less than two reads: at exactly
# two Tornado would wait for more, with the rest inside OpenSSL, where the loop cannot see it.
MAX_HEAD = 2 * READ_CHUNK - 1
MAX_PROXIED_HEAD = 64 * 1024  # a certificate and its chain are in it; nothing is inside OpenSSL


class CheckInPort:
    """Serves the check-in port, once `listen` is called.

    `application` makes the ordinary HTTP application, told who judges peers; `answer_of` makes the
    whole answer to a check-in that failed, `late` that to a head that took too long. `refused`
    counts connections that were turned away, and identities that were refused, by kind.
    """

    def __init__(
        self,
        settings: Settings,
        context: ssl.SSLContext | None,
        trust: Trust,
        recorder: Recorder,
        limit: Limit | None,
        answer_of: Callable[[StatusError], bytes],
        late: Callable[[], bytes],
        application: Callable[[ConnectionAuthenticator | RequestAuthenticator], Application],
    ) -> None:
        refusals = Refusals()
        self.refused: Counter[str] = refusals.counts
        proxies = TrustedProxies(settings.ingress.trusted_proxies)
        proxied = settings.ingress.mode == "proxy"
        self._judge: ConnectionAuthenticator | RequestAuthenticator
        if proxied:
            judge_of_requests = RequestAuthenticator(trust, settings.ingress, proxies, refusals)
            self._judge = judge_of_requests
        else:
            judge_of_connections = ConnectionAuthenticator(trust, refusals)
            self._judge = judge_of_connections

        def late_and_counted() -> bytes:
            self.refused["head-timeout"] += 1
            return late()

        limits = settings.server
        deadlines = HttpTimeouts(limits.idle_timeout_s, limits.header_timeout_s, late_and_counted)
        self._http = HTTPServer(
            application(self._judge),
            ssl_options=context,
            chunk_size=READ_CHUNK,
            max_header_size=MAX_PROXIED_HEAD if proxied else MAX_HEAD,
            max_body_size=http_timeouts.MAX_BODY,
            idle_connection_timeout=deadlines.both_s,
            body_timeout=http_timeouts.BODY_TIMEOUT_S,
        )
        check_ins = self._check_ins = CheckInService(
            recorder,
            Answers(answer_of),
            self._http.handle_stream,
            deadlines,
            trust,
            limit,
            refusals,
        )
        self._acceptor: Acceptor
        if proxied:
            speakers = ClientCache(judge_of_requests)

            def serve_shared(stream: PlainStream, address: Address) -> None:
                SharedConnection(check_ins, stream, address, speakers).start()

            self._acceptor = PlainAcceptor(settings.server, proxies, serve_shared, self.refused)
        else:
            self._acceptor = TlsAcceptor(
                self._http,
                settings.server,
                judge_of_connections,
                check_ins.serve,
                refusals,
                _stream_class(),
                proxies if settings.ingress.proxy_protocol else None,
            )

    def metrics(self) -> Iterable[Metric]:
        acceptor = self._acceptor
        yield metrics.gauge(
            "connections", "Open connections, with handshakes", acceptor.connections
        )
        yield metrics.gauge("handshakes", "TLS handshakes under way", acceptor.handshakes)
        yield metrics.histogram(
            "handshake_duration_seconds",
            "From a client's first byte to the end of its TLS handshake",
            acceptor.durations,
        )
        yield metrics.counters(
            "connections_refused", "Handshakes and identities refused", ["reason"], self.refused
        )

    def use(self, context: ssl.SSLContext | None) -> None:
        """Shake hands with this context from now on; None where the proxy in front does."""
        self._http.ssl_options = context  # read at each accept

    def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Begin to accept. The sockets are ours from here on."""
        self._acceptor.listen(sockets)

    def drain(self) -> None:
        """Accept nothing more; close what is idle now, and everything else once it is answered."""
        self._acceptor.stop_accepting()
        self._judge.draining = True
        self._check_ins.drain()

    async def wait_closed(self, timeout_s: float) -> bool:
        """Wait until all connections are closed; False where that takes longer."""
        return await self._acceptor.wait_closed(timeout_s)

    async def close(self) -> None:
        """Close all connections, answered or not."""
        self._check_ins.close()
        self._acceptor.close()
        await self._http.close_all_connections()


def _stream_class() -> type[PeerStream]:
    quick = quick_stream_class()
    if quick is None:
        structlog.get_logger().warning("unknown Tornado version, reading through its buffers")
        return PeerStream
    return quick
