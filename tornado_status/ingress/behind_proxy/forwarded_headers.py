"""Headers of a TLS-terminating proxy: the client's certificate, chain and address. Pure.

Headers are lines as they came, in order. Anything that is not exactly as expected is a
`ForwardedError`: a guess could mistake one client for another.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tornado_status.errors import ForwardedError
from tornado_status.model.records import normalise_ip

Lines = Callable[[str], Sequence[str]]  # the values of all lines of a header, by its name

MAX_CHAIN = 8  # certificates; OpenSSL and `cryptography` go no deeper
MAX_HOPS = 32  # addresses read; a longer path is a loop

# A list of RFC 9110 and its parameters, each cut at the separator outside of quotation marks.
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_ELEMENT = re.compile(rf'((?:[^",]|{_QUOTED})*)(,|\Z)')
_PARAMETER = re.compile(rf'((?:[^";]|{_QUOTED})*)(;|\Z)')
_ESCAPED = re.compile(r"\\(.)")
_BYTE_SEQUENCE = re.compile(r":([A-Za-z0-9+/]*={0,2}):")
_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::(\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class ForwardedCertificate:
    """A client's certificate and the chain it sent, in DER and not verified."""

    certificate: bytes
    chain: tuple[bytes, ...]


def certificate_lines(name: str, lines: Lines) -> tuple[str, ...]:
    """Return the text of the certificate's header, empty if there is none, and of its chain's.

    Raises `ForwardedError` if the header is there twice: one of the two is not the proxy's.
    """
    values = lines(name)
    if len(values) > 1:
        raise ForwardedError("certificate-header", f"{name}: more than one from the proxy")
    if not values or not values[0].strip():
        return ()
    chain = lines("Client-Cert-Chain") if name == "client-cert" else ()
    return (values[0], *chain)


def read_certificate(name: str, texts: Sequence[str]) -> ForwardedCertificate:
    """Read what `certificate_lines` returned. Raises `ForwardedError`."""
    try:
        found = _READERS[name](texts)
    except (ValueError, binascii.Error) as error:
        raise ForwardedError("certificate-header", f"{name}: {error}") from error
    if len(found.chain) > MAX_CHAIN:
        raise ForwardedError("certificate-header", f"{name}: more than {MAX_CHAIN} certificates")
    return found


def client_address(name: str, lines: Lines, proxies: Container[str]) -> tuple[str, int]:
    """Return the address and port (0: unknown) that the nearest trusted proxy saw.

    Each proxy appends to the header, so it is read from its end, over the trusted proxies to the
    first other address. A client can forge all that stands before it. Raises `ForwardedError`.
    """
    text = ",".join(lines(name))
    nodes = [node for node in _split(_ELEMENT, text, name) if node]
    if not nodes:
        raise ForwardedError("client-address", f"{name}: missing from the proxy")
    address = "", 0
    for node in nodes[: -MAX_HOPS - 1 : -1]:
        address = _node(_for(node, name) if name == "forwarded" else node, name)
        if address[0] not in proxies:
            break
    return address


def _rfc9440(texts: Sequence[str]) -> ForwardedCertificate:
    certificate = _byte_sequence(texts[0].strip())
    items = [item for item in _split(_ELEMENT, ",".join(texts[1:]), "client-cert-chain") if item]
    return ForwardedCertificate(certificate, tuple(map(_byte_sequence, items)))


def _byte_sequence(text: str) -> bytes:
    match = _BYTE_SEQUENCE.fullmatch(text)
    if match is None:
        raise ValueError("expected one byte sequence between colons (RFC 9440)")
    return base64.b64decode(match[1], validate=True)


def _escaped_pem(texts: Sequence[str]) -> ForwardedCertificate:
    return ForwardedCertificate(_one(_pem(texts[0])), ())


def _xfcc(texts: Sequence[str]) -> ForwardedCertificate:
    name = "x-forwarded-client-cert"
    elements = _split(_ELEMENT, texts[0], name)
    if len(elements) != 1:
        raise ValueError("expected one element (forward_client_cert_details: SANITIZE_SET)")
    found: dict[str, str] = {}
    for key, value in _parameters(elements[0], name):
        if key in ("cert", "chain"):
            if key in found:
                raise ValueError(f"more than one {key}")
            found[key] = value
    if "cert" not in found:
        raise ValueError("no Cert in it (set_current_client_cert_details: {cert: true})")
    certificate = _one(_pem(found["cert"]))
    chain = _pem(found["chain"]) if "chain" in found else []
    return ForwardedCertificate(certificate, tuple(der for der in chain if der != certificate))


_READERS = {
    "client-cert": _rfc9440,
    "x-ssl-client-cert": _escaped_pem,
    "x-forwarded-client-cert": _xfcc,
}


def _pem(escaped: str) -> list[bytes]:
    pem = unquote_to_bytes(escaped.strip())
    if not pem.startswith(b"-----BEGIN CERTIFICATE-----"):
        raise ValueError("expected a certificate as URL-encoded PEM")
    try:
        certificates = x509.load_pem_x509_certificates(pem)
        return [certificate.public_bytes(Encoding.DER) for certificate in certificates]
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise ValueError("expected a certificate as URL-encoded PEM") from error


def _one(certificates: list[bytes]) -> bytes:
    if len(certificates) != 1:
        raise ValueError("expected one certificate")
    return certificates[0]


def _split(pattern: re.Pattern[str], text: str, name: str) -> list[str]:
    found, start = [], 0
    while True:
        match = pattern.match(text, start)
        if match is None:
            raise ForwardedError("forwarded-header", f"{name}: not a list of parameters")
        found.append(match[1].strip())
        if not match[2]:
            return found
        start = match.end()


def _parameters(element: str, name: str) -> list[tuple[str, str]]:
    found = []
    for parameter in _split(_PARAMETER, element, name):
        key, equals, value = parameter.partition("=")
        if equals:
            if value.startswith('"') and value.endswith('"') and len(value) > 1:
                value = _ESCAPED.sub(r"\1", value[1:-1])
            found.append((key.strip().lower(), value))
    return found


def _for(element: str, name: str) -> str:
    values = [value for key, value in _parameters(element, name) if key == "for"]
    if len(values) != 1:
        raise ForwardedError("client-address", f"{name}: expected one for= in each element")
    return values[0]


def _node(text: str, name: str) -> tuple[str, int]:
    match = _NODE.fullmatch(text)
    try:
        if match is None:  # IPv6 without brackets, as X-Forwarded-For has it
            return normalise_ip(str(ipaddress.IPv6Address(text))), 0
        address = normalise_ip(str(ipaddress.ip_address(match[1] or match[2])))
        port = int(match[3] or 0)
        if port > 65535:
            raise ValueError(text)
    except ValueError as error:
        raise ForwardedError("client-address", f"{name}: expected the client's address") from error
    return address, port
