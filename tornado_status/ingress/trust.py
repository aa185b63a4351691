"""Whom the server trusts now: the CAs and their revocation lists, and every verdict that follows.

A verdict belongs to a certificate and to a generation of the trust. It is made at the handshake,
resumed or not, and made anew once the generation has moved or its time is over: a request compares
one integer and one float.
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

from tornado_status.errors import IdentityError
from tornado_status.pki.authorities import CertificateAuthority, read_authority
from tornado_status.pki.certificates import issued_by, quietly
from tornado_status.pki.identity import Identity, identify
from tornado_status.pki.trust_anchors import Anchors, der

MAX_REMEMBERED = 4096  # verdicts on certificates: half a millisecond saved for each device
MAX_PATHS = 16  # tried up to CAs that have signed each other; more than one is rare

NO_CERTIFICATE = IdentityError(400, "no-certificate", "No required SSL certificate was sent")
REVOKED = IdentityError(403, "revoked", "The certificate is revoked")
EXPIRED = IdentityError(403, "expired", "The certificate has expired")
LIST_EXPIRED = IdentityError(403, "crl-expired", "The CA's revocation list is out of date")
CA_CHANGED = IdentityError(403, "ca-changed", "The certificate's CA is not trusted any more")
UNKNOWN_CHAIN = IdentityError(
    403, "unknown-chain", "The certificate's CA is not known in this session: connect anew"
)


@dataclass(frozen=True, slots=True)
class ChainPaths:
    """Where a certificate comes from under one bundle of CAs: each path up to one of them.

    `serial` is the certificate's own. A path begins with the CA that has issued it.
    """

    bundle: int
    serial: int
    paths: tuple[tuple[CertificateAuthority, ...], ...]


@dataclass(slots=True)
class AuthResult:
    """The verdict on one certificate: shared by its connections, renewed in place.

    `chain` is in DER, the certificate first, without the CAs that are anchors. The verdict holds
    for `generation` of the trust and until `valid_until`, in seconds since the epoch; a refusal is
    in the past at once.
    """

    chain: tuple[bytes, ...]
    bundle: int
    generation: int = 0
    valid_until: float = 0.0
    identity: Identity | None = None
    refusal: IdentityError | None = None
    lineage: ChainPaths | None = None


class Trust:
    """The anchors in force, and the verdicts made under them.

    `generation` moves with every change, `bundle` where the CAs themselves have changed.
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
        self._standings: dict[bytes, AuthResult] = {}
        self._intermediates: dict[bytes, CertificateAuthority] = {}  # of verified chains, by DER
        self._put_in_force(anchors)

    def replace(self, anchors: Anchors) -> None:
        """Put new anchors in force."""
        if anchors.fingerprint != self.anchors.fingerprint:
            self.bundle += 1
            self._standings.clear()  # their chains were verified under the old CAs
            self._intermediates.clear()
        self._put_in_force(anchors)
        self.generation += 1

    def _put_in_force(self, anchors: Anchors) -> None:
        self.anchors = anchors
        self._roots = tuple(read_authority(der(ca)) for ca in anchors.cas)

    def standing(
        self, certificate: bytes, chain: Callable[[], Sequence[bytes]], bundle: int
    ) -> AuthResult:
        """Return the verdict on a certificate that TLS has accepted with the CAs of `bundle`.

        `chain` returns it as TLS verified it, in DER; nothing in a resumed session, where it is
        known from before or found among the CAs.
        """
        # A handshake may have begun with CAs that are in force no more; that verdict is not shared.
        current = bundle == self.bundle
        standing = self._standings.get(certificate) if current else None
        # Who is refused may have come by another chain before: that of a CA's older certificate.
        if standing is None or self.renew(standing) is not None:
            standing = self.judge(chain() or (certificate,), bundle)
            if current:
                if len(self._standings) >= MAX_REMEMBERED:
                    del self._standings[next(iter(self._standings))]  # the oldest
                self._standings[certificate] = standing
        return standing

    def judge(self, chain: Sequence[bytes], bundle: int | None = None) -> AuthResult:
        """Return the verdict on a verified chain in DER, its first certificate the peer's.

        `bundle` is that of the CAs that it was verified with, if not those in force. For the caller
        to keep as long as `bundle` stays, and to renew.
        """
        anchors = {root.der for root in self._roots}
        below = list(chain)
        while len(below) > 1 and below[-1] in anchors:
            below.pop()
        standing = AuthResult(tuple(below), self.bundle if bundle is None else bundle)
        self.renew(standing)
        return standing

    def renew(self, standing: AuthResult) -> IdentityError | None:
        """Judge anew where something has changed; return why not, or None."""
        over = standing.refusal is None and self._clock() > standing.valid_until
        if standing.generation != self.generation or over:
            standing.generation = self.generation
            standing.identity, standing.refusal = None, None
            try:
                standing.identity = identify(standing.chain[0])
                standing.valid_until = self._judge_chain(standing, standing.identity)
            except IdentityError as error:
                # Never good: the other connections that share it compare no more than the time.
                standing.refusal, standing.valid_until = error, -math.inf
        return standing.refusal

    def _judge_chain(self, standing: AuthResult, identity: Identity) -> float:
        """Return until when the chain is good. Raises `IdentityError`."""
        if self._clock() > identity.not_after:
            raise EXPIRED
        lineage = standing.lineage
        if lineage is None or lineage.bundle != self.bundle:
            lineage = standing.lineage = self._trace(standing.chain)
        # A CA may have several certificates, of which one is good: then so is what it has issued.
        refusal = CA_CHANGED if standing.bundle != self.bundle else UNKNOWN_CHAIN
        for number, path in enumerate(lineage.paths):
            try:
                return self._judge_path(lineage.serial, path, identity)
            except IdentityError as error:
                refusal = error if number == 0 else refusal
        raise refusal

    def _judge_path(
        self, serial: int, path: Sequence[CertificateAuthority], identity: Identity
    ) -> float:
        """Return until when a certificate is good by this path. Raises `IdentityError`."""
        now, good_until = self._clock(), identity.not_after
        for ca in path:
            ca.judge(identity.email, now)
            good_until = min(good_until, ca.not_after)
            known = self.anchors.lists.get(ca.id)
            if known is not None:
                if serial in known.serials:
                    raise REVOKED
                if self._on_expired_crl == "refuse":
                    if now > known.next_update:
                        raise LIST_EXPIRED
                    good_until = min(good_until, known.next_update)
            if ca.self_signed:
                break  # nobody but the operator can take back a root
            serial = ca.serial
        return good_until

    def _trace(self, chain: Sequence[bytes]) -> ChainPaths:
        """Find the CAs above a verified chain. Raises `IdentityError` for one unreadable or weak.

        Signatures are verified here: once for each certificate and bundle, however often its
        standing is renewed.
        """
        with quietly():
            leaf = x509.load_der_x509_certificate(chain[0])
            serial = leaf.serial_number
        sent = tuple(map(self._intermediate, chain[1:]))
        for ca in sent:
            if ca.weakness is not None:  # a signature with SHA-1 cannot even be verified here
                raise ca.weakness
        above = sent[-1].certificate if sent else leaf
        paths = [(*sent, *path) for path in islice(self._ways_up(above, sent), MAX_PATHS)]
        if not paths and not sent:
            # A resumed session knows no chain: its CAs may be known from another client's.
            paths = [
                (ca, *path)
                for ca in self._intermediates.values()
                if issued_by(leaf, ca.certificate)
                for path in islice(self._ways_up(ca.certificate, (ca,)), MAX_PATHS)
            ]
        if not paths and any(root.der == chain[0] for root in self._roots):
            paths = [()]  # trusted by itself; where a CA above is known, that may have revoked it
        return ChainPaths(self.bundle, serial, tuple(paths))

    def _ways_up(
        self, certificate: x509.Certificate, below: tuple[CertificateAuthority, ...]
    ) -> Iterator[tuple[CertificateAuthority, ...]]:
        """Yield the paths of CAs in force above a certificate; `below` are not met again."""
        for root in self._roots:
            if root in below or not issued_by(certificate, root.certificate):
                continue
            higher = False
            if not root.self_signed:
                for path in self._ways_up(root.certificate, (*below, root)):
                    higher = True
                    yield (root, *path)
            if not higher:
                yield (root,)

    def _intermediate(self, der: bytes) -> CertificateAuthority:
        known = self._intermediates.get(der)
        if known is None:
            known = read_authority(der)
            if len(self._intermediates) >= MAX_REMEMBERED:
                del self._intermediates[next(iter(self._intermediates))]  # the oldest
            self._intermediates[der] = known
        return known


def verified_chain(secure: ssl.SSLSocket) -> list[bytes]:
    """Return the chain as TLS verified it, in DER, the peer's first; nothing where resumed."""
    public = getattr(secure, "get_verified_chain", None)  # Python 3.13 and newer
    if public is not None:
        return list(public())
    inner = getattr(secure, "_sslobj", None)  # the same, before it was made public
    chain = inner.get_verified_chain() if inner is not None else None
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain or ()]
