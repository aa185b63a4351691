"""Authenticating each request that a TLS-terminating proxy passes on.

One connection of the proxy carries the requests of all clients, so no result belongs to a
connection. Results are cached by the fingerprint of the header that the certificate came in.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence

from tornado.httputil import HTTPServerRequest

from tornado_status.config.settings import IngressSettings
from tornado_status.errors import ForwardedError, IdentityError, Refusal
from tornado_status.ingress.authentication import InFlightCounting
from tornado_status.ingress.behind_proxy.forwarded_headers import (
    Lines,
    certificate_lines,
    client_address,
    read_certificate,
)
from tornado_status.ingress.refusals import Refusals
from tornado_status.ingress.trust import NO_CERTIFICATE, AuthResult, Trust
from tornado_status.ingress.trusted_proxies import TrustedProxies
from tornado_status.model.records import CheckIn, Peer, normalise_ip
from tornado_status.runtime.bounded_dict import BoundedDict

MAX_REMEMBERED = 20_000  # results of 2 to 4 KB; an evicted one costs a verification
# Refusals, which evict no result: a client that goes on costs one verification in so many seconds.
MAX_REFUSED = 1000
REFUSED_S = 1.0


class RequestAuthenticator(InFlightCounting):
    """Reads the certificate and the address from the headers of trusted proxies.

    While `draining`, every answer ends its connection.
    """

    def __init__(
        self,
        trust: Trust,
        settings: IngressSettings,
        proxies: TrustedProxies,
        refusals: Refusals,
    ) -> None:
        self.trust = trust
        self.draining = False
        self._certificate_header = settings.certificate_header
        self._address_header = settings.address_header
        self._proxies = proxies
        self._refusals = refusals
        self._results: BoundedDict[bytes, AuthResult] = BoundedDict(MAX_REMEMBERED)
        self._refused: BoundedDict[bytes, tuple[AuthResult, float]] = BoundedDict(MAX_REFUSED)

    def peer_of(self, request: HTTPServerRequest) -> Peer:
        """Return the client that the proxy passes a request on for, checked now."""
        client_ip = normalise_ip(request.remote_ip or "")  # the proxy's, until the header is read
        lines = request.headers.get_list
        try:
            client_ip, _ = client_address(self._address_header, lines, self._proxies)
            check_in, _ = self.check_in_of(lines)
            return Peer(client_ip, check_in.client_port, check_in, None)
        except ForwardedError as error:
            # The sentence is for the operator: the proxy is set up wrongly.
            refusal = Refusal(400, error.reason, f"The proxy in front: {error}")
        except IdentityError as error:
            refusal = error.refusal
        self._refusals.at_the_start(refusal, client_ip)
        return Peer(client_ip, 0, None, refusal)

    def check_in_of(self, lines: Lines) -> tuple[CheckIn, AuthResult]:
        """Return the check-in that a request's headers give, and the result of its certificate.

        Raises `IdentityError` and `ForwardedError`.
        """
        client_ip, client_port = client_address(self._address_header, lines, self._proxies)
        texts = certificate_lines(self._certificate_header, lines)
        if not texts:
            raise IdentityError(*NO_CERTIFICATE)
        auth = self._authenticate(texts)
        identity = auth.identity
        if auth.refusal is not None or identity is None:
            raise IdentityError(*(auth.refusal or NO_CERTIFICATE))
        check_in = CheckIn(identity.email, client_ip, client_port, identity.issuer, identity.serial)
        return check_in, auth

    def is_last(self, request: HTTPServerRequest) -> bool:
        """Return whether the answer to this request ends its connection."""
        return self.draining

    def watch(self, request: HTTPServerRequest) -> Callable[[], str | None]:
        """Return a function that says why a live stream has to end, None if it need not."""
        lines = request.headers.get_list
        texts = certificate_lines(self._certificate_header, lines)
        auth = self._authenticate(texts)
        client = self.check_in_of(lines)[0]

        def refusal() -> str | None:
            nonlocal auth
            if not self.trust.chain_holds(auth):
                auth = self._authenticate(texts)
            lapsed = self.trust.check(auth)
            if lapsed is None:
                return None
            self._refusals.on_an_open_connection(lapsed, client.client_ip, client.email)
            return lapsed.detail

        return refusal

    def _authenticate(self, texts: Sequence[str]) -> AuthResult:
        """Return the result for a certificate. Raises `ForwardedError`."""
        fingerprint = hashlib.sha256("\n".join(texts).encode("latin1", "replace")).digest()
        auth = self._results.get(fingerprint)
        if auth is not None and self.trust.chain_holds(auth) and self.trust.check(auth) is None:
            return auth
        now = time.monotonic()
        auth, until = self._refused.get(fingerprint, (None, 0.0))
        if auth is not None and auth.generation == self.trust.generation and now < until:
            return auth
        forwarded = read_certificate(self._certificate_header, texts)
        auth = self.trust.verify([forwarded.certificate, *forwarded.chain])
        if auth.refusal is None:
            self._results[fingerprint] = auth
        else:
            self._refused[fingerprint] = auth, now + REFUSED_S
        return auth
