"""X.509 certificates as values: read whole or not at all, who issued whom, and what is too weak.

Pure: no files. What a certificate says of its holder is `identity`'s, what a CA may vouch for is
`authorities`'.
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
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import SignatureAlgorithmOID

MIN_RSA_BITS = 2048  # NIST SP 800-57: 112 bits of security

# What `cryptography` raises for certificates and lists that it cannot read, for some parts only
# once they are looked at. Each was found by a test.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)

# The filters are the process's: of two who change them at once, one would keep those of the other.
_filters = threading.Lock()
_BEGINS = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what `cryptography` warns of to itself: odd serial numbers and names.

    A peer could fill the log, and what the library still reads is good enough. For short work: one
    at a time.
    """
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_pem(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Return all certificates in PEM, at least one, each of which can be read in all its parts.

    A file that ends in the middle is refused, and so is one with a certificate that is none: it
    must not be taken for a shorter list. Raises `ValueError` in a sentence.
    """
    begins = [found.start() for found in _BEGINS.finditer(pem)]
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
    """Say whether `ca`'s key has signed the certificate, in its name (see `same_name`).

    By the signature: another CA may have the same name, or have had it. Whether it is a CA is for
    others to judge.
    """
    try:
        if not same_name(certificate.issuer, ca.subject):
            return False
        if certificate.issuer.public_bytes() == ca.subject.public_bytes():
            certificate.verify_directly_issued_by(ca)
            return True
        # The above compares bytes. It does not believe in weak hashes either.
        return weak_signature(certificate) is None and _is_key_of(ca, certificate)
    except (InvalidSignature, *UNREADABLE):
        return False


def same_name(one: x509.Name, other: x509.Name) -> bool:
    """Say whether two names are equal as OpenSSL compares them (RFC 5280, 7.1).

    Neither the type of the strings matters, nor upper and lower case, nor how many spaces there
    are. Raises `UNREADABLE`.
    """
    return one == other or _canonical(one) == _canonical(other)


def self_signed(certificate: x509.Certificate) -> bool:
    """Say whether its own key has signed it, with whatever hash: then it is a root, if anything.

    Old roots have SHA-1, which is good enough for no other signature.
    """
    try:
        return same_name(certificate.issuer, certificate.subject) and _is_key_of(
            certificate, certificate
        )
    except UNREADABLE:
        return False


def ca_id(ca: x509.Certificate) -> bytes:
    """Return what a CA is by: its name and its key, as one hash.

    The same for all certificates of a CA, renewed or cross-signed, however they spell its name (see
    `same_name`); another one for a CA of the same name with another key. Raises `UNREADABLE`.
    """
    key = ca.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    name = repr(_canonical(ca.subject)).encode()
    return hashlib.sha256(len(name).to_bytes(4, "big") + name + key).digest()


def weak_key(certificate: x509.Certificate) -> str | None:
    """Return in a sentence why the certificate's key can be found out, or None.

    Raises `UNREADABLE`.
    """
    key = certificate.public_key()
    if isinstance(key, dsa.DSAPublicKey):
        return "DSA keys are not accepted"
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        return f"RSA keys below {MIN_RSA_BITS} bits are not accepted"
    return None


def weak_signature(certificate: x509.Certificate) -> str | None:
    """Return in a sentence why the certificate's signature can be forged, or None.

    Raises `UNREADABLE`.
    """
    algorithm = certificate.signature_hash_algorithm
    if isinstance(algorithm, hashes.SHA1 | hashes.MD5):
        return f"{algorithm.name.upper()} signatures are not accepted"
    return None


def _read_all(certificate: x509.Certificate) -> None:
    """Look at every part that anybody here will want. Raises `UNREADABLE`."""
    certificate.subject.rfc4514_string()
    certificate.issuer.rfc4514_string()
    _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    _ = certificate.serial_number, certificate.extensions
    ca_id(certificate)


def _canonical(name: x509.Name) -> list[list[tuple[str, str]]]:
    """Return the parts of a name, each a set of types and values, in their one spelling."""
    return [
        sorted((part.oid.dotted_string, _canonical_value(part.value)) for part in parts)
        for parts in name.rdns
    ]


def _canonical_value(value: str | bytes) -> str:
    # Two spaces: no text has them, so no bits look like one.
    return f"#  {value.hex()}" if isinstance(value, bytes) else " ".join(value.lower().split())


def _is_key_of(ca: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Say whether `ca`'s key has signed the certificate. Raises `UNREADABLE`."""
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


def _padding(certificate: x509.Certificate) -> padding.PKCS1v15 | padding.PSS:
    # Not asked for what needs none: of SHA-1 `cryptography` knows no parameters.
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.RSASSA_PSS:
        return padding.PKCS1v15()
    found = certificate.signature_algorithm_parameters
    if not isinstance(found, padding.PSS):
        raise ValueError("RSASSA-PSS without its parameters")
    return found
