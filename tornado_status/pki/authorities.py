"""What a CA may vouch for: for how long, for whom, and whether its own certificate is strong. Pure.

Its name constraints (RFC 5280, 4.2.1.10) are held against the e-mail address of the identity, which
is a common name: TLS libraries hold them against subjectAltName alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from tornado_status.errors import IdentityError
from tornado_status.pki.certificates import (
    UNREADABLE,
    ca_id,
    quietly,
    self_signed,
    weak_key,
    weak_signature,
)

NOT_PERMITTED = IdentityError(
    403, "name-constraints", "The certificate's CA may not issue to this e-mail address"
)
NOT_IN_FORCE = IdentityError(
    403, "ca-expired", "The certificate of a CA above has expired, or is not valid yet"
)
CA_UNREADABLE = IdentityError(403, "ca-unreadable", "The certificate of a CA above cannot be read")

_NAME_CONSTRAINTS = b"\x06\x03\x55\x1d\x1e"  # 2.5.29.30 in DER, whatever else has these bytes


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """What one certificate of a CA says.

    `id` is that of the CA (see `certificates.ca_id`), `der` and `serial` are this certificate's.
    Times are seconds since the epoch. `permitted` and `excluded` are its constraints on e-mail
    addresses, in lower case; None permits all. `weakness` is why nothing below it is believed.
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
    weakness: IdentityError | None

    def judge(self, email: str, now: float) -> None:
        """Say whether it may vouch for this canonical e-mail address. Raises `IdentityError`."""
        if self.weakness is not None:
            raise self.weakness
        if not self.not_before <= now <= self.not_after:
            raise NOT_IN_FORCE
        if any(_within(email, constraint) for constraint in self.excluded):
            raise NOT_PERMITTED
        if self.permitted is not None and not any(
            _within(email, constraint) for constraint in self.permitted
        ):
            raise NOT_PERMITTED


def read_authority(der: bytes) -> CertificateAuthority:
    """Read the certificate of a CA. Raises `IdentityError` where that cannot be done."""
    with quietly():
        try:
            certificate = x509.load_der_x509_certificate(der)
            # Other extensions are TLS's to judge, and it reads what `cryptography` does not.
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
            raise CA_UNREADABLE from error


def _constraints(
    certificate: x509.Certificate,
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        return None, ()
    # Names of other kinds constrain other names: an e-mail address is within or without nothing.
    permitted, excluded = (
        tuple(name.value.lower() for name in names or () if isinstance(name, x509.RFC822Name))
        for names in (found.permitted_subtrees, found.excluded_subtrees)
    )
    return permitted or None, excluded


def _weakness(certificate: x509.Certificate, *, is_root: bool) -> IdentityError | None:
    weak = weak_key(certificate)
    # A root's signature of itself proves nothing: it is trusted because it is in the file. So it
    # does not matter with which hash it is made.
    if weak is None and not is_root:
        try:
            weak = weak_signature(certificate)
        except UnsupportedAlgorithm:
            weak = "its signature is of an unknown kind"
    if weak is None:
        return None
    return IdentityError(403, "weak-ca", f"A CA of the certificate is too weak: {weak}")


def _within(email: str, constraint: str) -> bool:
    """Say whether an address is one mailbox, at one host, or anywhere below a `.domain`.

    An empty constraint is the root of all names, as for the libraries of browsers.
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
