"""Who sent a request that a TLS-terminating proxy passes on: judged for each request.

One connection of the proxy carries everybody's requests, so nothing is kept by connection. What is
kept is the verdict on each certificate, by the fingerprint of the header that it came in.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.serialization import Encoding
from tornado.httputil import HTTPServerRequest

from tornado_status.config import IngressSettings
from tornado_status.errors import ForwardedError, IdentityError
from tornado_status.ingress.authentication import InFlightCounting
from tornado_status.ingress.behind_proxy.chain_verifier import ChainVerifier
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

MAX_REMEMBERED = 20_000  # verdicts of 2 to 4 KB; one that is forgotten costs a verification


@dataclass(frozen=True, slots=True)
class _Known:
    standing: AuthResult
    chain_until: float  # when the first certificate of the chain expires


class RequestAuthenticator(InFlightCounting):
    """Reads certificate and address from the headers of trusted proxies, and judges them.

    While `draining` every answer ends its connection.
    """

    def __init__(
        self,
        trust: Trust,
        settings: IngressSettings,
        proxies: TrustedProxies,
        refusals: Refusals,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.draining = False
        self._trust = trust
        self._certificate_header = settings.certificate_header
        self._address_header = settings.address_header
        self._proxies = proxies
        self._refusals = refusals
        self._clock = clock
        self._known: dict[bytes, _Known] = {}
        self._verifier: ChainVerifier | None = None
        self._bundle = 0

    def peer_of(self, request: HTTPServerRequest) -> Peer:
        """Return whom the proxy speaks for, as judged now."""
        client_ip = normalise_ip(request.remote_ip or "")  # the proxy's, as long as nothing better
        lines = request.headers.get_list
        try:
            client_ip, _ = client_address(self._address_header, lines, self._proxies)
            check_in, _, _ = self.check_in_of(lines)
            return Peer(client_ip, check_in.client_port, check_in, None)
        except ForwardedError as error:
            # The sentence is for the operator: it is the proxy that is set up wrongly.
            refusal = IdentityError(400, error.reason, f"The proxy in front: {error}")
        except IdentityError as error:
            refusal = error
        self._refusals.at_the_start(refusal, client_ip)
        return Peer(client_ip, 0, None, refusal)

    def check_in_of(self, lines: Lines) -> tuple[CheckIn, AuthResult, float]:
        """Return what a request says, the verdict, and until when (epoch) its chain is good.

        Raises `IdentityError` and `ForwardedError`.
        """
        client_ip, client_port = client_address(self._address_header, lines, self._proxies)
        texts = certificate_lines(self._certificate_header, lines)
        if not texts:
            raise NO_CERTIFICATE
        known = self._judge(texts)
        identity = known.standing.identity
        if known.standing.refusal is not None or identity is None:
            raise known.standing.refusal or NO_CERTIFICATE
        check_in = CheckIn(identity.email, client_ip, client_port, identity.issuer, identity.serial)
        return check_in, known.standing, known.chain_until

    def is_last(self, request: HTTPServerRequest) -> bool:
        """Say whether a connection ends with this request."""
        return self.draining

    def watch(self, request: HTTPServerRequest) -> Callable[[], str | None]:
        """Return what says, at any time, why what a request began has to end; None if it need not.

        For what outlives its request.
        """
        lines = request.headers.get_list
        texts = certificate_lines(self._certificate_header, lines)
        known = self._judge(texts)
        who = self.check_in_of(lines)[0]

        def refusal() -> str | None:
            nonlocal known
            stale = known.standing.bundle != self._trust.bundle
            lapsed: IdentityError | None = None
            if stale or self._clock() > known.chain_until:
                try:
                    known = self._judge(texts)
                except IdentityError as error:
                    lapsed = error
                except ForwardedError as error:
                    return str(error)
            if lapsed is None:
                lapsed = self._trust.renew(known.standing)
            if lapsed is None:
                return None
            self._refusals.on_an_open_connection(lapsed, who.client_ip, who.email)
            return lapsed.detail

        return refusal

    def _judge(self, texts: Sequence[str]) -> _Known:
        """Return the verdict on a certificate. Raises `IdentityError`, `ForwardedError`."""
        if self._verifier is None or self._bundle != self._trust.bundle:
            self._bundle = self._trust.bundle
            self._verifier = ChainVerifier(self._trust.anchors.cas)
            self._known.clear()  # their chains were verified under the old CAs
        fingerprint = hashlib.sha256("\n".join(texts).encode("latin1", "replace")).digest()
        known = self._known.get(fingerprint)
        now = self._clock()
        if known is not None and now <= known.chain_until:
            self._trust.renew(known.standing)
            return known
        forwarded = read_certificate(self._certificate_header, texts)
        chain = self._verifier.verify(forwarded.certificate, forwarded.chain, now)
        standing = self._trust.judge([ca.public_bytes(Encoding.DER) for ca in chain])
        if len(self._known) >= MAX_REMEMBERED:
            del self._known[next(iter(self._known))]  # the oldest
        chain_until = min(ca.not_valid_after_utc.timestamp() for ca in chain)
        known = self._known[fingerprint] = _Known(standing, chain_until)
        return known
