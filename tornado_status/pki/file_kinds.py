"""The kind of a file with a certificate or a key, and the command that makes a usable one. Pure."""

from __future__ import annotations

import re
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_private_key

from tornado_status.pki.certificates import PEM_BEGIN

# A sequence of version 3 and another sequence: RFC 7292, 4. `.` and (?s): the length, of 0-3 bytes.
_PKCS12 = re.compile(rb"(?s)\x30(?:[\x00-\x80]|\x81.|\x82..|\x83...)\x02\x01\x03\x30")
_PRIVATE_KEY = re.compile(rb"-----BEGIN (?:(?!OPENSSH )[A-Z]+ )?PRIVATE KEY-----")
_ENCRYPTED = re.compile(rb"-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type: 4,ENCRYPTED", re.M)
_OTHERS = {
    b"X509 CRL": "a certificate revocation list",
    b"CERTIFICATE REQUEST": "a certificate request, which a CA has yet to sign",
    b"NEW CERTIFICATE REQUEST": "a certificate request, which a CA has yet to sign",
    b"PUBLIC KEY": "a public key",
    b"PKCS7": "a PKCS#7 bundle",
    b"OPENSSH PRIVATE KEY": "an OpenSSH key",
}


def not_a_certificate(path: Path, content: bytes) -> str | None:
    """Return what is in a file that should hold certificates in PEM; None if one is in it."""
    if PEM_BEGIN.search(content):
        return None
    out = path.with_suffix(".pem")
    if _PRIVATE_KEY.search(content) or _ENCRYPTED.search(content):
        return f"{path} holds a private key, not a certificate: are the two files swapped?"
    if _PKCS12.match(content):
        take_out = f"openssl pkcs12 -in {path} -nokeys -out {out}"
        return f"{path} is a PKCS#12 file, not PEM: `{take_out}` takes out its certificates"
    if _is_der_certificate(content):
        convert = f"openssl x509 -inform DER -in {path} -out {out}"
        return f"{path} is a certificate in DER, not PEM: `{convert}` converts it"
    return f"{path} holds {_other(content)}, not a certificate in PEM"


def not_a_key(path: Path, content: bytes) -> str | None:
    """Return what is in a file that should hold a private key in PEM; None if one is in it."""
    out = path.with_suffix(".pem")
    if _ENCRYPTED.search(content):
        decrypt = f"openssl pkey -in {path} -out {out}"
        return (
            f"{path} is an encrypted key, and the server cannot ask for its password: `{decrypt}`"
        )
    if _PRIVATE_KEY.search(content):
        return None
    if b"-----BEGIN CERTIFICATE-----" in content:
        return f"{path} holds a certificate, not a private key: are the two files swapped?"
    if _PKCS12.match(content):
        take_out = f"openssl pkcs12 -in {path} -nocerts -nodes -out {out}"
        return f"{path} is a PKCS#12 file, not PEM: `{take_out}` takes out its key"
    if _is_der_key(content):
        convert = f"openssl pkey -inform DER -in {path} -out {out}"
        return f"{path} is a private key in DER, not PEM: `{convert}` converts it"
    return f"{path} holds {_other(content)}, not a private key in PEM"


def _other(content: bytes) -> str:
    if not content.strip():
        return "nothing"
    label = re.search(rb"-----BEGIN ([A-Z0-9 .]+)-----", content)
    return _OTHERS.get(label[1], "other PEM") if label else "no PEM"


def _is_der_certificate(content: bytes) -> bool:
    if not content.startswith(b"\x30"):
        return False
    try:
        x509.load_der_x509_certificate(content)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        return False
    return True


def _is_der_key(content: bytes) -> bool:
    if not content.startswith(b"\x30"):
        return False
    try:
        load_der_private_key(content, password=None)
    except TypeError:  # encrypted
        return True
    except (ValueError, UnsupportedAlgorithm):
        return False
    return True
