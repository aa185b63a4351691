"""Announcer keys, which sign datagrams, and the certificates of the private CA for them. Pure.

The key is neither the server's TLS key nor a client's: its certificate has its own purpose.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tornado_status.errors import AnnouncerError
from tornado_status.pki.certificates import UNREADABLE, issued_by

# The purpose "signs status datagrams" (extended key usage). With it, an announcer key cannot be
# used for a TLS server, a TLS client or mail. A listener can tell its certificate from all others
# of the same CA. The number is ours without registration: it is the GUID
# 104a4470-4eea-4538-bb11-3e76449944f8 below the arc for such use, 1.2.840.113556.1.8000.2554. Not
# below 2.25, the arc of UUIDs: Go's crypto/x509 refuses numbers above 31 bits in this extension.
PURPOSE = x509.ObjectIdentifier(
    "1.2.840.113556.1.8000.2554.4170.17520.20202.17720.47889.4093508.10044664"
)

MAX_CHAIN = 4  # certificates from the announcer's up to a trusted one


def key_id(key: Ed25519PublicKey) -> str:
    """Return the name of a key in datagrams: 16 hex digits of its SPKI's SHA-256."""
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(info).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class AnnouncerKey:
    """A key that may announce, and the dates of its certificate."""

    kid: str
    key: Ed25519PublicKey
    not_before: datetime.datetime
    not_after: datetime.datetime

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
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, *UNREADABLE) as error:
        raise AnnouncerError("not meant for announcing") from error
    if PURPOSE not in usages or constraints.ca:
        raise AnnouncerError("not meant for announcing")
    _verify_chain(certificates, cas)
    return AnnouncerKey(
        kid=key_id(key),
        key=key,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def _verify_chain(
    certificates: Sequence[x509.Certificate], cas: Sequence[x509.Certificate]
) -> None:
    current = certificates[0]
    for _ in range(MAX_CHAIN):
        if any(issued_by(current, ca) for ca in cas):
            return
        following = next((c for c in certificates[1:] if _is_ca(c) and issued_by(current, c)), None)
        if following is None:
            break
        current = following
    raise AnnouncerError("not issued by a trusted CA")


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, *UNREADABLE):
        return False
