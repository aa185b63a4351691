"""X.509 certificates as values: reading them, finding their issuers, refusing weak ones. Pure.

`identity` reads the holder of a certificate, `authorities` the limits of a CA.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import warnings
from collections.abc import Iterator
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import SignatureAlgorithmOID

MIN_RSA_BITS = 2048  # NIST SP 800-57: 112 bits of security
# Of verifying a signature: the bits of the modulus, squared, times those of the exponent. It allows
# OpenSSL's largest key with the usual exponent, 65537, in a millisecond.
MAX_RSA_WORK = 16384**2 * 17
MIN_EC_BITS = 224  # the same, as OpenSSL's security level 2 asks in a handshake

PEM_BEGIN = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----")  # as OpenSSL reads it

# The exceptions of `cryptography` for certificates and CRLs that it cannot read, some of them only
# when a part is read. Each was found by a test.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)

# Warning filters belong to the process: two threads that change them at once would mix them up.
_filters = threading.Lock()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence the warnings of `cryptography` about odd serial numbers and names.

    A peer could fill the log with them, and a certificate that the library reads is good enough.
    For short work: it holds a lock.
    """
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_pem(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Return all certificates in PEM, at least one, each readable in all its parts.

    Raises `ValueError`, with the reason as a sentence, if one is cut off or unreadable: the file
    must not be taken for a shorter one.
    """
    begins = [found.start() for found in PEM_BEGIN.finditer(pem)]
    if not begins:
        raise ValueError("it holds no certificate in PEM")
    blocks = (pem[start:end] for start, end in pairwise([*begins, len(pem)]))
    return tuple(_read_block(block, number) for number, block in enumerate(blocks, 1))


def _read_block(pem: bytes, number: int) -> x509.Certificate:
    try:
        with quietly():
            certificate = x509.load_pem_x509_certificate(pem)
            _read_all(certificate)
    except UNREADABLE as error:
        raise ValueError(
            f"it holds a certificate that cannot be read (number {number}: {error})"
        ) from error
    return certificate


def issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Return whether `ca`'s key has signed the certificate, in its name (see `same_name`).

    The signature decides, because another CA may have or have had the same name. This does not
    check that `ca` is a CA.
    """
    try:
        if not same_name(certificate.issuer, ca.subject) or _verifies_slowly(ca.public_key()):
            return False
        if certificate.issuer.public_bytes() == ca.subject.public_bytes():
            certificate.verify_directly_issued_by(ca)
            return True
        # The above compares bytes, and it refuses weak hashes, so this does too.
        return weak_signature(certificate) is None and _is_key_of(ca, certificate)
    except (InvalidSignature, *UNREADABLE):
        return False


def same_name(one: x509.Name, other: x509.Name) -> bool:
    """Return whether two names are equal as OpenSSL compares them (RFC 5280, 7.1).

    The type of the strings, upper and lower case and the number of spaces do not matter. Raises
    `UNREADABLE`.
    """
    return one == other or canonical_name(one) == canonical_name(other)


def self_signed(certificate: x509.Certificate) -> bool:
    """Return whether a certificate's own key has signed it, with any hash, as it has a root's.

    Old roots have SHA-1, which is refused in all other signatures.
    """
    try:
        return same_name(certificate.issuer, certificate.subject) and _is_key_of(
            certificate, certificate
        )
    except UNREADABLE:
        return False


def ca_id(ca: x509.Certificate) -> bytes:
    """Return the identity of a CA: one hash of its name and its key.

    All certificates of a CA, renewed or cross-signed, have the same, however they spell its name
    (see `same_name`). A CA of the same name with another key has another. Raises `UNREADABLE`.
    """
    key = ca.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    name = repr(canonical_name(ca.subject)).encode()
    return hashlib.sha256(len(name).to_bytes(4, "big") + name + key).digest()


def weak_key(certificate: x509.Certificate) -> str | None:
    """Return as a sentence why the certificate's key is too weak, or None.

    Raises `UNREADABLE`.
    """
    key = certificate.public_key()
    if isinstance(key, dsa.DSAPublicKey):
        return "DSA keys are not accepted"
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        return f"RSA keys below {MIN_RSA_BITS} bits are not accepted"
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.key_size < MIN_EC_BITS:
            return f"EC keys below {MIN_EC_BITS} bits are not accepted"
        if not _names_its_curve(certificate, key):
            return "EC keys with explicit parameters are not accepted"
    return None


def weak_signature(certificate: x509.Certificate) -> str | None:
    """Return as a sentence why the certificate's signature can be forged, or None.

    Raises `UNREADABLE`.
    """
    algorithm = certificate.signature_hash_algorithm
    if isinstance(algorithm, hashes.SHA1 | hashes.MD5):
        return f"{algorithm.name.upper()} signatures are not accepted"
    return None


def _read_all(certificate: x509.Certificate) -> None:
    """Read every part that this package uses. Raises `UNREADABLE`."""
    certificate.subject.rfc4514_string()
    certificate.issuer.rfc4514_string()
    _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    _ = certificate.serial_number, certificate.extensions
    ca_id(certificate)


def canonical_name(name: x509.Name) -> list[list[tuple[str, str]]]:
    """Return the parts of a name, each a set of types and values, in their one spelling."""
    return [
        sorted((part.oid.dotted_string, _canonical_value(part.value)) for part in parts)
        for parts in name.rdns
    ]


def _canonical_value(value: str | bytes) -> str:
    # Two spaces: no canonical text has them, so no bit string equals one.
    return f"#  {value.hex()}" if isinstance(value, bytes) else " ".join(value.lower().split())


def _is_key_of(ca: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Return whether `ca`'s key has signed the certificate. Raises `UNREADABLE`."""
    key, algorithm = ca.public_key(), certificate.signature_hash_algorithm
    signature, signed = certificate.signature, certificate.tbs_certificate_bytes
    try:
        if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
            key.verify(signature, signed)
        elif algorithm is None:
            return False
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, signed, ec.ECDSA(algorithm))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, signed, _padding(certificate), algorithm)
        else:
            return False
    except InvalidSignature:
        return False
    return True


def _verifies_slowly(key: CertificatePublicKeyTypes) -> bool:
    """Return whether a key takes long to verify a signature: a client can make a CA with one."""
    if not isinstance(key, rsa.RSAPublicKey):
        return False
    return key.key_size**2 * key.public_numbers().e.bit_length() > MAX_RSA_WORK


def _padding(certificate: x509.Certificate) -> padding.PKCS1v15 | padding.PSS:
    # Only PSS has parameters, and `cryptography` cannot read those of SHA-1.
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.RSASSA_PSS:
        return padding.PKCS1v15()
    found = certificate.signature_algorithm_parameters
    if not isinstance(found, padding.PSS):
        raise ValueError("RSASSA-PSS without its parameters")
    return found


def _names_its_curve(certificate: x509.Certificate, key: ec.EllipticCurvePublicKey) -> bool:
    """Return whether the certificate has the curve's OID (RFC 5480, 2.1.1)."""
    information = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    start = information.index(b"\x30", 1)  # the algorithm and its curve, behind the outer length
    return information[start : start + 2 + information[start + 1]] in (
        certificate.tbs_certificate_bytes
    )
