"""The check-in port: puts the parts of this package together, for TLS here or at a proxy in front.

Check-ins go to the store, all other requests to ordinary HTTP.
"""

from __future__ import annotations

import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import Metric
from tornado.httpserver import HTTPServer
from tornado.web import Application

from tornado_status.config.settings import Settings
from tornado_status.errors import StatusError, StoreError
from tornado_status.ingress.authentication import ConnectionAuthenticator
from tornado_status.ingress.behind_proxy.plain_acceptor import PlainAcceptor
from tornado_status.ingress.behind_proxy.request_authentication import RequestAuthenticator
from tornado_status.ingress.behind_proxy.shared_connection import ClientCache, SharedConnection
from tornado_status.ingress.check_in_acceptor import CheckInAcceptor
from tornado_status.ingress.check_in_service import Answers, CheckInService
from tornado_status.ingress.identity_shares import Shares
from tornado_status.ingress.peer_stream import READ_CHUNK, CheckInStream
from tornado_status.ingress.refusals import Refusals
from tornado_status.ingress.tls_acceptor import TlsAcceptor
from tornado_status.ingress.trust import Trust
from tornado_status.ingress.trusted_proxies import TrustedProxies
from tornado_status.model.check_in_rate_limit import CheckInRateLimit
from tornado_status.model.records import CheckIn, Event
from tornado_status.observe import metrics
from tornado_status.runtime import http_timeouts
from tornado_status.runtime.base_acceptor import Address
from tornado_status.runtime.http_timeouts import HttpTimeouts

# A request's head; browsers and proxies send far less. One less than two reads: at exactly two,
# Tornado would wait for more with the rest inside OpenSSL, out of the loop's sight.
MAX_HEAD = 2 * READ_CHUNK - 1
MAX_PROXIED_HEAD = 64 * 1024  # a certificate and its chain are in it; nothing is inside OpenSSL


class CheckInPort:
    """Serves the check-in port, once `listen` is called.

    `submit` gives a check-in to the store. `application` makes the ordinary HTTP application with
    the authenticator of its peers. `answer_of` makes the whole answer to a check-in that failed,
    `late_answer` that to a late head. `refused` counts refusals by reason.
    """

    def __init__(
        self,
        settings: Settings,
        context: ssl.SSLContext | None,
        trust: Trust,
        submit: Callable[[CheckIn, Callable[[Event | StoreError], None]], None],
        limit: CheckInRateLimit | None,
        answer_of: Callable[[StatusError], bytes],
        late_answer: Callable[[], bytes],
        application: Callable[[ConnectionAuthenticator | RequestAuthenticator], Application],
    ) -> None:
        refusals = Refusals()
        self.refused: Counter[str] = refusals.counts
        proxies = TrustedProxies(settings.ingress.trusted_proxies)
        proxied = settings.ingress.mode == "proxy"
        self._authenticator: ConnectionAuthenticator | RequestAuthenticator
        if proxied:
            of_requests = RequestAuthenticator(trust, settings.ingress, proxies, refusals)
            self._authenticator = of_requests
        else:
            of_connections = ConnectionAuthenticator(trust, refusals)
            self._authenticator = of_connections

        def counted_late_answer() -> bytes:
            refusals.count("head-timeout")
            return late_answer()

        limits = settings.server
        timeouts = HttpTimeouts(limits.idle_timeout_s, limits.header_timeout_s, counted_late_answer)
        self._http = HTTPServer(
            application(self._authenticator),
            ssl_options=context,
            chunk_size=READ_CHUNK,
            max_header_size=MAX_PROXIED_HEAD if proxied else MAX_HEAD,
            max_body_size=http_timeouts.MAX_BODY,
            idle_connection_timeout=http_timeouts.NEVER_S,
            body_timeout=http_timeouts.BODY_TIMEOUT_S,
            protocol=None if proxied else "https",
        )
        check_ins = self._check_ins = CheckInService(
            submit,
            Answers(answer_of),
            self._http.handle_stream,
            timeouts,
            trust,
            limit,
            refusals,
        )
        self._acceptor: CheckInAcceptor
        if proxied:
            clients = ClientCache(of_requests, Shares())

            def serve_shared(stream: CheckInStream, address: Address) -> None:
                SharedConnection(check_ins, stream, address, clients).start()

            self._acceptor = PlainAcceptor(settings.server, proxies, serve_shared, refusals)
        else:
            self._acceptor = TlsAcceptor(
                self._http,
                settings.server,
                of_connections,
                check_ins.serve,
                check_ins.has_kept_clients,
                refusals,
                proxies if settings.ingress.proxy_protocol else None,
            )

        self._acceptor.close_longest_idle = check_ins.close_longest_idle

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
        """Use this context for new handshakes; None if a proxy terminates TLS."""
        self._http.ssl_options = context  # read at each accept

    def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Start to accept. The port owns the sockets from here on."""
        self._acceptor.listen(sockets)

    def drain(self) -> None:
        """Stop accepting; close idle connections now, and all others once they are answered."""
        self._acceptor.stop_accepting()
        self._authenticator.draining = True
        self._check_ins.drain()

    async def wait_closed(self, timeout_s: float) -> bool:
        """Wait until all connections are closed; return False if that takes longer."""
        return await self._acceptor.wait_closed(timeout_s)

    async def close(self) -> None:
        """Close all connections, answered or not."""
        self._check_ins.close()
        await self._http.close_all_connections()
        self._acceptor.close()  # last: it ends those that linger too
