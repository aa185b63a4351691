"""Checking a CA certificate: its dates, its name constraints and its strength. Pure.

TLS libraries apply name constraints (RFC 5280, 4.2.1.10) to subjectAltName alone. This module also
applies them to the e-mail address of the identity, which is a common name.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from tornado_status.errors import IdentityError, Refusal
from tornado_status.pki.certificates import (
    UNREADABLE,
    ca_id,
    quietly,
    self_signed,
    weak_key,
    weak_signature,
)

NOT_PERMITTED = Refusal(
    403, "name-constraints", "The certificate's CA may not issue to this e-mail address"
)
NOT_IN_FORCE = Refusal(
    403, "ca-expired", "The certificate of a CA above has expired, or is not valid yet"
)
CA_UNREADABLE = Refusal(403, "ca-unreadable", "The certificate of a CA above cannot be read")

_NAME_CONSTRAINTS = b"\x06\x03\x55\x1d\x1e"  # 2.5.29.30 in DER; other parts may have these bytes


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """One certificate of a CA.

    `id` is that of the CA (see `certificates.ca_id`), `der` and `serial` are this certificate's.
    Times are seconds since the epoch. `permitted` and `excluded` are its constraints on e-mail
    addresses, in lower case; None permits all. `weakness` is why no certificate below is trusted.
    """

    certificate: x509.Certificate
    der: bytes
    id: bytes
    serial: int
    self_signed: bool
    not_before: float
    not_after: float
    permitted: tuple[str, ...] | None
    excluded: tuple[str, ...]
    weakness: Refusal | None

    def check(self, email: str, now: float) -> None:
        """Raise `IdentityError` if the CA may not issue to this canonical e-mail address now."""
        if self.weakness is not None:
            raise IdentityError(*self.weakness)
        if not self.not_before <= now <= self.not_after:
            raise IdentityError(*NOT_IN_FORCE)
        if any(_within(email, constraint) for constraint in self.excluded):
            raise IdentityError(*NOT_PERMITTED)
        if self.permitted is not None and not any(
            _within(email, constraint) for constraint in self.permitted
        ):
            raise IdentityError(*NOT_PERMITTED)


def read_authority(der: bytes) -> CertificateAuthority:
    """Read the certificate of a CA. Raises `IdentityError` if it cannot be read."""
    with quietly():
        try:
            certificate = x509.load_der_x509_certificate(der)
            # TLS checks all other extensions, and it reads some that `cryptography` does not.
            found = _constraints(certificate) if _NAME_CONSTRAINTS in der else (None, ())
            is_root = self_signed(certificate)
            return CertificateAuthority(
                certificate=certificate,
                der=der,
                id=ca_id(certificate),
                serial=certificate.serial_number,
                self_signed=is_root,
                not_before=certificate.not_valid_before_utc.timestamp(),
                not_after=certificate.not_valid_after_utc.timestamp(),
                permitted=found[0],
                excluded=found[1],
                weakness=_weakness(certificate, is_root=is_root),
            )
        except UNREADABLE as error:
            raise IdentityError(*CA_UNREADABLE) from error


def _constraints(
    certificate: x509.Certificate,
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return None, ()
    # Only constraints on e-mail addresses apply; the others constrain names of their own kind.
    permitted, excluded = (
        tuple(name.value.lower() for name in names or () if isinstance(name, x509.RFC822Name))
        for names in (found.permitted_subtrees, found.excluded_subtrees)
    )
    return permitted or None, excluded


def _weakness(certificate: x509.Certificate, *, is_root: bool) -> Refusal | None:
    weak = weak_key(certificate)
    # A root's signature of itself proves nothing: a root is trusted because it is in the file. Its
    # hash does not matter.
    if weak is None and not is_root:
        try:
            weak = weak_signature(certificate)
        except UnsupportedAlgorithm:
            weak = "its signature is of an unknown kind"
    if weak is None:
        return None
    return Refusal(403, "weak-ca", f"A CA of the certificate is too weak: {weak}")


def _within(email: str, constraint: str) -> bool:
    """Return whether an address is a mailbox, at a host, or below a `.domain`.

    An empty constraint includes all names, as in the libraries of browsers.
    """
    host = email.rpartition("@")[2]
    mailbox, at, of = constraint.rpartition("@")
    if mailbox:
        return email == constraint
    if at:
        return host == of  # "@example.com" is no address: OpenSSL reads it as the host
    if constraint.startswith("."):
        return host.endswith(constraint)
    return not constraint or host == constraint
