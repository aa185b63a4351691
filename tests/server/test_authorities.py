"""Name constraints, strength and dates of every CA above a client.

In memory, and over real connections in both modes.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import http.client
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from certs_gen.authority import (
    Authority,
    Credential,
    Extension,
    PrivateKey,
    common_name,
    leaf_extensions,
    new_key,
)
from tests.support.chains import CLIENT_CLASSES, Builder
from tests.support.der import content, tlv
from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    Answer,
    Server,
    StartServer,
    exchange,
    plain_environment,
)
from tornado_status.ingress.trust import Trust
from tornado_status.model.email_address import MAX_COMMON_NAME
from tornado_status.pki.authorities import read_authority
from tornado_status.pki.certificates import issued_by
from tornado_status.pki.chain_paths import REVOKED
from tornado_status.pki.crl import read_crls, replace_crls
from tornado_status.pki.name_constraints import email_name
from tornado_status.pki.trust_anchors import Anchors

DAY = datetime.timedelta(days=1)
IS_CA: Extension = (x509.BasicConstraints(ca=True, path_length=None), True)
SENTENCE = "The certificate's CA may not issue to this e-mail address, or to another name of it"
PROXY_IP = "127.0.0.2"


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def constraints(permitted: Sequence[str] = (), excluded: Sequence[str] = ()) -> Extension:
    """Constraints on e-mail addresses, in any form, also such as the library would not write."""
    inner = [
        [x509.RFC822Name._init_without_validation(text) for text in texts] or None
        for texts in (permitted, excluded)
    ]
    return x509.NameConstraints(permitted_subtrees=inner[0], excluded_subtrees=inner[1]), True


def root(*extensions: Extension) -> Authority:
    """A root with these extensions besides, above any number of CAs."""
    plain = Authority.create()
    certificate = plain.certify(
        plain.certificate.public_key(),
        plain.certificate.subject,
        [IS_CA, *extensions],
        not_before=now() - DAY,
        not_after=now() + DAY,
    )
    return Authority(certificate, plain.key)


def below(authority: Authority, *extensions: Extension, name: str = "devices") -> Authority:
    """An intermediate CA."""
    key = new_key("ec")
    certificate = authority.certify(
        key.public_key(),
        common_name(name),
        [IS_CA, *extensions],
        not_before=now() - DAY,
        not_after=now() + DAY,
    )
    return Authority(certificate, key)


def client(authority: Authority, email: str) -> Credential:
    """A client whose e-mail is its common name alone, which OpenSSL holds against nothing."""
    key = new_key("ec")
    certificate = authority.certify(
        key.public_key(),
        common_name(email),
        leaf_extensions([ExtendedKeyUsageOID.CLIENT_AUTH]),
        not_before=now() - DAY,
        not_after=now() + DAY,
    )
    return Credential(certificate, key)


def der(*credentials: Credential) -> list[bytes]:
    return [each.certificate.public_bytes(Encoding.DER) for each in credentials]


# ------------------------------------------------------------------------------------- in memory

FORMS = [
    # constraint, an address within, addresses without
    ("example.com", "a@example.com", ["a@host.example.com", "a@badexample.com", "a@example.org"]),
    (".example.com", "a@host.example.com", ["a@example.com", "a@badexample.com", "a@com.com"]),
    (".example.com", "a@b.c.example.com", ["a@host.example.org"]),
    ("ann@example.com", "ann@example.com", ["bob@example.com", "ann@host.example.com"]),
    ("Ann@Example.COM", "ann@example.com", ["bob@example.com"]),
    ("EXAMPLE.com", "a@example.com", ["a@example.org"]),
    ("@example.com", "a@example.com", ["a@host.example.com", "a@example.org"]),
    ("xn--bcher-kva.example", "a@xn--bcher-kva.example", ["a@bucher.example"]),
    ("", "a@example.com", []),
]


@pytest.mark.parametrize(("constraint", "within", "without"), FORMS)
def test_a_constraint_is_a_host_a_domain_or_a_mailbox(
    constraint: str, within: str, without: list[str]
) -> None:
    """As RFC 5280 has them; what is permitted to one CA is excluded from another."""
    for extension, good, bad in (
        (constraints(permitted=[constraint]), [within], without),
        (constraints(excluded=[constraint]), without, [within]),
    ):
        [ca] = map(read_authority, der(root(extension)))
        for email in good:
            assert ca.constraints.permits([email_name(email)])
        for email in bad:
            assert not ca.constraints.permits([email_name(email)])


def test_several_constraints_permit_each_and_exclude_each() -> None:
    """Excluded names are refused even if they are permitted."""
    extension = constraints(["example.com", ".example.com"], ["eve@example.com", "x.example.com"])
    [ca] = map(read_authority, der(root(extension)))
    for email in ("a@example.com", "a@y.example.com", "eve@y.example.com"):
        assert ca.constraints.permits([email_name(email)])
    for email in ("eve@example.com", "a@x.example.com", "a@example.org"):
        assert not ca.constraints.permits([email_name(email)])


def test_constraints_on_names_of_other_kinds_constrain_no_address() -> None:
    """A CA for the hosts of a domain is not thereby one for its addresses, nor kept from them."""
    others = x509.NameConstraints(
        permitted_subtrees=[x509.DNSName("example.org")],
        excluded_subtrees=[x509.DNSName("example.com")],
    )
    [ca] = map(read_authority, der(root((others, True))))
    assert ca.constraints.permits([email_name("a@example.com")])


@given(
    local=st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True),
    host=st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8}){1,3}", fullmatch=True),
)
def test_an_address_is_within_itself_its_host_and_the_domains_above(local: str, host: str) -> None:
    """And in nothing else of the same domain."""
    email = f"{local}@{host}"[:MAX_COMMON_NAME]
    domain = host.partition(".")[2]
    ours = [email, host, f".{domain}"]
    theirs = [f"x{email}", f"x{host}", f".{host}", domain]
    for constraint in ours + theirs:
        [ca] = map(read_authority, der(_root_with(constraint)))
        if constraint in ours:
            assert ca.constraints.permits([email_name(email)])
        else:
            assert not ca.constraints.permits([email_name(email)])


def _root_with(constraint: str) -> Authority:
    return root(constraints([constraint]))


@pytest.mark.parametrize("constrained", ["root", "intermediate", "the one below it"])
def test_every_ca_of_the_chain_is_asked(constrained: str) -> None:
    """Whichever it is that may not: all above have to agree."""
    names = ["root", "intermediate", "the one below it"]
    only = [[constraints(["example.com"])] if name == constrained else [] for name in names]
    top = root(*only[0])
    middle = below(top, *only[1])
    lowest = below(middle, *only[2], name="lowest")
    trust = Trust(Anchors((top.certificate,)))
    good, bad = client(lowest, "a@example.com"), client(lowest, "a@example.org")
    assert trust.verify(der(good, lowest, middle, top)).refusal is None
    refusal = trust.verify(der(bad, lowest, middle, top)).refusal
    assert refusal is not None
    assert (refusal.status, refusal.reason, refusal.detail) == (403, "name-constraints", SENTENCE)


def test_a_resumed_session_is_held_to_the_same_constraints() -> None:
    """It knows of no chain: the intermediate CA is known from another client's."""
    top = root()
    middle = below(top, constraints(["example.com"]))
    trust = Trust(Anchors((top.certificate,)))
    assert trust.verify(der(client(middle, "a@example.com"), middle, top)).refusal is None
    assert trust.verify(der(client(middle, "b@example.com")), resumed=True).refusal is None
    refusal = trust.verify(der(client(middle, "b@example.org")), resumed=True).refusal
    assert refusal is not None
    assert refusal.reason == "name-constraints"
    trust = Trust(Anchors((top.certificate,)))
    unknown = trust.verify(der(client(middle, "b@example.com")), resumed=True).refusal
    assert unknown is not None
    assert unknown.reason == "unknown-chain"


def test_a_ca_renewed_without_its_constraints_is_taken_at_its_best() -> None:
    """One path that is good is enough (RFC 5280, 6.1), in whatever order the file has them."""
    narrow = root(constraints(["example.com"]))
    wide = Authority(
        narrow.certify(
            narrow.certificate.public_key(),
            narrow.certificate.subject,
            [IS_CA],
            not_before=now() - DAY,
            not_after=now() + DAY,
        ),
        narrow.key,
    )
    other = client(narrow, "a@example.org")
    for cas in ((narrow, wide), (wide, narrow)):
        trust = Trust(Anchors(tuple(ca.certificate for ca in cas)))
        assert trust.verify(der(other, cas[0])).refusal is None
    assert Trust(Anchors((narrow.certificate,))).verify(der(other, narrow)).refusal is not None


def test_where_a_certificate_comes_from_is_found_once() -> None:
    """A new revocation list costs no signature; a new bundle does, and is verified by it."""
    top, other = root(), root()
    trust = Trust(Anchors((top.certificate,)))
    auth = trust.verify(der(client(top, "a@example.com"), top))
    before = auth.chain_paths
    assert before is not None
    trust.replace(Anchors((top.certificate,)))
    assert trust.check(auth) is None
    assert auth.chain_paths is before
    trust.replace(Anchors((top.certificate, other.certificate)))
    assert trust.check(auth) is None
    assert auth.chain_paths is not before
    trust.replace(Anchors((other.certificate,)))
    refusal = trust.check(auth)
    assert refusal is not None
    assert refusal.reason == "ca-changed"


def test_cas_that_have_signed_each_other_are_tried_within_bounds() -> None:
    """Many certificates of one CA, each of which has issued every other one."""
    first = root()
    same = [
        first.certify(
            first.certificate.public_key(),
            first.certificate.subject,
            [IS_CA, constraints([f"{number}.example.com"])],
            not_before=now() - DAY,
            not_after=now() + DAY,
        )
        for number in range(30)
    ]
    auth = Trust(Anchors(tuple(same))).verify(der(client(first, "a@example.com")))
    assert auth.refusal is not None
    assert auth.chain_paths is not None
    assert 1 < len(auth.chain_paths.paths) <= 30


def test_a_client_named_among_the_cas_is_revoked_like_any_other() -> None:
    """In the file itself it is trusted without its CA, and not against it."""
    top = root()
    leaf = client(top, "a@example.com")
    anchors = (top.certificate, leaf.certificate)
    entry = x509.RevokedCertificateBuilder(leaf.certificate.serial_number, now()).build()
    pem = top.crl([entry], 2).public_bytes(Encoding.PEM)
    lists = replace_crls((), read_crls(pem, anchors, now().timestamp()), anchors)
    for chain in (der(leaf), der(leaf, top)):
        assert Trust(Anchors(anchors)).verify(chain).refusal is None
        assert Trust(Anchors((leaf.certificate,))).verify(chain[:1]).refusal is None
        assert Trust(Anchors(anchors, lists)).verify(chain).refusal == REVOKED


# OpenSSL reads these and `cryptography` does not: an issuer without its serial number (RFC 5280,
# 4.2.1.1 wants both), and an IP address of five bytes.
ODD_EXTENSIONS = {
    "authority key identifier": (
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        "3012a110a40e300c310a300806035504030c0152",
    ),
    "alternative name": (ExtensionOID.SUBJECT_ALTERNATIVE_NAME, "300787050102030405"),
}


@pytest.mark.parametrize(("oid", "value"), ODD_EXTENSIONS.values(), ids=ODD_EXTENSIONS)
def test_an_intermediate_that_cannot_be_read_is_refused(
    oid: x509.ObjectIdentifier, value: str
) -> None:
    """All its extensions are read, and no part of it is passed over."""
    odd: Extension = (x509.UnrecognizedExtension(oid, bytes.fromhex(value)), False)
    top = root()
    trust = Trust(Anchors((top.certificate,)))
    for extensions, reason in (([], None), ([odd], "ca-unreadable")):
        middle = below(top)
        sent = with_extensions(top, middle, *extensions)
        refusal = trust.verify(der(client(middle, "a@a.com"), sent, top)).refusal
        assert (None if refusal is None else refusal.reason) == reason


def with_extensions(top: Authority, ca: Authority, *extensions: Extension) -> Credential:
    """An intermediate CA's certificate with exactly these, beside what makes it one."""
    builder = (
        x509.CertificateBuilder(top.certificate.subject, ca.certificate.subject)
        .public_key(ca.certificate.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - DAY)
        .not_valid_after(now() + DAY)
    )
    for extension, critical in (IS_CA, *extensions):
        builder = builder.add_extension(extension, critical)
    assert isinstance(top.key, ec.EllipticCurvePrivateKey)
    return Credential(builder.sign(top.key, hashes.SHA256()), ca.key)


# -------------------------------------------------------------------------- strength and dates


def with_key(authority: Authority, key: CertificatePublicKeyTypes) -> bytes:
    """A CA's certificate with any key, in DER."""
    certificate = authority.certify(
        key, common_name("odd"), [IS_CA], not_before=now() - DAY, not_after=now() + DAY
    )
    return certificate.public_bytes(Encoding.DER)


def sha1_signed(certificate: x509.Certificate, authority: Authority) -> bytes:
    """Sign a certificate anew with SHA-1, which the library does not do by itself. DER."""
    sha256 = bytes.fromhex("300a06082a8648ce3d040302")
    sha1 = bytes.fromhex("300906072a8648ce3d0401")
    signed = certificate.tbs_certificate_bytes
    assert signed.count(sha256) == 1
    signed = tlv(0x30, content(signed).replace(sha256, sha1))
    key = authority.key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = key.sign(signed, ec.ECDSA(hashes.SHA1()))  # noqa: S303 - that is the point
    return tlv(0x30, signed, sha1, tlv(0x03, b"\0", signature))


def with_serial_0(certificate: x509.Certificate, authority: Authority) -> bytes:
    """Sign a certificate anew with the number 0, which the library does not issue. DER."""
    signed = content(certificate.tbs_certificate_bytes)
    serial = tlv(0x02, _integer(certificate.serial_number))
    assert signed.count(serial) == 1
    signed = tlv(0x30, signed.replace(serial, tlv(0x02, b"\0")))
    key = authority.key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = key.sign(signed, ec.ECDSA(hashes.SHA256()))
    sha256 = bytes.fromhex("300a06082a8648ce3d040302")
    return tlv(0x30, signed, sha256, tlv(0x03, b"\0", signature))


def _integer(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big")


def test_odd_numbers_of_peers_reach_no_log() -> None:
    """The library warns of each of them, and the tests take a warning for an error."""
    top = root()
    middle = below(top)
    leaf = client(middle, "a@example.com")
    chain = [with_serial_0(leaf.certificate, middle), with_serial_0(middle.certificate, top)]
    trust = Trust(Anchors((top.certificate,)))
    auth = trust.verify([*chain, *der(top)])
    assert auth.refusal is None
    trust.replace(trust.anchors)
    assert trust.check(auth) is None
    with pytest.warns(CryptographyDeprecationWarning):
        _ = x509.load_der_x509_certificate(chain[0]).serial_number


def test_a_weak_ca_refuses_all_that_it_has_issued() -> None:
    """An attacker who finds its key, or forges its certificate, can pose as any user."""
    top = root()
    strong = below(top)
    trust = Trust(Anchors((top.certificate,)))
    leaf = client(strong, "a@example.com")
    assert trust.verify(der(leaf, strong, top)).refusal is None
    weak_rsa = rsa.generate_private_key(65537, 1024).public_key()  # noqa: S505 - that is the point
    for ca in (
        with_key(top, weak_rsa),
        with_key(top, dsa.generate_private_key(2048).public_key()),
        sha1_signed(strong.certificate, top),
    ):
        refusal = trust.verify([*der(leaf), ca, *der(top)]).refusal
        assert refusal is not None
        assert (refusal.status, refusal.reason) == (403, "weak-ca")
        assert refusal.detail.startswith("A CA of the certificate is too weak: ")


def test_a_weak_root_is_refused_by_its_key_and_not_by_its_own_signature() -> None:
    """That proves nothing: it is trusted because the operator says so."""
    top = root()
    old = Authority(x509.load_der_x509_certificate(sha1_signed(top.certificate, top)), top.key)
    trust = Trust(Anchors((old.certificate,)))
    assert trust.verify(der(client(old, "a@example.com"), old)).refusal is None
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - that is the point
    weak_root = read_authority(with_key(top, weak.public_key()))
    assert weak_root.flaw is not None
    # The same signature, where something hangs on it:
    middle = below(top)
    signed = read_authority(sha1_signed(middle.certificate, top))
    assert signed.flaw is not None
    assert "SHA1" in signed.flaw.detail


def test_a_ca_that_expires_takes_its_clients_along() -> None:
    """Also those who are connected: the verdict holds no longer than the shortest of the chain."""
    clock = [now().timestamp()]
    top = root()
    key = new_key("ec")
    brief = Authority(
        top.certify(
            key.public_key(),
            common_name("brief"),
            [IS_CA],
            not_before=now() - DAY,
            not_after=now() + DAY / 4,
        ),
        key,
    )
    trust = Trust(Anchors((top.certificate,)), clock=lambda: clock[0])
    auth = trust.verify(der(client(brief, "a@example.com"), brief, top))
    assert auth.refusal is None
    assert auth.valid_until == brief.certificate.not_valid_after_utc.timestamp()
    clock[0] += 86400 / 2
    refusal = trust.check(auth)
    assert refusal is not None
    assert refusal.reason == "ca-expired"


def test_a_renewed_intermediate_lets_its_clients_in_again() -> None:
    """A client refused for the old one is verified by the new one, once it sends that."""
    clock = [now().timestamp()]
    top = root()
    old = below(top)
    renewed = Authority(
        top.certify(
            old.certificate.public_key(),
            old.certificate.subject,
            [IS_CA],
            not_before=now() - DAY,
            not_after=now() + DAY / 2,
        ),
        old.key,
    )
    leaf = client(old, "a@example.com")
    [certificate] = der(leaf)
    trust = Trust(Anchors((top.certificate,)), clock=lambda: clock[0])

    def refusal(*chain: Credential) -> str | None:
        auth = trust.authenticate(certificate, lambda: der(*chain), trust.bundle)
        return None if auth.refusal is None else auth.refusal.reason

    assert refusal(leaf, renewed, top) is None  # the shorter one first
    clock[0] += 86400 * 0.75
    assert refusal() == "ca-expired"
    assert refusal(leaf, renewed, top) == "ca-expired"
    assert refusal(leaf, old, top) is None
    assert refusal() is None  # resumed


def spelt(text: str, kind: _ASN1Type = _ASN1Type.UTF8String) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text, _type=kind)])


def named(key: PrivateKey, name: x509.Name) -> Authority:
    """A root of this name."""
    builder = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - DAY)
        .not_valid_after(now() + DAY)
        .add_extension(*IS_CA)
    )
    own_hash = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return Authority(builder.sign(key, own_hash), key)


SPELLINGS = {
    "another type": spelt("Example Root", _ASN1Type.PrintableString),
    "upper case": spelt("EXAMPLE Root"),
    "spaces": spelt("  Example   Root "),
    "all of it": spelt(" example  ROOT", _ASN1Type.BMPString),
}


@pytest.mark.parametrize(
    "make_key",
    [lambda: new_key("ec"), lambda: new_key("rsa"), ed25519.Ed25519PrivateKey.generate],
    ids=["ec", "rsa", "ed25519"],
)
@pytest.mark.parametrize("name", SPELLINGS.values(), ids=SPELLINGS)
def test_a_ca_is_known_however_its_name_is_spelt(
    name: x509.Name, make_key: Callable[[], PrivateKey]
) -> None:
    """As OpenSSL has it: whom that has let in is not refused for it, and no revoked one let in."""
    key = make_key()
    top, other = named(key, spelt("Example Root")), named(key, name)
    middle = below(other)
    assert read_authority(*der(top)).id == read_authority(*der(other)).id
    for cas in ([top], [other], [top, middle]):
        anchors = tuple(ca.certificate for ca in cas)
        for chain in (
            [client(other, "a@example.com"), top],
            [client(middle, "b@example.com"), middle, top],
        ):
            assert Trust(Anchors(anchors)).verify(der(*chain)).refusal is None
            revoked = x509.RevokedCertificateBuilder(chain[-2].certificate.serial_number, now())
            lists = top.crl([revoked.build()], 2).public_bytes(Encoding.PEM)
            read = replace_crls((), read_crls(lists, anchors, now().timestamp()), anchors)
            assert Trust(Anchors(anchors, read)).verify(der(*chain)).refusal == REVOKED
    # The name alone is nothing, and neither is the key.
    for stranger in (named(new_key("ec"), name), named(key, spelt("Example Root 2"))):
        leaf = client(other, "a@example.com")
        assert Trust(Anchors((stranger.certificate,))).verify(der(leaf)).refusal is not None
        assert read_authority(*der(stranger)).id != read_authority(*der(top)).id


def test_a_signature_with_sha1_is_believed_by_no_name() -> None:
    """However the names are spelt: the CA's own one is all that it is good for."""
    key = new_key("ec")
    top, other = named(key, spelt("Root")), named(key, spelt("ROOT"))
    middle = x509.load_der_x509_certificate(sha1_signed(below(other).certificate, other))
    for ca in (top, other):
        assert not issued_by(middle, ca.certificate)
        assert issued_by(below(other).certificate, ca.certificate)


def test_a_signature_with_rsa_pss_is_verified_by_any_spelling() -> None:
    """It has parameters of its own."""
    key = rsa.generate_private_key(65537, 2048)
    top = named(key, spelt("Root"))
    builder = (
        x509.CertificateBuilder(issuer_name=spelt("ROOT"), subject_name=spelt("a"))
        .public_key(new_key("ec").public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - DAY)
        .not_valid_after(now() + DAY)
    )
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    assert issued_by(builder.sign(key, hashes.SHA256(), rsa_padding=pss), top.certificate)
    other = rsa.generate_private_key(65537, 2048)
    assert not issued_by(builder.sign(other, hashes.SHA256(), rsa_padding=pss), top.certificate)


def test_an_expired_root_in_the_file_ends_the_cas_below_it() -> None:
    """Also one that is in the file itself, as OpenSSL has it; without the root it is an anchor."""
    top = root()
    middle = below(top)
    expired = Authority(
        top.certify(
            top.certificate.public_key(),
            top.certificate.subject,
            [IS_CA],
            not_before=now() - 2 * DAY,
            not_after=now() - DAY,
        ),
        top.key,
    )
    chain = der(client(middle, "a@example.com"), middle)
    for cas, reason in (
        ([expired, middle], "ca-expired"),
        ([middle], None),
        ([expired, middle, top], None),
    ):
        refusal = Trust(Anchors(tuple(ca.certificate for ca in cas))).verify(chain).refusal
        assert (None if refusal is None else refusal.reason) == reason


# ------------------------------------------------------------------------------- over the network


def own_certificates(certs: Path, directory: Path, *cas: Authority) -> Path:
    """A set of which `cas` are the trusted ones; the server's own certificate stays."""
    own = Path(shutil.copytree(certs, directory))
    (own / "clients_ca.crt").write_bytes(b"".join(ca.certificate_pem() for ca in cas))
    return own


def check_in(server: Server, mode: str, chain: Sequence[Credential]) -> Answer:
    """Check in by a handshake, or as a proxy behind one. `chain` is sent, the client first."""
    if mode == "tls":
        name = f"client-{chain[0].certificate.serial_number:x}"
        (server.certs / f"{name}.key").write_bytes(chain[0].key_pem())
        pem = b"".join(each.certificate_pem() for each in chain)
        (server.certs / f"{name}.crt").write_bytes(pem)
        return server.request("POST", "/api/client", cert=name)
    lines = [f":{base64.b64encode(each).decode()}:" for each in der(*chain)]
    headers = {"Client-Cert": lines[0], "X-Forwarded-For": "10.1.2.3"}
    if lines[1:]:
        headers["Client-Cert-Chain"] = ", ".join(lines[1:])
    connection = http.client.HTTPConnection(
        LOOPBACK, server.port, timeout=PATIENCE_S, source_address=(PROXY_IP, 0)
    )
    try:
        connection.request("POST", "/api/client", headers=headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


@pytest.mark.parametrize("mode", ["tls", "proxy"])
def test_a_ca_for_one_domain_can_certify_nobody_else(
    certs: Path, tmp_path: Path, start_server: StartServer, mode: str
) -> None:
    """By no common name, whether it is the root or a CA below it; what it may, it may."""
    wide, narrow = root(), root(constraints(["plant.example"], ["boss@plant.example"]))
    devices = below(wide, constraints([".plant.example"]))
    own = own_certificates(certs, tmp_path / "certs", wide, narrow)
    server = start_server(
        tls={"client_ca": str(own / "clients_ca.crt"), "crl": None},
        **(
            {"ingress": {"mode": "proxy", "trusted_proxies": [PROXY_IP]}} if mode == "proxy" else {}
        ),
    )
    server.certs = own
    for chain in (
        [client(devices, "pump@hall.plant.example"), devices],
        [client(narrow, "ann@plant.example")],
        [client(wide, "anybody@example.org")],
    ):
        assert check_in(server, mode, chain).status == 204
    for chain in (
        [client(devices, "operator@example.com"), devices],
        [client(devices, "boss@plant.example"), devices],
        [client(narrow, "boss@plant.example")],
        [client(narrow, "operator@example.com")],
    ):
        answer = check_in(server, mode, chain)
        assert (answer.status, answer.detail) == (403, SENTENCE)
    assert len(server.rows("SELECT seq FROM check_in")) == 3
    metrics = server.management("/metrics").body.decode()
    assert 'connections_refused_total{reason="name-constraints"} 4.0' in metrics
    assert server.wait_event("identity refused")["reason"] == "name-constraints"


@pytest.mark.parametrize("mode", ["tls", "proxy"])
def test_both_modes_accept_the_same_chains(
    certs: Path, tmp_path: Path, start_server: StartServer, mode: str
) -> None:
    """TLS refuses some of them before the server does, with an alert."""
    chains = {kind: make(Builder("client")) for kind, (make, _) in CLIENT_CLASSES.items()}
    own = Path(shutil.copytree(certs, tmp_path / "certs"))
    anchors = {anchor for chain in chains.values() for anchor in chain.anchors}
    (own / "clients_ca.crt").write_bytes(
        b"".join(each.public_bytes(Encoding.PEM) for each in anchors)
    )
    server = start_server(
        tls={"client_ca": str(own / "clients_ca.crt"), "crl": None},
        **(
            {"ingress": {"mode": "proxy", "trusted_proxies": [PROXY_IP]}} if mode == "proxy" else {}
        ),
    )
    server.certs = own
    accepted = set()
    for kind, chain in chains.items():
        leaf = Credential(chain.leaf.certificate, chain.leaf.key)
        sent = [Credential(each, chain.leaf.key) for each in chain.sent]
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            if check_in(server, mode, [leaf, *sent]).status == 204:
                accepted.add(kind)
    good = {kind for kind, (_, reason) in CLIENT_CLASSES.items() if reason is None}
    assert accepted == good
    assert len(server.rows("SELECT seq FROM check_in")) == len(good)


LENIENT = """
openssl_conf = settings
[settings]
ssl_conf = contexts
[contexts]
system_default = all
[all]
CipherString = DEFAULT@SECLEVEL=0
"""


def security_level(environment: Mapping[str, str]) -> int:
    """OpenSSL's requirements for certificates, for a server in this environment."""
    program = "import ssl; print(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).security_level)"
    said = subprocess.run(
        [sys.executable, "-c", program],
        env={**plain_environment(), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    ).stdout
    return int(said)


@pytest.mark.parametrize("lenient", [True, False])
def test_a_weak_ca_is_refused_even_where_openssl_is_told_to_take_it(
    certs: Path, tmp_path: Path, start_server: StartServer, lenient: bool
) -> None:
    """A machine's settings may lower what OpenSSL asks of certificates, and not what we do.

    Otherwise, or if this Python sets the level itself, OpenSSL refuses with an alert.
    """
    top = root()
    middle = below(top)
    old = Authority(
        x509.load_der_x509_certificate(sha1_signed(middle.certificate, top)), middle.key
    )
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505 - that is the point
    weak = Authority(x509.load_der_x509_certificate(with_key(top, key.public_key())), key)
    (tmp_path / "openssl.cnf").write_text(LENIENT)
    environment = {"OPENSSL_CONF": str(tmp_path / "openssl.cnf")} if lenient else {}
    takes_it = security_level(environment) == 0
    own = own_certificates(certs, tmp_path / "certs", top)
    server = start_server(
        tls={"client_ca": str(own / "clients_ca.crt"), "crl": None},
        environment=environment,
    )
    for number, ca in enumerate((old, weak), 1):
        person = client(ca, "a@example.com")
        (own / "weak.pem").write_bytes(
            person.key_pem() + person.certificate_pem() + ca.certificate_pem()
        )
        context = ssl.create_default_context(cafile=str(own / "ca.crt"))
        context.set_ciphers("DEFAULT@SECLEVEL=0")  # or it would not send them
        context.load_cert_chain(own / "weak.pem")
        connection = http.client.HTTPSConnection(
            "localhost", server.port, context=context, timeout=PATIENCE_S
        )
        with contextlib.closing(connection):
            if takes_it:
                answer = exchange(connection, "POST", "/api/client")
            else:
                with pytest.raises(ssl.SSLError, match="alert"):
                    exchange(connection, "POST", "/api/client")
        if takes_it:
            assert answer.status == 403
            assert str(answer.detail).startswith("A CA of the certificate is too weak: ")
            told = f'connections_refused_total{{reason="weak-ca"}} {number}.0'
            assert told in server.management("/metrics").body.decode()
    assert server.rows("SELECT count(*) FROM check_in") == [(0,)]


def test_an_open_connection_notices_that_its_ca_is_constrained(
    certs: Path, tmp_path: Path, start_server: StartServer
) -> None:
    """A CA that is renewed with constraints loses those whom it may not certify any more."""
    wide = root()
    narrow = Authority(
        wide.certify(
            wide.certificate.public_key(),
            wide.certificate.subject,
            [IS_CA, constraints(["example.com"])],
            not_before=now() - DAY,
            not_after=now() + DAY,
        ),
        wide.key,
    )
    own = own_certificates(certs, tmp_path / "certs", wide)
    server = start_server(tls={"client_ca": str(own / "clients_ca.crt"), "crl": None})
    server.certs = own
    stranger = client(wide, "a@example.org")
    assert check_in(server, "tls", [stranger]).status == 204
    connection = server.connect(f"client-{stranger.certificate.serial_number:x}")
    assert exchange(connection, "POST", "/api/client").status == 204
    fresh = own / "clients_ca.new"
    fresh.write_bytes(narrow.certificate_pem())
    fresh.replace(own / "clients_ca.crt")
    server.wait_event("certificates and keys reloaded")
    try:
        assert exchange(connection, "POST", "/api/client").detail == SENTENCE
    except http.client.RemoteDisconnected:
        pass  # idle for so long that it was closed already
    connection.close()
    assert check_in(server, "tls", [stranger]).detail == SENTENCE
    assert check_in(server, "tls", [client(wide, "a@example.com")]).status == 204
