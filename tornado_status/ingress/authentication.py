"""Who is at the other end of a connection: read once, right after the handshake.

Not per request: once the peer hangs up, Tornado sets `stream.socket` to None.
"""

from __future__ import annotations

from collections.abc import Callable

from tornado.httputil import HTTPConnection, HTTPServerRequest
from tornado.iostream import SSLIOStream

from tornado_status.ingress.iostream import PeerStream, PushbackStream
from tornado_status.ingress.refusals import Refusals
from tornado_status.ingress.trust import NO_CERTIFICATE, AuthResult, Trust, verified_chain
from tornado_status.model.records import CheckIn, Peer, normalise_ip

CAS_RENEWED = "The trusted CAs have changed: connect anew"


class InFlightCounting:
    """Knows of each stream how many requests are being answered. For the judges to inherit."""

    def begin(self, request: HTTPServerRequest) -> bool:
        """Say that a request is being answered; False where nobody waits for it any more."""
        stream = getattr(request.connection, "stream", None)
        if not isinstance(stream, PushbackStream) or stream.closed():
            return False
        stream.requests += 1
        return True

    def end(self, request: HTTPServerRequest) -> None:
        """Say that it is answered, or nobody waits for it any more."""
        stream = getattr(request.connection, "stream", None)
        if isinstance(stream, PushbackStream):
            stream.requests -= 1


class ConnectionAuthenticator(InFlightCounting):
    """Turns a finished handshake into a `Peer`, and says later whether that still holds."""

    def __init__(self, trust: Trust, refusals: Refusals) -> None:
        self.trust = trust
        self.draining = False
        self._refusals = refusals

    def judge(
        self, stream: SSLIOStream, address: tuple[str, int], bundle: int
    ) -> tuple[Peer, AuthResult | None]:
        """Read the certificate from the stream's socket, before anything awaits.

        `bundle` is that of the CAs that the handshake began with.
        """
        client_ip, client_port = normalise_ip(address[0]), address[1]
        secure = stream.socket
        certificate = secure.getpeercert(binary_form=True)
        if certificate is None:
            return Peer(client_ip, client_port, None, NO_CERTIFICATE), None
        standing = self.trust.standing(certificate, lambda: verified_chain(secure), bundle)
        identity = standing.identity
        if standing.refusal is not None or identity is None:
            return Peer(client_ip, client_port, None, standing.refusal), standing
        check_in = CheckIn(identity.email, client_ip, client_port, identity.issuer, identity.serial)
        return Peer(client_ip, client_port, check_in, None), standing

    def peer_of(self, request: HTTPServerRequest) -> Peer:
        """Return the peer of the connection that a request came over, as it is judged now."""
        connection: HTTPConnection | None = request.connection
        stream = getattr(connection, "stream", None)
        if not isinstance(stream, PeerStream):
            raise TypeError("the request did not come over a check-in connection")
        peer, standing = stream.peer, stream.standing
        if standing is None or peer.check_in is None:
            return peer
        refusal = self.trust.renew(standing)
        if refusal is None:
            return peer
        # Once a connection: the answer ends it.
        self._refusals.on_an_open_connection(refusal, peer.client_ip, peer.check_in.email)
        return Peer(peer.client_ip, peer.client_port, None, refusal)

    def is_last(self, request: HTTPServerRequest) -> bool:
        """Say whether a connection ends with this request.

        So it does where the CAs have changed under it, its certificate is good no more, or the
        server is about to stop.
        """
        if self.draining:
            return True
        stream = getattr(request.connection, "stream", None)
        if not isinstance(stream, PeerStream) or stream.standing is None:
            return False
        lapsed = stream.standing.refusal is not None and stream.peer.check_in is not None
        return lapsed or stream.standing.bundle != self.trust.bundle

    def watch(self, request: HTTPServerRequest) -> Callable[[], str | None]:
        """Return what says, at any time, why the connection of a request has to end; None if not.

        For what outlives its request, and is ended where a reason is returned.
        """
        stream = getattr(request.connection, "stream", None)
        if not isinstance(stream, PeerStream) or stream.standing is None:
            raise TypeError("the request did not come over a connection with a certificate")
        trust, standing, peer = self.trust, stream.standing, stream.peer

        def refusal() -> str | None:
            error = trust.renew(standing)
            if error is not None:
                if peer.check_in is not None:
                    self._refusals.on_an_open_connection(error, peer.client_ip, peer.check_in.email)
                return error.detail
            return None if standing.bundle == trust.bundle else CAS_RENEWED

        return refusal
