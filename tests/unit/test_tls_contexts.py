"""The server's TLS context: the certificates that it sends."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs_gen.authority import (
    Authority,
    Credential,
    common_name,
    leaf_extensions,
    new_key,
)
from tests.support.chains import CA, key_usage
from tornado_status.config.settings import TlsSettings
from tornado_status.pki.certificates import read_pem
from tornado_status.pki.tls_contexts import server_context, with_issuers


def intermediate(above: Authority, name: str) -> Authority:
    key = new_key("ec")
    certificate = above.certify(
        key.public_key(),
        common_name(name),
        [CA, (key_usage("key_cert_sign", "crl_sign"), True)],
        not_before=above.certificate.not_valid_before_utc,
        not_after=above.certificate.not_valid_after_utc,
    )
    return Authority(certificate, key)


def server_of(ca: Authority) -> Credential:
    key = new_key("ec")
    certificate = ca.certify(
        key.public_key(),
        common_name("server"),
        leaf_extensions([ExtendedKeyUsageOID.SERVER_AUTH], [x509.DNSName("localhost")]),
        not_before=ca.certificate.not_valid_before_utc,
        not_after=ca.certificate.not_valid_after_utc,
    )
    return Credential(certificate, key)


def pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def certificates_sent(context: ssl.SSLContext) -> bytes:
    """Return the body of the server's message Certificate, which TLS 1.2 sends in clear."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = context.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(ssl.MemoryBIO(), to_server)
    with pytest.raises(ssl.SSLWantReadError):
        theirs.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        ours.do_handshake()
    records, messages = to_client.read(), b""
    while records:
        length = int.from_bytes(records[3:5])
        messages, records = messages + records[5 : 5 + length], records[5 + length :]
    while messages:
        kind, length = messages[0], int.from_bytes(messages[1:4])
        if kind == 11:
            return messages[4 : 4 + length]
        messages = messages[4 + length :]
    raise AssertionError("no message Certificate")


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_certificate_alone_is_sent_with_its_issuers(depth: int, tmp_path: Path) -> None:
    """The same bytes as OpenSSL sends, which looks for them in each handshake, and needs not.

    In a context that knows no CAs, OpenSSL sends what it was given and no more.
    """
    cas = [Authority.create(name="root")]
    for number in range(depth):
        cas.append(intermediate(cas[-1], f"intermediate {number}"))
    server = server_of(cas[-1])
    certificate, key, client_ca = (tmp_path / name for name in ("server.crt", "server.key", "ca"))
    certificate.write_bytes(server.certificate_pem())
    key.write_bytes(server.key_pem())
    others = [Authority.create(name=name).certificate for name in ("another", "root")]
    client_ca.write_bytes(pem([*others, *(ca.certificate for ca in cas)]))

    openssl = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    openssl.load_cert_chain(certificate, key)
    alone = certificates_sent(openssl)
    openssl.load_verify_locations(client_ca)
    settings = TlsSettings(
        certificate=certificate,
        private_key=key,
        client_ca=client_ca,
        crl=None,
        minimum_version="1.2",
    )
    sent = certificates_sent(server_context(settings))
    assert sent == certificates_sent(openssl) != alone

    given = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with with_issuers(certificate, [server.certificate], read_pem(client_ca.read_bytes())) as file:
        given.load_cert_chain(file, key)
    assert certificates_sent(given) == sent
    chain = [server.certificate, *(ca.certificate for ca in reversed(cas))]
    places = [sent.find(each.public_bytes(Encoding.DER)) for each in chain]
    assert -1 not in places
    assert places == sorted(places)


def test_a_chain_that_the_file_has_is_sent_as_it_is(tmp_path: Path) -> None:
    """It may leave out the root, which clients have."""
    root = Authority.create()
    below = intermediate(root, "intermediate")
    server = server_of(below)
    certificate, key, client_ca = (tmp_path / name for name in ("server.crt", "server.key", "ca"))
    certificate.write_bytes(pem([server.certificate, below.certificate]))
    key.write_bytes(server.key_pem())
    client_ca.write_bytes(root.certificate_pem())
    settings = TlsSettings(
        certificate=certificate,
        private_key=key,
        client_ca=client_ca,
        crl=None,
        minimum_version="1.2",
    )
    sent = certificates_sent(server_context(settings))
    assert below.certificate.public_bytes(Encoding.DER) in sent
    assert root.certificate.public_bytes(Encoding.DER) not in sent
