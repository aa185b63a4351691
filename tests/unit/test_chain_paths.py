"""Each class of chains, as a client's and as an announcer's: one builder decides about both."""

from __future__ import annotations

import datetime
import math
import secrets
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from certs_gen.authority import Authority, common_name
from listeners.verify.known_announcers import KnownAnnouncers
from listeners.verify.verifier import Verifier
from tests.support.chains import CA, CLASSES, CLIENT_CLASSES, DAY, Builder, Chain, root
from tests.support.harness import PATIENCE_S
from tornado_status.errors import AnnouncerError
from tornado_status.ingress.trust import Trust
from tornado_status.pki.announcer_keys import verify_announcer
from tornado_status.pki.certificates import issued_by, weak_key
from tornado_status.pki.name_constraints import MAX_COMPARISONS, Constraints, email_name
from tornado_status.pki.trust_anchors import Anchors


def as_client(chain: Chain) -> str | None:
    trust = Trust(Anchors(tuple(chain.anchors)))
    sent = [chain.leaf.certificate, *chain.sent]
    refusal = trust.verify([each.public_bytes(Encoding.DER) for each in sent]).refusal
    return None if refusal is None else refusal.reason


@pytest.mark.parametrize("kind", CLIENT_CLASSES)
def test_a_clients_chain_is_good_or_refused_with_a_reason(kind: str) -> None:
    """Without TLS, which has refused some of them already."""
    make, reason = CLIENT_CLASSES[kind]
    assert as_client(make(Builder("client"))) == reason


@pytest.mark.parametrize("kind", CLASSES)
def test_an_announcers_chain_is_held_to_the_same(kind: str) -> None:
    """A listener refuses whatever a server refuses of a client."""
    make, reason = CLASSES[kind]
    chain = make(Builder("announcer"))
    now = datetime.datetime.now(datetime.UTC)
    try:
        key = verify_announcer([chain.leaf.certificate, *chain.sent], chain.anchors)
    except AnnouncerError:
        accepted = False
    else:
        accepted = key.is_valid(now)
    assert accepted == (reason is None)


CHAINS = [make(Builder("client")) for make, _ in CLIENT_CLASSES.values()]


@given(st.sampled_from(CHAINS), st.integers(0), st.integers(0), st.integers(0, 255))
def test_any_byte_may_be_wrong(chain: Chain, which: int, position: int, value: int) -> None:
    """The result is a refusal, or that the chain is good, and no other error."""
    sent = [each.public_bytes(Encoding.DER) for each in (chain.leaf.certificate, *chain.sent)]
    which %= len(sent)
    changed = bytearray(sent[which])
    changed[position % len(changed)] = value
    sent[which] = bytes(changed)
    Trust(Anchors(tuple(chain.anchors))).verify(sent)


def test_a_listener_drops_an_announcer_when_a_ca_above_expires() -> None:
    """The dates of the whole chain are checked when a key is used, not when it came."""
    top = root(end=10 * DAY)
    middle = top.sign("devices", CA, end=2 * DAY)
    chain = Builder("announcer").under(top, middle)
    leaf, sent = chain.leaf, chain.sent
    long_leaf = middle.sign(
        leaf.certificate.subject, *_extensions(leaf.certificate), key=leaf.key, end=9 * DAY
    )
    keys = KnownAnnouncers(chain.anchors)
    pem = b"".join(each.public_bytes(Encoding.PEM) for each in (long_leaf.certificate, *sent))
    assert keys.replace_published([pem.decode()]) == []
    [key] = keys.known.values()
    now = datetime.datetime.now(datetime.UTC)
    judge = Verifier(lambda: keys.known)
    assert judge._announcer(key.kid, now) is key
    for moment, reason in ((3 * DAY, "key-expired"), (-2 * DAY, "key-not-yet-valid")):
        with pytest.raises(Exception, match="certificate") as refused:
            judge._announcer(key.kid, now + moment)
        assert getattr(refused.value, "reason", None) == reason


def _extensions(certificate: x509.Certificate) -> list[tuple[x509.ExtensionType, bool]]:
    return [
        (each.value, each.critical)
        for each in certificate.extensions
        if not isinstance(each.value, x509.AuthorityKeyIdentifier | x509.SubjectKeyIdentifier)
    ]


def test_an_announcer_is_valid_by_either_certificate_of_its_ca() -> None:
    """A CA that was renewed: the old certificate and the new one each have their time."""
    now = datetime.datetime.now(datetime.UTC)
    old = root(end=2 * DAY)
    new = old.sign(old.certificate.subject, CA, key=old.key, start=DAY, end=10 * DAY)
    leaf = Builder("announcer").leaf(old)
    long_leaf = old.sign(
        leaf.certificate.subject, *_extensions(leaf.certificate), key=leaf.key, end=9 * DAY
    )
    assert isinstance(leaf.key, Ed25519PrivateKey)
    key = verify_announcer([long_leaf.certificate], [old.certificate, new.certificate])
    assert len(key.validity) == 2
    assert key.is_valid(now)
    assert key.is_valid(now + 5 * DAY)
    assert not key.is_valid(now + 9.5 * DAY)


def test_an_elliptic_curve_has_a_name() -> None:
    """Explicit parameters can describe a curve that only looks like the real one (RFC 5480)."""
    command = "openssl ecparam -name prime256v1 -genkey -noout -param_enc {}"
    for encoding, weak in (("named_curve", False), ("explicit", True)):
        words = command.format(encoding).split()
        pem = subprocess.run(words, capture_output=True, check=True, timeout=PATIENCE_S).stdout
        made = subprocess.run(
            "openssl req -x509 -key /dev/stdin -subj /CN=a -days 1".split(),
            input=pem,
            capture_output=True,
            check=True,
            timeout=PATIENCE_S,
        ).stdout
        assert (weak_key(x509.load_pem_x509_certificate(made)) is not None) == weak


def test_constraints_cannot_take_the_servers_time() -> None:
    """Each name is compared with each constraint, so there is a bound on both together."""
    names = [email_name("a@plant.example")] * 300
    constraint = x509.RFC822Name, "plant.example"
    few, many = MAX_COMPARISONS // 300, MAX_COMPARISONS // 300 + 1
    assert Constraints((constraint,) * few).permits(names)
    assert not Constraints((constraint,) * many).permits(names)


def rsa_key(exponent_bits: int) -> rsa.RSAPrivateKey:
    """Return a key with an exponent of so many bits, which no library makes."""
    usual = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_numbers()
    p, q = usual.p, usual.q
    around = math.lcm(p - 1, q - 1)
    exponent = 1 << (exponent_bits - 1) | 1
    while math.gcd(exponent, around) != 1:
        exponent |= secrets.randbits(exponent_bits - 1) | 1
    d = pow(exponent, -1, around)
    public = rsa.RSAPublicNumbers(exponent, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), usual.iqmp, public)
    return numbers.private_key()


@pytest.mark.parametrize(("exponent_bits", "issued"), [(17, True), (2000, False)])
def test_a_ca_that_takes_long_to_verify_has_issued_nothing(
    exponent_bits: int, issued: bool
) -> None:
    """A client can put one beside a certificate, with the name and key identifier of its issuer."""
    key, above = rsa_key(exponent_bits), Authority.create()
    certificate = above.certify(
        key.public_key(),
        common_name("Slow CA"),
        [(x509.BasicConstraints(ca=True, path_length=None), True)],
        not_before=above.certificate.not_valid_before_utc,
        not_after=above.certificate.not_valid_after_utc,
    )
    client = Authority(certificate, key).issue_client("somebody@example.com")
    assert issued_by(client.certificate, certificate) == issued
