"""Peer certificate to identity, or why not. Pure: no sockets, no clock, no database.

The rules, in the order in which they are judged:

1. The subject has exactly one common name, and it is a valid e-mail address of at most 64
   characters (the upper bound of X.520). Everything that fails here is answered with
   `CN_SENTENCE`, whatever else is wrong with the certificate.
2. A subject alternative name of type rfc822Name, where there is one, names the same address.
3. The certificate is meant for TLS clients: extended key usage clientAuth, and no CA.
4. Neither its key nor its signature can be forged with known means: no RSA below 2,048 bits, no
   DSA, no MD5 or SHA-1. (OpenSSL refuses most of these too, as its security level says.)

The CAs above it are for `authorities` to judge.

An identity is one canonical spelling: lower case, the domain in its ASCII form (IDNA).
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import email_validator
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tornado_status.certificates import UNREADABLE, quietly, weak_key, weak_signature
from tornado_status.errors import IdentityError

CN_SENTENCE = "CN must be a valid email address"

MAX_COMMON_NAME = 64  # ub-common-name of X.520 (RFC 5280, appendix A): no CA may issue more
PRIVATE_DOMAINS = ("local", "test")
_ORDINARY_DOMAIN = "example"
MAX_SERIAL = 64  # hex digits that are kept; RFC 5280 allows 40
MAX_ISSUER = 512  # characters of the issuer's name that are kept with each record


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a peer is, as its certificate proves.

    `email` is canonical (see `parse_email`). `issuer` is the issuer's name as RFC 4514 text and
    `serial` the certificate's serial number in lower-case hex: together they name the device.
    `not_before` and `not_after` are seconds since the epoch, UTC.
    """

    email: str
    issuer: str
    serial: str
    not_before: float
    not_after: float


def parse_email(text: str) -> str:
    """Return the canonical form of an e-mail address: lower case, ASCII (IDNA) domain.

    The local part is a dot-atom of RFC 5322, the domain has at least one dot and may be a private
    one (`PRIVATE_DOMAINS`); nothing is looked up in the DNS. The canonical form is its own
    canonical form, and fits in a common name too. Raises `ValueError` with a sentence.
    """
    _check_length(text)  # before anything works on it
    local, _, domain = text.rpartition("@")
    domain = domain.lower()
    stem, dot, last = domain.rpartition(".")
    # email-validator judges what mail can reach from anywhere; in a private network .local is a
    # name like any other, so such a domain is judged by the rest of it.
    private = dot and last in PRIVATE_DOMAINS
    judged = f"{stem}.{_ORDINARY_DOMAIN}" if private else domain
    try:
        valid = email_validator.validate_email(
            f"{local}@{judged}",
            allow_smtputf8=False,
            allow_quoted_local=False,
            allow_domain_literal=False,
            check_deliverability=False,
        )
    except email_validator.EmailNotValidError as error:
        raise ValueError(f"not a valid e-mail address: {error}") from error
    # IDNA maps some characters onto others (a full-width dot onto a dot). Two spellings of one
    # name would be two certificates for one person: only the letter case may differ. So does
    # lower(), which makes a k of the Kelvin sign: that is not NFC before.
    normal = unicodedata.is_normalized("NFC", text)
    if not normal or judged not in (valid.domain, valid.ascii_domain):
        raise ValueError("not a valid e-mail address: the domain is not in its normal form")
    ascii_domain = valid.ascii_domain
    if private:
        ascii_domain = ascii_domain.removesuffix(_ORDINARY_DOMAIN) + last
    canonical = f"{local}@{ascii_domain}".lower()
    _check_length(canonical)
    return canonical


def _check_length(address: str) -> None:
    if len(address) > MAX_COMMON_NAME:
        raise ValueError(
            f"an e-mail address of {len(address)} characters does not fit in a common name, "
            f"which holds at most {MAX_COMMON_NAME} (X.520)"
        )


def identify(certificate_der: bytes) -> Identity:
    """Judge a peer's leaf certificate, whose chain and dates TLS has already verified.

    Raises `IdentityError` with the HTTP status and the sentence for the client, and nothing else
    whatever the bytes are.
    """
    with quietly():
        return _identify(certificate_der)


def _identify(certificate_der: bytes) -> Identity:
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        subject = certificate.subject
    except UNREADABLE as error:
        # The name cannot be read, so there is no CN that is an e-mail.
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
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
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
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        pass
    else:
        if constraints.ca:
            raise IdentityError(403, "is-ca", "A CA certificate is not accepted as a client")
    try:
        usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:
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
