"""The certificate of a CA as a value, and why no certificate below it is trusted. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from tornado_status.errors import IdentityError, Refusal
from tornado_status.pki.certificates import (
    UNREADABLE,
    ca_id,
    canonical_name,
    quietly,
    self_signed,
    weak_key,
    weak_signature,
)
from tornado_status.pki.extensions import find_extension, unknown_extension
from tornado_status.pki.name_constraints import Constraints, Name, names_of, read_constraints

CA_UNREADABLE = Refusal(403, "ca-unreadable", "The certificate of a CA above cannot be read")
NOT_A_CA = Refusal(
    403, "not-a-ca", "A certificate above is not that of a CA (basicConstraints, keyCertSign)"
)
POLICY_CONSTRAINTS = Refusal(
    403, "policy-constraints", "A CA above demands certificate policies, which are not checked here"
)


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """One certificate of a CA.

    `id` is that of the CA (see `certificates.ca_id`), `der` and `serial` are this certificate's.
    Times are seconds since the epoch. `path_length` is how many CAs may follow, and `purposes` what
    for certificates below may be; None is any. `names` are its own names. `flaw` is why no
    certificate below is trusted, whichever path leads up to it.
    """

    certificate: x509.Certificate
    der: bytes
    id: bytes
    subject: str
    serial: int
    self_signed: bool
    self_issued: bool
    key_identifier: bytes | None
    not_before: float
    not_after: float
    path_length: int | None
    purposes: frozenset[x509.ObjectIdentifier] | None
    constraints: Constraints
    names: tuple[Name, ...]
    flaw: Refusal | None


def read_authority(der: bytes) -> CertificateAuthority:
    """Read the certificate of a CA. Raises `IdentityError` if it cannot be read."""
    with quietly():
        try:
            return _read(x509.load_der_x509_certificate(der), der)
        except UNREADABLE as error:
            raise IdentityError(*CA_UNREADABLE) from error


def _read(certificate: x509.Certificate, der: bytes) -> CertificateAuthority:
    extensions, is_root = certificate.extensions, self_signed(certificate)
    basic = find_extension(extensions, x509.BasicConstraints)
    usages = find_extension(extensions, x509.ExtendedKeyUsage)
    identifier = find_extension(extensions, x509.SubjectKeyIdentifier)
    subject = repr(canonical_name(certificate.subject))
    return CertificateAuthority(
        certificate=certificate,
        der=der,
        id=ca_id(certificate),
        subject=subject,
        serial=certificate.serial_number,
        self_signed=is_root,
        self_issued=subject == repr(canonical_name(certificate.issuer)),
        key_identifier=identifier.digest if identifier is not None else None,
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        path_length=basic.path_length if basic is not None else None,
        purposes=frozenset(usages) if usages is not None else None,
        constraints=read_constraints(extensions),
        names=names_of(certificate.subject, extensions),
        flaw=_flaw(certificate, is_root=is_root),
    )


def _flaw(certificate: x509.Certificate, *, is_root: bool) -> Refusal | None:
    weak = weak_key(certificate)
    # A root's signature of itself proves nothing: a root is trusted because it is in the file. Its
    # hash does not matter.
    if weak is None and not is_root:
        try:
            weak = weak_signature(certificate)
        except UnsupportedAlgorithm:
            weak = "its signature is of an unknown kind"
    if weak is not None:
        return Refusal(403, "weak-ca", f"A CA of the certificate is too weak: {weak}")
    extensions = certificate.extensions
    basic, usage = (
        find_extension(extensions, x509.BasicConstraints),
        find_extension(extensions, x509.KeyUsage),
    )
    if basic is None or not basic.ca or (usage is not None and not usage.key_cert_sign):
        return NOT_A_CA
    if not certificate.subject.rdns:  # RFC 5280, 4.1.2.6
        return NOT_A_CA
    # Also one that is not critical, as it must be (RFC 5280, 4.2.1.11): it demands the same.
    if find_extension(extensions, x509.PolicyConstraints) is not None:
        return POLICY_CONSTRAINTS
    return unknown_extension(extensions)
