"""DER written by hand, for certificates that `cryptography` refuses to build."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from certs_gen.authority import common_name, leaf_extensions

SEQUENCE, SET, OCTETS, OID, INTEGER, BOOLEAN = 0x30, 0x31, 0x04, 0x06, 0x02, 0x01
BIT_STRING, UTF8, PRINTABLE, TELETEX, IA5, BMP = 0x03, 0x0C, 0x13, 0x14, 0x16, 0x1E
UTC_TIME, GENERALIZED_TIME = 0x17, 0x18
VERSION, EXTENSIONS, RFC822_NAME = 0xA0, 0xA3, 0x81  # context tags of RFC 5280
FIELDS = ("version", "serial", "algorithm", "issuer", "validity", "subject", "key", "extensions")

VALID = "valid_user@example.com"
NOT_BEFORE = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
NOT_AFTER = datetime.datetime(2027, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
KEY = ec.generate_private_key(ec.SECP256R1())
ISSUER = common_name("Some CA")


def tlv(tag: int, *contents: bytes) -> bytes:
    """Return one DER element with any contents."""
    content = b"".join(contents)
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def elements(der: bytes) -> Iterator[bytes]:
    """Split `der` into its DER elements."""
    while der:
        head, size = 2, der[1]
        if size >= 0x80:
            head += size & 0x7F
            size = int.from_bytes(der[2:head])
        yield der[: head + size]
        der = der[head + size :]


def content(element: bytes) -> bytes:
    return element[2 + (element[1] & 0x7F if element[1] >= 0x80 else 0) :]


def oid(dotted: x509.ObjectIdentifier) -> bytes:
    first, second, *arcs = map(int, dotted.dotted_string.split("."))
    encoded = bytearray()
    for arc in (40 * first + second, *arcs):
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(0x80 | arc & 0x7F)
        encoded += bytes(reversed(septets))
    return tlv(OID, bytes(encoded))


def extension(kind: x509.ObjectIdentifier, value: bytes) -> bytes:
    return tlv(SEQUENCE, oid(kind), tlv(OCTETS, value))


def name(*common_names: tuple[int, bytes]) -> bytes:
    """Return a subject that consists of common names, each a string type and its bytes."""
    kind = oid(NameOID.COMMON_NAME)
    return tlv(SEQUENCE, *(tlv(SET, tlv(SEQUENCE, kind, tlv(*value))) for value in common_names))


def alternative_names(*emails: bytes) -> bytes:
    value = tlv(SEQUENCE, *(tlv(RFC822_NAME, email) for email in emails))
    return extension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, value)


FOR_CLIENTS = extension(ExtensionOID.EXTENDED_KEY_USAGE, tlv(SEQUENCE, oid(CLIENT_AUTH)))


def certificate(
    subject: x509.Name | str = VALID,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] | None = None,
    issuer: x509.Name = ISSUER,
    serial: int = 0x1234ABCD,
) -> bytes:
    """Return a certificate in DER, for clients by default."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(common_name(subject) if isinstance(subject, str) else subject)
        .issuer_name(issuer)
        .public_key(KEY.public_key())
        .serial_number(serial)
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(NOT_AFTER)
    )
    for value, critical in leaf_extensions([CLIENT_AUTH]) if extensions is None else extensions:
        builder = builder.add_extension(value, critical)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


PLAIN = certificate()


def odd(**replaced: bytes) -> bytes:
    """Return a certificate with some fields of its body (`FIELDS`) replaced by any DER.

    The signature no longer matches; `identify` does not check it.
    """
    body, *signature = elements(content(PLAIN))
    fields = dict(zip(FIELDS, elements(content(body)), strict=True))
    assert replaced.keys() <= fields.keys()
    return tlv(SEQUENCE, tlv(SEQUENCE, *(fields | replaced).values()), *signature)


def with_extensions(*extensions: bytes) -> bytes:
    return tlv(EXTENSIONS, tlv(SEQUENCE, *extensions))
