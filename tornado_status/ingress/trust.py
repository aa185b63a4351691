"""Which clients the server trusts now: CAs and CRLs in force, and the results of verification.

A result belongs to a certificate and to a trust generation. It is made at the handshake, resumed or
not, and made again once the generation has moved or its time is over.
"""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from cryptography import x509

from tornado_status.errors import IdentityError, Refusal
from tornado_status.pki.authorities import CertificateAuthority, read_authority
from tornado_status.pki.certificates import issued_by, quietly
from tornado_status.pki.identity import Identity, identify
from tornado_status.pki.trust_anchors import Anchors, der
from tornado_status.runtime.bounded_dict import BoundedDict

MAX_REMEMBERED = 4096  # results by certificate: each saves half a millisecond for a device
MAX_PATHS = 16  # tried, because CAs may have signed each other; more than one is rare

NO_CERTIFICATE = Refusal(400, "no-certificate", "No required SSL certificate was sent")
REVOKED = Refusal(403, "revoked", "The certificate is revoked")
EXPIRED = Refusal(403, "expired", "The certificate has expired")
CRL_EXPIRED = Refusal(403, "crl-expired", "The CA's revocation list is out of date")
CA_CHANGED = Refusal(403, "ca-changed", "The certificate's CA is not trusted any more")
UNKNOWN_CHAIN = Refusal(
    403, "unknown-chain", "The certificate's CA is not known in this session: connect anew"
)


@dataclass(frozen=True, slots=True)
class ChainPaths:
    """The paths from a certificate up to the CAs of one bundle.

    `serial` is the certificate's own. A path begins with the CA that issued it.
    """

    bundle: int
    serial: int
    paths: tuple[tuple[CertificateAuthority, ...], ...]


@dataclass(slots=True)
class AuthResult:
    """The result of verifying one certificate: shared by its connections, updated in place.

    `chain` is in DER, the certificate first, without the CAs that are anchors. The result holds for
    `generation` of the trust and until `valid_until`, in seconds since the epoch; a refusal is in
    the past at once. After `chain_until` the chain itself must be verified again: TLS has no such
    moment, a chain from a proxy's header has.
    """

    chain: tuple[bytes, ...]
    bundle: int
    generation: int = 0
    valid_until: float = 0.0
    identity: Identity | None = None
    refusal: Refusal | None = None
    chain_paths: ChainPaths | None = None
    chain_until: float = math.inf


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
            auth = self.verify(chain() or (certificate,), bundle)
            if current:
                self._results[certificate] = auth
        return auth

    def verify(
        self, chain: Sequence[bytes], bundle: int | None = None, chain_until: float = math.inf
    ) -> AuthResult:
        """Return the result for a verified chain in DER, its first certificate the peer's.

        `bundle` is that of the CAs that verified it, by default the one in force. The caller may
        keep the result while `chain_holds`, and calls `check` before each use.
        """
        anchors = {root.der for root in self._roots}
        below = list(chain)
        while len(below) > 1 and below[-1] in anchors:
            below.pop()
        bundle = self.bundle if bundle is None else bundle
        auth = AuthResult(tuple(below), bundle, chain_until=chain_until)
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

    def chain_holds(self, auth: AuthResult, now: float = 0.0) -> bool:
        """Return whether the chain of a result still stands: the same CAs, and not expired.

        If not, a connection of the certificate has to end, or its chain to be verified again. Only
        chains from a proxy's header need `now` (epoch).
        """
        return auth.bundle == self.bundle and now <= auth.chain_until

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
        if self._clock() > identity.not_after:
            raise IdentityError(*EXPIRED)
        found = auth.chain_paths
        if found is None or found.bundle != self.bundle:
            found = auth.chain_paths = self._find_paths(auth.chain)
        # A CA may have several certificates. One that is valid is enough.
        refusal = UNKNOWN_CHAIN if self.chain_holds(auth) else CA_CHANGED
        for number, path in enumerate(found.paths):
            try:
                return self._check_path(found.serial, path, identity)
            except IdentityError as error:
                refusal = error.refusal if number == 0 else refusal
        raise IdentityError(*refusal)

    def _check_path(
        self, serial: int, path: Sequence[CertificateAuthority], identity: Identity
    ) -> float:
        """Return until when a certificate is valid by this path. Raises `IdentityError`."""
        now, valid_until = self._clock(), identity.not_after
        for ca in path:
            ca.check(identity.email, now)
            valid_until = min(valid_until, ca.not_after)
            crl = self.anchors.crls.get(ca.id)
            if crl is not None:
                if serial in crl.serials:
                    raise IdentityError(*REVOKED)
                if self._on_expired_crl == "refuse":
                    if now > crl.next_update:
                        raise IdentityError(*CRL_EXPIRED)
                    valid_until = min(valid_until, crl.next_update)
            if ca.self_signed:
                break  # only the operator can revoke a root
            serial = ca.serial
        return valid_until

    def _find_paths(self, chain: Sequence[bytes]) -> ChainPaths:
        """Find the CAs above a verified chain. Raises `IdentityError` if one is unreadable or weak.

        Signatures are verified here: once for each certificate and bundle, however often the
        result is checked.
        """
        with quietly():
            leaf = x509.load_der_x509_certificate(chain[0])
            serial = leaf.serial_number
        sent = tuple(map(self._intermediate, chain[1:]))
        for ca in sent:
            if ca.weakness is not None:  # a signature with SHA-1 cannot even be verified here
                raise IdentityError(*ca.weakness)
        above = sent[-1].certificate if sent else leaf
        paths = [(*sent, *path) for path in islice(self._paths_above(above, sent), MAX_PATHS)]
        if not paths and not sent:
            # A resumed session has no chain: its CAs may be known from another client's.
            paths = [
                (ca, *path)
                for ca in self._intermediates.values()
                if issued_by(leaf, ca.certificate)
                for path in islice(self._paths_above(ca.certificate, (ca,)), MAX_PATHS)
            ]
        if not paths and any(root.der == chain[0] for root in self._roots):
            paths = [()]  # a trust anchor itself; a known CA above it may have revoked it
        return ChainPaths(self.bundle, serial, tuple(paths))

    def _paths_above(
        self, certificate: x509.Certificate, below: tuple[CertificateAuthority, ...]
    ) -> Iterator[tuple[CertificateAuthority, ...]]:
        """Yield the paths of CAs in force above a certificate, without those of `below`."""
        for root in self._roots:
            if root in below or not issued_by(certificate, root.certificate):
                continue
            higher = False
            if not root.self_signed:
                for path in self._paths_above(root.certificate, (*below, root)):
                    higher = True
                    yield (root, *path)
            if not higher:
                yield (root,)

    def _intermediate(self, der: bytes) -> CertificateAuthority:
        known = self._intermediates.get(der)
        if known is None:
            known = self._intermediates[der] = read_authority(der)
        return known


def verified_chain(secure: ssl.SSLSocket) -> list[bytes]:
    """Return the chain that TLS verified, in DER, the peer's first; none in a resumed session."""
    public = getattr(secure, "get_verified_chain", None)  # Python 3.13 and newer
    if public is not None:
        return list(public())
    inner = getattr(secure, "_sslobj", None)  # the same, before it was made public
    chain = inner.get_verified_chain() if inner is not None else None
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain or ()]
