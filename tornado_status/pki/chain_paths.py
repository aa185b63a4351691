"""Paths from a certificate up to the trusted CAs: one builder for clients and announcers. Pure.

It checks all of a path by itself (RFC 5280, 6): TLS has done so for some chains, and for others it
has not. Dates and CRLs are checked whenever a path is used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tornado_status.errors import IdentityError, Refusal
from tornado_status.pki.authorities import CertificateAuthority
from tornado_status.pki.certificates import canonical_name, issued_by, quietly, same_name
from tornado_status.pki.crl import CRL
from tornado_status.pki.extensions import find_extension, unknown_extension
from tornado_status.pki.name_constraints import Constraints, Name, names_of

MAX_PATHS = 16  # tried, because CAs may have signed each other; more than one is rare
MAX_CAS = 8  # in a path: a private CA has two or three, and a peer may send any number

REVOKED = Refusal(403, "revoked", "The certificate is revoked")
EXPIRED = Refusal(403, "expired", "The certificate has expired")
NOT_YET_VALID = Refusal(403, "not-yet-valid", "The certificate is not valid yet")
CRL_EXPIRED = Refusal(403, "crl-expired", "The CA's revocation list is out of date")
NOT_IN_FORCE = Refusal(
    403, "ca-expired", "The certificate of a CA above has expired, or is not valid yet"
)
NOT_PERMITTED = Refusal(
    403,
    "name-constraints",
    "The certificate's CA may not issue to this e-mail address, or to another name of it",
)
PATH_TOO_LONG = Refusal(
    403, "path-length", "More CAs are above the certificate than one of them permits"
)
WRONG_PURPOSE = Refusal(
    403, "ca-purpose", "A CA above may not issue certificates for this purpose (extendedKeyUsage)"
)
AMBIGUOUS_ISSUER = Refusal(
    403,
    "ambiguous-issuer",
    "Several trusted CAs have the name of the certificate's issuer, and it does not say which one "
    "it is (authorityKeyIdentifier)",
)


@dataclass(frozen=True, slots=True)
class CertificationPath:
    """A path from a certificate to an anchor: the CA that issued it first, the anchor last.

    `flaw` is why it proves nothing at any time. `not_before` and `not_after` are the certificate's
    own; `serial` is its serial number.
    """

    serial: int
    not_before: float
    not_after: float
    cas: tuple[CertificateAuthority, ...]
    flaw: Refusal | None

    @property
    def validity(self) -> tuple[float, float]:
        """The time in which the certificate and all CAs above are valid."""
        return (
            max((self.not_before, *(ca.not_before for ca in self.cas))),
            min((self.not_after, *(ca.not_after for ca in self.cas))),
        )

    def check(
        self, now: float, crls: Mapping[bytes, CRL], *, refuse_expired_crl: bool = False
    ) -> float:
        """Return until when the path is good. Raises `IdentityError` if it is not so `now`."""
        if now > self.not_after:
            raise IdentityError(*EXPIRED)
        if now < self.not_before:
            raise IdentityError(*NOT_YET_VALID)
        if self.flaw is not None:
            raise IdentityError(*self.flaw)
        not_before, valid_until = self.validity
        if not not_before <= now <= valid_until:
            raise IdentityError(*NOT_IN_FORCE)
        for serial, crl in self._listed(crls):
            if serial in crl.serials:
                raise IdentityError(*REVOKED)
            if refuse_expired_crl:
                if now > crl.next_update:
                    raise IdentityError(*CRL_EXPIRED)
                valid_until = min(valid_until, crl.next_update)
        return valid_until

    def is_revoked(self, crls: Mapping[bytes, CRL]) -> bool:
        """Return whether the certificate, or a CA above, is in a CRL."""
        return any(serial in crl.serials for serial, crl in self._listed(crls))

    def _listed(self, crls: Mapping[bytes, CRL]) -> Iterator[tuple[int, CRL]]:
        """Yield each serial number of the path, with the CRL that could list it."""
        serial = self.serial
        for ca in self.cas:
            if ca.id in crls:
                yield serial, crls[ca.id]
            if ca.self_signed:
                break  # only the operator can revoke a root
            serial = ca.serial


def find_paths(
    certificate: x509.Certificate,
    untrusted: Collection[CertificateAuthority],
    anchors: Sequence[CertificateAuthority],
    purpose: x509.ObjectIdentifier,
    names: Sequence[Name] = (),
) -> tuple[CertificationPath, ...]:
    """Return the paths from a certificate, over `untrusted`, to the `anchors`. Raises `UNREADABLE`.

    `names` are the certificate's names beside those in its subject and subjectAltName. Signatures
    are verified here.
    """
    with quietly():
        flaw = unknown_extension(certificate.extensions)
        serial = certificate.serial_number
        not_before = certificate.not_valid_before_utc.timestamp()
        not_after = certificate.not_valid_after_utc.timestamp()
        found = list(islice(_paths_above(certificate, (), untrusted, anchors), MAX_PATHS))
        if not found and certificate.public_bytes(Encoding.DER) in {ca.der for ca in anchors}:
            found = [()]  # a trust anchor itself; a known CA above it may have revoked it
        return tuple(
            CertificationPath(
                serial,
                not_before,
                not_after,
                cas,
                flaw or _flaw(certificate, cas, names, anchors, purpose),
            )
            for cas in found
        )


def _paths_above(
    certificate: x509.Certificate,
    below: tuple[CertificateAuthority, ...],
    untrusted: Collection[CertificateAuthority],
    anchors: Sequence[CertificateAuthority],
) -> Iterator[tuple[CertificateAuthority, ...]]:
    """Yield the paths above a certificate, without the CAs of `below`."""
    if len(below) == MAX_CAS:
        return
    issuer = repr(canonical_name(certificate.issuer))
    used = {ca.id for ca in below}
    trusted = {anchor.der for anchor in anchors}
    candidates = (*anchors, *(ca for ca in untrusted if ca.der not in trusted))
    for ca in candidates:
        if ca.subject != issuer or ca.id in used or not _has_issued(ca, certificate):
            continue
        if ca.der not in trusted:
            for path in _paths_above(ca.certificate, (*below, ca), untrusted, anchors):
                yield (ca, *path)
            continue
        higher = False
        if not ca.self_signed:
            for path in _paths_above(ca.certificate, (*below, ca), (), anchors):
                higher = True
                yield (ca, *path)
        if not higher:
            yield (ca,)


def _has_issued(ca: CertificateAuthority, certificate: x509.Certificate) -> bool:
    """Return whether a certificate's authority key identifier and its signature say so."""
    hint = find_extension(certificate.extensions, x509.AuthorityKeyIdentifier)
    if hint is not None:
        ours, theirs = ca.key_identifier, hint.key_identifier
        if ours is not None and theirs is not None and ours != theirs:
            return False
        if hint.authority_cert_serial_number not in (None, ca.serial):
            return False
        issuers = [
            name.value
            for name in hint.authority_cert_issuer or ()
            if isinstance(name, x509.DirectoryName)
        ]
        if issuers and not any(same_name(name, ca.certificate.issuer) for name in issuers):
            return False
    return issued_by(certificate, ca.certificate)


def _flaw(
    certificate: x509.Certificate,
    cas: Sequence[CertificateAuthority],
    names: Sequence[Name],
    anchors: Sequence[CertificateAuthority],
    purpose: x509.ObjectIdentifier,
) -> Refusal | None:
    """Return why a path proves nothing at any time, None if nothing is wrong with it."""
    if any(ca.constraints != Constraints() for ca in cas):  # rare, and to read all names takes time
        names = (*names, *names_of(certificate.subject, certificate.extensions))
    intermediates = 0
    for ca in cas:
        if ca.flaw is not None:
            return ca.flaw
        if ca.path_length is not None and intermediates > ca.path_length:
            return PATH_TOO_LONG
        if ca.purposes is not None and purpose not in ca.purposes:
            return WRONG_PURPOSE
        if not ca.constraints.permits(names):
            return NOT_PERMITTED
        if _has_ambiguous_issuer(certificate, anchors):
            return AMBIGUOUS_ISSUER
        if not ca.self_issued:
            intermediates += 1
            names = (*names, *ca.names)
        certificate = ca.certificate
    return None


def _has_ambiguous_issuer(
    certificate: x509.Certificate, anchors: Sequence[CertificateAuthority]
) -> bool:
    """Return whether several anchors have the issuer's name, and nothing says which it is."""
    if len(anchors) == 1:
        return False
    hint = find_extension(certificate.extensions, x509.AuthorityKeyIdentifier)
    if hint is not None and (hint.key_identifier or hint.authority_cert_serial_number is not None):
        return False
    issuer = repr(canonical_name(certificate.issuer))
    return len({anchor.id for anchor in anchors if anchor.subject == issuer}) > 1
