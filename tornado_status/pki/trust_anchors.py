"""Trust anchors: the CAs in tls.client_ca, and the newest CRL of each."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tornado_status.config.settings import TlsSettings
from tornado_status.errors import ConfigError, CRLError, IdentityError
from tornado_status.pki.authorities import read_authority
from tornado_status.pki.crl import CRL, CRLMark, read_crls, replace_crls
from tornado_status.pki.files import read, read_certificates


@dataclass(frozen=True, slots=True)
class Anchors:
    """The trusted CA certificates, and the newest CRL of each CA.

    The key of `crls` is a CA's name and key: see `certificates.ca_id`.
    """

    cas: tuple[x509.Certificate, ...]
    crls: dict[bytes, CRL] = field(default_factory=dict)

    @property
    def fingerprint(self) -> bytes:
        """Equal for equal sets of CAs."""
        return hashlib.sha256(b"".join(sorted(der(ca) for ca in self.cas))).digest()


def load_anchors(
    settings: TlsSettings, before: Anchors | None = None, marks: Sequence[CRLMark] = ()
) -> Anchors:
    """Read the CAs and, if there is a file of them, their CRLs.

    No CRL may be older than that of `before`, or than `marks`.

    Raises `ConfigError` that names the setting and the file.
    """
    cas = read_certificates("tls.client_ca", settings.client_ca)
    for ca in cas:
        try:
            read_authority(der(ca))
        except IdentityError as error:
            raise ConfigError(
                f"tls.client_ca: cannot use {settings.client_ca}: {error.detail}"
            ) from error
    path = crl_file(settings, before)
    if path is None:
        return Anchors(cas)
    pem = read("tls.crl", path, "`status-certs crl` makes one")
    try:
        crls = read_crls(pem, cas, time.time())
        known = [crl.mark for crl in before.crls.values()] if before is not None else []
        return Anchors(cas, replace_crls([*known, *marks], crls, cas))
    except CRLError as error:
        raise ConfigError(f"tls.crl: {path}: {error}") from error


def crl_file(settings: TlsSettings, before: Anchors | None = None) -> Path | None:
    """Return the file with the CRLs; None if no CRL is to be checked.

    The default file may be missing, unless CRLs are in force: they must not be lost with it.
    """
    path = settings.crl
    if path is None or not settings.crl_may_be_missing or (before is not None and before.crls):
        return path
    try:
        path.stat()
    except FileNotFoundError:
        return None
    except OSError:
        pass  # the error comes with reading it
    return path


def der(certificate: x509.Certificate) -> bytes:
    """Return a certificate's DER bytes."""
    return certificate.public_bytes(Encoding.DER)
