"""Announcer keys, which sign datagrams, and the certificates of the private CA for them. Pure.

The key is neither the server's TLS key nor a client's: its certificate has its own purpose.
"""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tornado_status.errors import AnnouncerError, IdentityError
from tornado_status.pki.authorities import read_authority
from tornado_status.pki.certificates import UNREADABLE
from tornado_status.pki.chain_paths import MAX_CAS, CertificationPath, find_paths
from tornado_status.pki.crl import CRL
from tornado_status.pki.extensions import find_extension

# The purpose "signs status datagrams" (extended key usage). With it, an announcer key cannot be
# used for a TLS server, a TLS client or mail. A listener can tell its certificate from all others
# of the same CA. The number is ours without registration: it is the GUID
# 104a4470-4eea-4538-bb11-3e76449944f8 below the arc for such use, 1.2.840.113556.1.8000.2554. Not
# below 2.25, the arc of UUIDs: Go's crypto/x509 refuses numbers above 31 bits in this extension.
PURPOSE = x509.ObjectIdentifier(
    "1.2.840.113556.1.8000.2554.4170.17520.20202.17720.47889.4093508.10044664"
)


def key_id(key: Ed25519PublicKey) -> str:
    """Return the name of a key in datagrams: 16 hex digits of its SPKI's SHA-256."""
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(info).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class AnnouncerKey:
    """A key that may announce.

    `validity` has a pair for each path up to a trusted CA: the first and the last moment at which
    all its certificates are valid.
    """

    kid: str
    key: Ed25519PublicKey
    validity: tuple[tuple[datetime.datetime, datetime.datetime], ...]

    def is_valid(self, now: datetime.datetime) -> bool:
        """Return whether the certificate and the CAs above are valid at `now`."""
        return any(first <= now <= last for first, last in self.validity)

    def is_yet_to_come(self, now: datetime.datetime) -> bool:
        """Return whether `now` is before the first moment of any path."""
        return all(now < first for first, _ in self.validity)

    def verify(self, signature: bytes, signed: bytes) -> bool:
        """Return whether `signature` (64 bytes) is this key's over `signed`."""
        try:
            self.key.verify(signature, signed)
        except InvalidSignature:
            return False
        return True


class Signer:
    """Signs datagrams. One signature takes about 30 microseconds and covers a whole datagram."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.kid = key_id(key.public_key())

    def sign(self, message: bytes) -> bytes:
        """Return the signature as 86 base64url characters, without padding."""
        return base64.urlsafe_b64encode(self._key.sign(message))[:86]


def verify_announcer(
    certificates: Sequence[x509.Certificate], cas: Sequence[x509.Certificate]
) -> AnnouncerKey:
    """Verify an announcer certificate, the first of `certificates`; intermediate CAs follow it.

    Its chain must lead to one of `cas`, it must be no CA, hold an Ed25519 key and be meant for
    announcing. Dates are not checked: see `AnnouncerKey`. Raises `AnnouncerError` with the reason.
    """
    if not certificates:
        raise AnnouncerError("no certificate")
    certificate = certificates[0]
    try:
        key = certificate.public_key()
    except UNREADABLE as error:
        raise AnnouncerError("a key of an unknown kind") from error
    if not isinstance(key, Ed25519PublicKey):
        raise AnnouncerError("not an Ed25519 key")
    try:
        usages = find_extension(certificate.extensions, x509.ExtendedKeyUsage)
        constraints = find_extension(certificate.extensions, x509.BasicConstraints)
        usage = find_extension(certificate.extensions, x509.KeyUsage)
    except UNREADABLE as error:
        raise AnnouncerError("not meant for announcing") from error
    if usages is None or PURPOSE not in usages or constraints is None or constraints.ca:
        raise AnnouncerError("not meant for announcing")
    if usage is not None and (usage.key_cert_sign or not usage.digital_signature):
        raise AnnouncerError("not meant for announcing")
    paths = _paths(tuple(certificates), tuple(cas))
    validity = tuple(_period(path) for path in paths if path.flaw is None)
    if not validity:
        flaws = [path.flaw.detail for path in paths if path.flaw is not None]
        raise AnnouncerError(flaws[0] if flaws else "not issued by a trusted CA")
    return AnnouncerKey(key_id(key), key, validity)


def is_revoked(
    certificates: Sequence[x509.Certificate],
    cas: Sequence[x509.Certificate],
    crls: Mapping[bytes, CRL],
) -> bool:
    """Return whether CRLs revoke an announcer certificate, the first, on each path to `cas`."""
    try:
        paths = _paths(tuple(certificates), tuple(cas))
    except AnnouncerError:
        return False
    return bool(paths) and all(path.is_revoked(crls) for path in paths)


@functools.lru_cache(256)  # a server is asked again and again, and signatures take time
def _paths(
    certificates: tuple[x509.Certificate, ...], cas: tuple[x509.Certificate, ...]
) -> tuple[CertificationPath, ...]:
    """Return the paths from an announcer certificate, the first, to `cas`.

    Raises `AnnouncerError`.
    """
    try:
        others = [read_authority(_der(ca)) for ca in certificates[1:][:MAX_CAS]]
        return find_paths(
            certificates[0], others, [read_authority(_der(ca)) for ca in cas], PURPOSE
        )
    except IdentityError as error:
        raise AnnouncerError(error.detail) from error
    except UNREADABLE as error:
        raise AnnouncerError("its certificate cannot be read") from error


def _period(path: CertificationPath) -> tuple[datetime.datetime, datetime.datetime]:
    first, last = path.validity
    utc = datetime.UTC
    return datetime.datetime.fromtimestamp(first, utc), datetime.datetime.fromtimestamp(last, utc)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
