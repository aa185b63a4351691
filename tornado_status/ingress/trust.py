"""Which clients the server trusts now: CAs and CRLs in force, and the results of verification.

A result belongs to a certificate and to a trust generation. It is made at the handshake, resumed or
not, and made again once the generation has moved or its time is over.
"""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from tornado_status.errors import IdentityError, Refusal
from tornado_status.pki.authorities import CertificateAuthority, read_authority
from tornado_status.pki.certificates import quietly
from tornado_status.pki.chain_paths import CertificationPath, find_paths
from tornado_status.pki.identity import Identity, identify
from tornado_status.pki.name_constraints import email_name
from tornado_status.pki.trust_anchors import Anchors, der
from tornado_status.runtime.bounded_dict import BoundedDict

MAX_REMEMBERED = 4096  # results by certificate: each saves half a millisecond for a device

NO_CERTIFICATE = Refusal(400, "no-certificate", "No required SSL certificate was sent")
CA_CHANGED = Refusal(403, "ca-changed", "The certificate's CA is not trusted any more")
UNKNOWN_CHAIN = Refusal(
    403, "unknown-chain", "The certificate's CA is not known in this session: connect anew"
)
UNTRUSTED = Refusal(
    403, "untrusted-chain", "The certificate does not lead to a CA that is trusted here"
)


@dataclass(frozen=True, slots=True)
class ChainPaths:
    """The paths from a certificate up to the CAs of one bundle."""

    bundle: int
    paths: tuple[CertificationPath, ...]


@dataclass(slots=True)
class AuthResult:
    """The result of verifying one certificate: shared by its connections, updated in place.

    `chain` is in DER, the certificate first, without the CAs that are anchors. It is the
    certificate alone if the session is `resumed`. The result holds for `generation` of the trust
    and until `valid_until`, in seconds since the epoch; a refusal is in the past at once.
    """

    chain: tuple[bytes, ...]
    bundle: int
    generation: int = 0
    valid_until: float = 0.0
    identity: Identity | None = None
    refusal: Refusal | None = None
    chain_paths: ChainPaths | None = None
    resumed: bool = False


class Trust:
    """The trust anchors in force, and the results of verification under them.

    `generation` moves with every reload, `bundle` only when the CAs themselves change.
    """

    def __init__(
        self,
        anchors: Anchors,
        on_expired_crl: Literal["warn", "refuse"] = "warn",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.generation = 1
        self.bundle = 1
        self._on_expired_crl = on_expired_crl
        self._clock = clock
        self._results: BoundedDict[bytes, AuthResult] = BoundedDict(MAX_REMEMBERED)
        # Of verified chains, by DER.
        self._intermediates: BoundedDict[bytes, CertificateAuthority] = BoundedDict(MAX_REMEMBERED)
        self._put_in_force(anchors)

    def replace(self, anchors: Anchors) -> None:
        """Put new anchors in force."""
        if anchors.fingerprint != self.anchors.fingerprint:
            self.bundle += 1
            self._results.clear()  # their chains were verified under the old CAs
            self._intermediates.clear()
        self._put_in_force(anchors)
        self.generation += 1

    def _put_in_force(self, anchors: Anchors) -> None:
        self.anchors = anchors
        self._roots = tuple(read_authority(der(ca)) for ca in anchors.cas)
        self._roots_der = frozenset(root.der for root in self._roots)

    def authenticate(
        self, certificate: bytes, chain: Callable[[], Sequence[bytes]], bundle: int
    ) -> AuthResult:
        """Return the result for a certificate that TLS has accepted with the CAs of `bundle`.

        `chain` returns the chain that TLS verified, in DER. It returns nothing in a resumed
        session: then the result is known from before, or the chain is found among the CAs.
        """
        # A handshake may have begun under CAs that were replaced since: its result is not shared.
        current = bundle == self.bundle
        auth = self._results.get(certificate) if current else None
        # A refused certificate may come with another chain now: that of a CA's newer certificate.
        if auth is None or self.check(auth) is not None:
            sent = chain()
            auth = self.verify(sent or (certificate,), bundle, resumed=not sent)
            if current:
                self._results[certificate] = auth
        return auth

    def verify(
        self, chain: Sequence[bytes], bundle: int | None = None, *, resumed: bool = False
    ) -> AuthResult:
        """Return the result for a chain in DER, its first certificate the peer's.

        Behind it come CAs in any order, of which nothing is believed. `bundle` is that of the CAs
        that the connection began with, by default the one in force. The caller may keep the result
        while `chain_holds`, and calls `check` before each use.
        """
        below = list(chain)
        while len(below) > 1 and below[-1] in self._roots_der:
            below.pop()
        bundle = self.bundle if bundle is None else bundle
        auth = AuthResult(tuple(below), bundle, resumed=resumed)
        self.check(auth)
        return auth

    def check(self, auth: AuthResult, now: float | None = None) -> Refusal | None:
        """Return why a certificate is refused now, None if it is accepted.

        The one place that decides if a result is still in force. `now` is the caller's reading of
        the clock (epoch), if it has one: a check-in costs this call and two comparisons.
        """
        if now is None:
            now = self._clock()
        if auth.generation == self.generation and now <= auth.valid_until:
            return None
        if auth.generation != self.generation or auth.refusal is None:
            self._verify_again(auth)
        return auth.refusal

    def chain_holds(self, auth: AuthResult) -> bool:
        """Return whether the CAs in force are those of a result.

        If not, a connection of the certificate has to end, or its chain to be verified again.
        """
        return auth.bundle == self.bundle

    def _verify_again(self, auth: AuthResult) -> None:
        auth.generation = self.generation
        auth.identity, auth.refusal = None, None
        try:
            auth.identity = identify(auth.chain[0])
            auth.valid_until = self._check_chain(auth, auth.identity)
        except IdentityError as error:
            # Always in the past: each connection that shares the result comes to its refusal.
            auth.refusal, auth.valid_until = error.refusal, -math.inf

    def _check_chain(self, auth: AuthResult, identity: Identity) -> float:
        """Return until when the chain is valid. Raises `IdentityError`."""
        found = auth.chain_paths
        if found is None or found.bundle != self.bundle:
            found = auth.chain_paths = self._find_paths(auth, identity)
        # A CA may have several certificates. One that is valid is enough.
        refusal = UNKNOWN_CHAIN if auth.resumed else UNTRUSTED
        if not self.chain_holds(auth):
            refusal = CA_CHANGED
        now, refuse_expired_crl = self._clock(), self._on_expired_crl == "refuse"
        for number, path in enumerate(found.paths):
            try:
                return path.check(now, self.anchors.crls, refuse_expired_crl=refuse_expired_crl)
            except IdentityError as error:
                refusal = error.refusal if number == 0 else refusal
        raise IdentityError(*refusal)

    def _find_paths(self, auth: AuthResult, identity: Identity) -> ChainPaths:
        """Find the CAs above a certificate. Raises `IdentityError` if one is unreadable or weak.

        Signatures are verified here: once for each certificate and bundle, however often the
        result is checked.
        """
        with quietly():
            leaf = x509.load_der_x509_certificate(auth.chain[0])
        sent = [self._intermediates.get(der) or read_authority(der) for der in auth.chain[1:]]
        # A resumed session has no chain: its CAs may be known from another client's.
        others = tuple(self._intermediates.values()) if auth.resumed else sent
        names = [email_name(identity.email)]
        paths = find_paths(leaf, others, self._roots, ExtendedKeyUsageOID.CLIENT_AUTH, names)
        if not paths:
            for ca in sent:
                if ca.flaw is not None:  # a signature with SHA-1 is not even verified
                    raise IdentityError(*ca.flaw)
        for ca in (ca for path in paths if path.flaw is None for ca in path.cas):
            if ca.der not in self._roots_der:
                self._intermediates[ca.der] = ca
        return ChainPaths(self.bundle, paths)


def verified_chain(secure: ssl.SSLSocket) -> list[bytes]:
    """Return the chain that TLS verified, in DER, the peer's first; none in a resumed session."""
    public = getattr(secure, "get_verified_chain", None)  # Python 3.13 and newer
    if public is not None:
        return list(public())
    inner = getattr(secure, "_sslobj", None)  # the same, before it was made public
    chain = inner.get_verified_chain() if inner is not None else None
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain or ()]
