"""Whom the server trusts now: the CAs and their revocation lists, and every verdict that follows.

A verdict belongs to a certificate and to a generation of the trust. It is made at the handshake,
resumed or not, and made anew once the generation has moved or its time is over: a request compares
one integer and one float.
"""

from __future__ import annotations

import hashlib
import math
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from tornado_status.config import Tls
from tornado_status.errors import ConfigError, IdentityError, RevocationListError
from tornado_status.identity import Identity, identify
from tornado_status.revocation import RevocationList, read_lists, replace_lists

MAX_REMEMBERED = 4096  # verdicts on certificates: a quarter of a millisecond saved for each device

NO_CERTIFICATE = IdentityError(400, "no-certificate", "No required SSL certificate was sent")
REVOKED = IdentityError(403, "revoked", "The certificate is revoked")
EXPIRED = IdentityError(403, "expired", "The certificate has expired")
LIST_EXPIRED = IdentityError(403, "crl-expired", "The CA's revocation list is out of date")
CA_CHANGED = IdentityError(403, "ca-changed", "The certificate's CA is not trusted any more")
UNKNOWN_CHAIN = IdentityError(
    403, "unknown-chain", "The certificate's CA is not known in this session: connect anew"
)


@dataclass(frozen=True, slots=True)
class Anchors:
    """What is trusted: certificates of CAs, and the newest revocation list of each, by its name."""

    cas: tuple[x509.Certificate, ...]
    lists: dict[bytes, RevocationList] = field(default_factory=dict)

    @property
    def fingerprint(self) -> bytes:
        """Equal for equal sets of CAs."""
        return hashlib.sha256(b"".join(sorted(_der(ca) for ca in self.cas))).digest()


@dataclass(slots=True)
class Standing:
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


class Trust:
    """The anchors in force, and the verdicts made under them.

    `generation` moves with every change, `bundle` where the CAs themselves have changed.
    """

    def __init__(
        self,
        anchors: Anchors,
        crl_expired: Literal["warn", "refuse"] = "warn",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.anchors = anchors
        self.generation = 1
        self.bundle = 1
        self._crl_expired = crl_expired
        self._clock = clock
        self._standings: dict[bytes, Standing] = {}

    def replace(self, anchors: Anchors) -> None:
        """Put new anchors in force."""
        if anchors.fingerprint != self.anchors.fingerprint:
            self.bundle += 1
            self._standings.clear()  # their chains were verified under the old CAs
        self.anchors = anchors
        self.generation += 1

    def standing(
        self, certificate: bytes, chain: Callable[[], Sequence[bytes]], bundle: int
    ) -> Standing:
        """Return the verdict on a certificate that TLS has accepted with the CAs of `bundle`.

        `chain` returns it as TLS verified it, in DER; nothing in a resumed session, where it is
        known from before or found among the CAs.
        """
        # A handshake may have begun with CAs that are in force no more; that verdict is not shared.
        current = bundle == self.bundle
        standing = self._standings.get(certificate) if current else None
        if standing is None or standing.refusal is UNKNOWN_CHAIN:
            standing = self.judge(chain() or (certificate,), bundle)
            if current:
                if len(self._standings) >= MAX_REMEMBERED:
                    del self._standings[next(iter(self._standings))]  # the oldest
                self._standings[certificate] = standing
        else:
            self.renew(standing)
        return standing

    def judge(self, chain: Sequence[bytes], bundle: int | None = None) -> Standing:
        """Return the verdict on a verified chain in DER, its first certificate the peer's.

        `bundle` is that of the CAs that it was verified with, if not those in force. For the caller
        to keep as long as `bundle` stays, and to renew.
        """
        anchors = {_der(ca) for ca in self.anchors.cas}
        below = tuple(der for der in chain if der not in anchors)
        standing = Standing(below or (chain[0],), self.bundle if bundle is None else bundle)
        self.renew(standing)
        return standing

    def renew(self, standing: Standing) -> IdentityError | None:
        """Judge anew where something has changed; return why not, or None."""
        over = standing.refusal is None and self._clock() > standing.valid_until
        if standing.generation != self.generation or over:
            standing.generation = self.generation
            standing.identity, standing.refusal = None, None
            try:
                standing.identity = identify(standing.chain[0])
                standing.valid_until = self._judge_chain(standing, standing.identity.not_after)
            except IdentityError as error:
                # Never good: the other connections that share it compare no more than the time.
                standing.refusal, standing.valid_until = error, -math.inf
        return standing.refusal

    def _judge_chain(self, standing: Standing, not_after: float) -> float:
        """Return until when the chain is good. Raises `IdentityError`."""
        if self._clock() > not_after:
            raise EXPIRED
        certificates = [x509.load_der_x509_certificate(der) for der in standing.chain]
        if standing.bundle != self.bundle and not self._issued_by_anchor(certificates[-1]):
            raise CA_CHANGED
        if not self.anchors.lists:
            return not_after
        good_until = not_after
        above = certificates[-1]
        while (ca := self._anchor_above(above)) is not None and ca not in certificates:
            certificates.append(ca)
            above = ca
        if not any(certificate in self.anchors.cas for certificate in certificates):
            raise UNKNOWN_CHAIN
        for certificate in certificates:
            known = self.anchors.lists.get(certificate.issuer.public_bytes())
            if known is None or certificate.issuer == certificate.subject:
                continue  # nobody but the operator can take back a root
            if certificate.serial_number in known.serials:
                raise REVOKED
            if self._crl_expired == "refuse":
                if self._clock() > known.next_update:
                    raise LIST_EXPIRED
                good_until = min(good_until, known.next_update)
        return good_until

    def _anchor_above(self, certificate: x509.Certificate) -> x509.Certificate | None:
        return next((ca for ca in self.anchors.cas if ca.subject == certificate.issuer), None)

    def _issued_by_anchor(self, certificate: x509.Certificate) -> bool:
        for ca in self.anchors.cas:
            try:
                certificate.verify_directly_issued_by(ca)
            except (ValueError, TypeError, InvalidSignature):
                continue
            return True
        return False


def load_anchors(settings: Tls, before: Anchors | None = None) -> Anchors:
    """Read the CAs and, where configured, their revocation lists.

    Raises `ConfigError` that names the key and the file.
    """
    try:
        cas = tuple(x509.load_pem_x509_certificates(settings.client_ca.read_bytes()))
    except ValueError as error:
        raise ConfigError(
            f"tls.client_ca: {settings.client_ca} holds no certificate in PEM"
        ) from error
    except OSError as error:
        raise ConfigError(f"tls.client_ca: cannot read {settings.client_ca}: {error}") from error
    path = settings.crl
    if path is None:
        return Anchors(cas)
    try:
        lists = read_lists(path.read_bytes(), cas, time.time())
        known = before.lists.values() if before is not None else ()
        return Anchors(cas, replace_lists(known, lists))
    except FileNotFoundError as error:
        raise ConfigError(f"tls.crl: no file {path} (python -m certs_gen crl makes one)") from error
    except OSError as error:
        raise ConfigError(f"tls.crl: cannot read {path}: {error.strerror}") from error
    except RevocationListError as error:
        raise ConfigError(f"tls.crl: {path}: {error}") from error


def verified_chain(secure: ssl.SSLSocket) -> list[bytes]:
    """Return the chain as TLS verified it, in DER, the peer's first; nothing where resumed."""
    public = getattr(secure, "get_verified_chain", None)  # Python 3.13 and newer
    if public is not None:
        return list(public())
    inner = getattr(secure, "_sslobj", None)  # the same, before it was made public
    chain = inner.get_verified_chain() if inner is not None else None
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain or ()]


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
