"""Authenticating the peer of a TLS connection: its certificate is read once, after the handshake.

Not per request: once the peer hangs up, Tornado sets `stream.socket` to None.
"""

from __future__ import annotations

from collections.abc import Callable

from tornado.httputil import HTTPConnection, HTTPServerRequest

from tornado_status.ingress.peer_stream import CheckInStream, PeerStream
from tornado_status.ingress.refusals import Refusals
from tornado_status.ingress.trust import NO_CERTIFICATE, AuthResult, Trust, verified_chain
from tornado_status.model.records import CheckIn, Peer, normalise_ip

CAS_RENEWED = "The trusted CAs have changed: connect anew"


class InFlightCounting:
    """Counts the requests of each stream that are being answered. A mixin of authenticators."""

    def begin(self, request: HTTPServerRequest) -> bool:
        """Count a request that is being answered; return False if its connection has ended."""
        stream = getattr(request.connection, "stream", None)
        if not isinstance(stream, CheckInStream) or stream.closed():
            return False
        stream.requests += 1
        return True

    def end(self, request: HTTPServerRequest) -> None:
        """Count a request as answered, or as abandoned by its client."""
        stream = getattr(request.connection, "stream", None)
        if isinstance(stream, CheckInStream):
            stream.requests -= 1


class ConnectionAuthenticator(InFlightCounting):
    """Turns a finished handshake into a `Peer`, and checks later whether it is still accepted."""

    def __init__(self, trust: Trust, refusals: Refusals) -> None:
        self.trust = trust
        self.draining = False
        self._refusals = refusals

    def authenticate(
        self, stream: PeerStream, address: tuple[str, int], bundle: int
    ) -> tuple[Peer, AuthResult | None]:
        """Read the certificate from the stream's socket, before anything awaits.

        `bundle` is that of the CAs that the handshake began with.
        """
        client_ip, client_port = normalise_ip(address[0]), address[1]
        secure = stream.socket
        certificate = secure.getpeercert(binary_form=True)
        if certificate is None:
            return Peer(client_ip, client_port, None, NO_CERTIFICATE), None
        auth = self.trust.authenticate(certificate, lambda: verified_chain(secure), bundle)
        identity = auth.identity
        if auth.refusal is not None or identity is None:
            return Peer(client_ip, client_port, None, auth.refusal), auth
        check_in = CheckIn(identity.email, client_ip, client_port, identity.issuer, identity.serial)
        return Peer(client_ip, client_port, check_in, None), auth

    def peer_of(self, request: HTTPServerRequest) -> Peer:
        """Return the peer of the connection that a request came over, checked now."""
        connection: HTTPConnection | None = request.connection
        stream = getattr(connection, "stream", None)
        if not isinstance(stream, PeerStream):
            raise TypeError("the request did not come over a check-in connection")
        peer, auth = stream.peer, stream.auth
        if auth is None or peer.check_in is None:
            return peer
        refusal = self.trust.check(auth)
        if refusal is None:
            return peer
        # Counted once a connection: the answer ends it.
        self._refusals.on_an_open_connection(refusal, peer.client_ip, peer.check_in.email)
        return Peer(peer.client_ip, peer.client_port, None, refusal)

    def is_last(self, request: HTTPServerRequest) -> bool:
        """Return whether the answer to this request ends its connection.

        It does if the CAs have changed, the certificate is no longer accepted, or the server is
        shutting down.
        """
        if self.draining:
            return True
        stream = getattr(request.connection, "stream", None)
        if not isinstance(stream, PeerStream) or stream.auth is None:
            return False
        lapsed = stream.auth.refusal is not None and stream.peer.check_in is not None
        return lapsed or not self.trust.chain_holds(stream.auth)

    def watch(self, request: HTTPServerRequest) -> Callable[[], str | None]:
        """Return a function that says why the connection of a request has to end, None if not.

        For a live stream, which outlives its request and ends when a reason is returned.
        """
        stream = getattr(request.connection, "stream", None)
        if not isinstance(stream, PeerStream) or stream.auth is None:
            raise TypeError("the request did not come over a connection with a certificate")
        auth, peer = stream.auth, stream.peer

        def refusal() -> str | None:
            lapsed = self.trust.check(auth)
            if lapsed is not None:
                if peer.check_in is not None:
                    email = peer.check_in.email
                    self._refusals.on_an_open_connection(lapsed, peer.client_ip, email)
                return lapsed.detail
            return None if self.trust.chain_holds(auth) else CAS_RENEWED

        return refusal
