"""Who is at the other end of a connection: read once, right after the handshake.

Not per request: once the peer hangs up, Tornado sets `stream.socket` to None.
"""

from __future__ import annotations

from collections.abc import Callable

from tornado.httputil import HTTPConnection, HTTPServerRequest
from tornado.iostream import SSLIOStream

from tornado_status.checkin import CheckIn, Peer, normalise_ip
from tornado_status.errors import IdentityError
from tornado_status.identity import Identity, identify
from tornado_status.ingress.stream import PeerStream

MAX_REMEMBERED = 4096  # verdicts on certificates: a quarter of a millisecond saved for each device

NO_CERTIFICATE = IdentityError(400, "no-certificate", "No required SSL certificate was sent")


class Judge:
    """Turns a finished handshake into a `Peer`. Remembers verdicts by the certificate's bytes."""

    def __init__(self, identify: Callable[[bytes], Identity] = identify) -> None:
        self._identify = identify
        self._verdicts: dict[bytes, Identity | IdentityError] = {}

    def judge(self, stream: SSLIOStream, address: tuple[str, int]) -> Peer:
        """Read the certificate from the stream's socket, before anything awaits."""
        client_ip, client_port = normalise_ip(address[0]), address[1]
        certificate = stream.socket.getpeercert(binary_form=True)
        verdict = NO_CERTIFICATE if certificate is None else self._verdict(certificate)
        if isinstance(verdict, IdentityError):
            return Peer(client_ip, client_port, None, verdict)
        check_in = CheckIn(verdict.email, client_ip, client_port, verdict.issuer, verdict.serial)
        return Peer(client_ip, client_port, check_in, None)

    def _verdict(self, certificate: bytes) -> Identity | IdentityError:
        verdict = self._verdicts.get(certificate)
        if verdict is None:
            try:
                verdict = self._identify(certificate)
            except IdentityError as error:
                verdict = error
            if len(self._verdicts) >= MAX_REMEMBERED:
                del self._verdicts[next(iter(self._verdicts))]  # the oldest
            self._verdicts[certificate] = verdict
        return verdict


def peer_of(request: HTTPServerRequest) -> Peer:
    """Return the peer of the connection that a request came over."""
    connection: HTTPConnection | None = request.connection
    stream = getattr(connection, "stream", None)
    if not isinstance(stream, PeerStream):
        raise TypeError("the request did not come over a check-in connection")
    return stream.peer
