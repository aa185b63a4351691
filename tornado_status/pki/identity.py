"""Peer certificate to identity, or the reason to refuse it. Pure: no sockets, clock or database.

The rules, in the order in which they are checked:

1. The subject has exactly one common name, and it is a valid e-mail address of at most 64
   characters (the upper bound of X.520). A certificate that fails here is answered with
   `CN_SENTENCE`, whatever else is wrong with it.
2. Each subject alternative name of type rfc822Name is the same address.
3. The certificate is meant for TLS clients: extended key usage clientAuth, and no CA. A key usage,
   if it has one, lets the key sign handshakes and no certificates.
4. Neither its key nor its signature can be forged with known means. Refused are RSA below 2,048
   bits, EC below 224, DSA, MD5 and SHA-1. (OpenSSL refuses most of these too, by its security
   level.)

`chain_paths` checks the CAs above it.

An identity is one canonical spelling: lower case, the domain in its ASCII form (IDNA).
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tornado_status.errors import IdentityError
from tornado_status.model.email_address import parse_email
from tornado_status.pki.certificates import UNREADABLE, quietly, weak_key, weak_signature
from tornado_status.pki.extensions import find_extension

CN_SENTENCE = "CN must be a valid email address"

MAX_SERIAL = 64  # hex digits that are kept; RFC 5280 allows 40
MAX_ISSUER = 512  # characters of the issuer's name that are kept with each record


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity that a client certificate proves.

    `email` is canonical (see `parse_email`). `issuer` is the issuer's name as RFC 4514 text and
    `serial` the certificate's serial number in lower-case hex: together they name the device.
    `not_before` and `not_after` are seconds since the epoch, UTC.
    """

    email: str
    issuer: str
    serial: str
    not_before: float
    not_after: float


def identify(certificate_der: bytes) -> Identity:
    """Return the identity of a peer's certificate, whose chain and dates TLS has verified.

    Raises `IdentityError` with the HTTP status and the sentence for the client, and no other error,
    whatever the bytes are.
    """
    with quietly():
        return _identify(certificate_der)


def _identify(certificate_der: bytes) -> Identity:
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        subject = certificate.subject
    except UNREADABLE as error:
        # The name cannot be read, so there is no CN with an e-mail address.
        raise IdentityError(400, "certificate-unreadable", CN_SENTENCE) from error

    email = _common_name_email(subject)
    try:
        issuer = certificate.issuer.rfc4514_string()
        not_before = certificate.not_valid_before_utc.timestamp()
        not_after = certificate.not_valid_after_utc.timestamp()
        extensions = certificate.extensions
    except UNREADABLE as error:
        raise IdentityError(
            400,
            "certificate-malformed",
            "The issuer, the dates or the extensions of the certificate cannot be read",
        ) from error

    _check_alternative_name(extensions, email)
    _check_purpose(extensions)
    _check_strength(certificate)
    return Identity(
        email=email,
        issuer=issuer[:MAX_ISSUER],
        serial=f"{certificate.serial_number:x}"[:MAX_SERIAL],
        not_before=not_before,
        not_after=not_after,
    )


def _common_name_email(subject: x509.Name) -> str:
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise IdentityError(400, "cn-count", CN_SENTENCE)
    value = names[0].value
    if not isinstance(value, str):
        raise IdentityError(400, "cn-invalid", CN_SENTENCE)
    try:
        return parse_email(value)
    except ValueError as error:
        raise IdentityError(400, "cn-invalid", CN_SENTENCE) from error


def _check_alternative_name(extensions: x509.Extensions, email: str) -> None:
    names = find_extension(extensions, x509.SubjectAlternativeName)
    if names is None:
        return
    for address in names.get_values_for_type(x509.RFC822Name):
        try:
            agrees = parse_email(address) == email
        except ValueError:
            agrees = False
        if not agrees:
            raise IdentityError(
                400, "san-mismatch", "The e-mail in subjectAltName must agree with the CN"
            )


def _check_purpose(extensions: x509.Extensions) -> None:
    constraints = find_extension(extensions, x509.BasicConstraints)
    usage = find_extension(extensions, x509.KeyUsage)
    usages = find_extension(extensions, x509.ExtendedKeyUsage)
    if (constraints is not None and constraints.ca) or (usage is not None and usage.key_cert_sign):
        raise IdentityError(403, "is-ca", "A CA certificate is not accepted as a client")
    if usage is not None and not usage.digital_signature:
        raise IdentityError(
            403,
            "not-for-clients",
            "The certificate's key may not sign (keyUsage digitalSignature)",
        )
    if usages is None or ExtendedKeyUsageOID.CLIENT_AUTH not in usages:
        raise IdentityError(
            403,
            "not-for-clients",
            "The certificate is not meant for TLS clients (extended key usage clientAuth)",
        )


def _check_strength(certificate: x509.Certificate) -> None:
    try:
        key, signature = weak_key(certificate), weak_signature(certificate)
    except UNREADABLE as error:
        raise IdentityError(
            403, "unknown-algorithm", "The certificate's key or signature is of an unknown kind"
        ) from error
    if key is not None:
        raise IdentityError(403, "weak-key", key)
    if signature is not None:
        raise IdentityError(403, "weak-signature", signature)
