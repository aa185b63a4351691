"""Reading the announcer key and its certificates from their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from tornado_status.config.settings import AnnounceSettings
from tornado_status.errors import AnnouncerError, ConfigError
from tornado_status.pki import announcer_keys
from tornado_status.pki.files import check_key, read, read_certificates
from tornado_status.pki.trust_anchors import Anchors

_MAKER = "`status-certs announcer` makes one"


@dataclass(frozen=True, slots=True)
class Published:
    """An announcer certificate for readers: the key's name, and PEM with intermediate CAs."""

    kid: str
    certificate: str


@dataclass(frozen=True, slots=True)
class Signing:
    """The key that signs, and the certificates to publish: its own, and that of the next key."""

    signer: announcer_keys.Signer
    published: tuple[Published, ...]


def load_signing(settings: AnnounceSettings, anchors: Anchors) -> Signing | None:
    """Read the configured key and certificates; return None if none is configured.

    A certificate that listeners would refuse is a warning: they may trust another CA. Raises
    `ConfigError` that names the setting and the file.
    """
    if settings.signing_key is None:
        if settings.next_certificate is not None:
            raise ConfigError("announce.next_certificate: needs announce.signing_key")
        return None
    path = settings.signing_key
    check_key("announce.signing_key", path, _MAKER)
    try:
        key = load_pem_private_key(read("announce.signing_key", path, _MAKER), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"announce.signing_key: {path} holds no unencrypted private key in PEM"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"announce.signing_key: {path} is no Ed25519 key")
    published = _published("announce.signing_key", path.with_suffix(".crt"), anchors)
    signer = announcer_keys.Signer(key)
    if published.kid != signer.kid:
        raise ConfigError(
            f"announce.signing_key: {path.with_suffix('.crt')} is the certificate of another key"
        )
    following: tuple[Published, ...] = ()
    if settings.next_certificate is not None:
        following = (_published("announce.next_certificate", settings.next_certificate, anchors),)
    return Signing(signer, (published, *following))


def _published(name: str, path: Path, anchors: Anchors) -> Published:
    chain = read_certificates(name, path, _MAKER)
    key = chain[0].public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{name}: {path} is not the certificate of an Ed25519 key")
    try:
        announcer_keys.verify_announcer(chain, anchors.cas)
        if announcer_keys.is_revoked(chain, anchors.cas, anchors.crls):
            raise AnnouncerError("its certificate is revoked")
    except AnnouncerError as error:
        structlog.get_logger().warning(
            "listeners of this CA will refuse the announcer", file=str(path), reason=str(error)
        )
    pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
    return Published(announcer_keys.key_id(key), pem.decode())
