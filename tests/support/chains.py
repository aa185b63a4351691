"""Chains of certificates, good and bad: each class of them once, for clients and announcers."""

from __future__ import annotations

import datetime
import ipaddress
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs_gen.authority import Extension, PrivateKey, common_name
from tornado_status.pki.announcer_keys import PURPOSE

DAY = datetime.timedelta(days=1)
EMAIL = "a@plant.example"
CA: Extension = (x509.BasicConstraints(ca=True, path_length=None), True)
LEAF: Extension = (x509.BasicConstraints(ca=False, path_length=None), True)
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
POLICIES = x509.CertificatePolicies(
    [x509.PolicyInformation(x509.ObjectIdentifier("1.2.3.5"), None)]
)

_numbers = itertools.count(1)

Holder = Literal["client", "announcer"]


def key_usage(*bits: str) -> x509.KeyUsage:
    """Return a key usage of exactly these bits."""
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: name in bits for name in names})


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: PrivateKey

    def sign(
        self,
        subject: x509.Name | str,
        *extensions: Extension,
        key: PrivateKey | None = None,
        start: datetime.timedelta = -DAY,
        end: datetime.timedelta = DAY,
        hint: x509.AuthorityKeyIdentifier | Literal["key", "none"] = "key",
    ) -> Signed:
        """Issue exactly this, with both key identifiers; `hint` is the authority's."""
        if hint == "key":
            hint = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        key = key or ec.generate_private_key(ec.SECP256R1())
        # Without this, OpenSSL takes each CA that has its issuer's name for a root.
        added: list[Extension] = [
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        ]
        if hint != "none":
            added.append((hint, False))
        return issue(self, subject, *extensions, *added, key=key, start=start, end=end)


def issue(
    issuer: Signed | None,
    subject: x509.Name | str,
    *extensions: Extension,
    key: PrivateKey | None = None,
    start: datetime.timedelta = -DAY,
    end: datetime.timedelta = DAY,
) -> Signed:
    """Issue exactly this; `issuer` None is the subject itself."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = common_name(subject) if isinstance(subject, str) else subject
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + start)
        .not_valid_after(now + end)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    signing = key if issuer is None else issuer.key
    own_hash = None if isinstance(signing, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return Signed(builder.sign(signing, own_hash), key)


def root(
    *extensions: Extension,
    name: x509.Name | str | None = None,
    key: PrivateKey | None = None,
    **given: object,
) -> Signed:
    """Return a root with a name of its own, a good one by default, that names its key."""
    if name is None:
        name = f"Plant CA {next(_numbers)}"
    key = key or ec.generate_private_key(ec.SECP256R1())
    identifier: Extension = (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    return issue(None, name, *(extensions or (CA,)), identifier, key=key, **given)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Chain:
    """A certificate, the CAs that its holder sends along, and those that are trusted."""

    leaf: Signed
    sent: Sequence[x509.Certificate]
    anchors: Sequence[x509.Certificate]


@dataclass(slots=True)
class Builder:
    """Makes the certificate at the lower end, for one kind of holder."""

    holder: Holder
    subject: list[x509.NameAttribute[str]] = field(default_factory=list)

    def leaf(
        self,
        issuer: Signed,
        *extensions: Extension,
        usage: x509.KeyUsage | None = None,
        hint: x509.AuthorityKeyIdentifier | Literal["key", "none"] = "key",
        key: PrivateKey | None = None,
    ) -> Signed:
        """Issue a good certificate with these extensions besides."""
        is_client = self.holder == "client"
        key = key or (None if is_client else ed25519.Ed25519PrivateKey.generate())
        purpose = ExtendedKeyUsageOID.CLIENT_AUTH if is_client else PURPOSE
        name = x509.NameAttribute(NameOID.COMMON_NAME, EMAIL if is_client else "announcer")
        return issuer.sign(
            x509.Name([*self.subject, name]),
            LEAF,
            (usage or key_usage("digital_signature"), True),
            (x509.ExtendedKeyUsage([purpose]), False),
            *extensions,
            hint=hint,
            key=key,
        )

    def under(self, *cas: Signed, names: Sequence[x509.GeneralName] = ()) -> Chain:
        """Return the chain of a certificate with these alternative names; the root first."""
        extensions = [(x509.SubjectAlternativeName(names), False)] if names else []
        leaf = self.leaf(cas[-1], *extensions)
        return Chain(leaf, [ca.certificate for ca in cas[:0:-1]], [cas[0].certificate])


Make = Callable[[Builder], Chain]


def _below_root(*extensions: Extension, top: Signed | None = None, **given: object) -> Make:
    """Return what makes a chain over an intermediate CA with exactly these extensions."""

    def make(builder: Builder) -> Chain:
        above = top or root()
        return builder.under(above, above.sign("devices", *extensions, **given))  # type: ignore[arg-type]

    return make


def _root(*extensions: Extension, **given: object) -> Make:
    """Return what makes a chain below a root with exactly these extensions."""
    return lambda builder: builder.under(root(*extensions, **given))  # type: ignore[arg-type]


def _path_length_below(builder: Builder) -> Chain:
    top = root()
    middle = top.sign("devices", (x509.BasicConstraints(ca=True, path_length=0), True))
    return builder.under(top, middle, middle.sign("pumps", CA))


def _self_issued(builder: Builder) -> Chain:
    top = root((x509.BasicConstraints(ca=True, path_length=0), True))
    return builder.under(top, top.sign(top.certificate.subject, CA))


def _unknown_on_leaf(builder: Builder) -> Chain:
    top = root()
    return Chain(builder.leaf(top, (UNKNOWN, True)), [], [top.certificate])


def _cert_sign_on_leaf(builder: Builder) -> Chain:
    top = root()
    usage = key_usage("digital_signature", "key_cert_sign")
    return Chain(builder.leaf(top, usage=usage), [], [top.certificate])


def _no_signature_on_leaf(builder: Builder) -> Chain:
    top = root()
    return Chain(builder.leaf(top, usage=key_usage("key_agreement")), [], [top.certificate])


def _no_hint(*, namesakes: int) -> Make:
    def make(builder: Builder) -> Chain:
        cas = [root(name=f"Namesake {namesakes}") for _ in range(namesakes)]
        return Chain(builder.leaf(cas[-1], hint="none"), [], [ca.certificate for ca in cas])

    return make


def _hint_among_namesakes(builder: Builder) -> Chain:
    cas = [root(name="Namesake 3") for _ in range(3)]
    return Chain(builder.leaf(cas[-1]), [], [ca.certificate for ca in cas])


def _wrong_key_in_hint(builder: Builder) -> Chain:
    top, other = root(), root()
    hint = x509.AuthorityKeyIdentifier.from_issuer_public_key(other.key.public_key())
    return Chain(builder.leaf(top, hint=hint), [], [top.certificate])


def _wrong_number_in_hint(builder: Builder) -> Chain:
    top = root()
    issuer = [x509.DirectoryName(top.certificate.issuer)]
    hint = x509.AuthorityKeyIdentifier(None, issuer, top.certificate.serial_number + 1)
    return Chain(builder.leaf(top, hint=hint), [], [top.certificate])


def _weak_key(builder: Builder) -> Chain:
    top = root()
    key = ec.generate_private_key(ec.SECP192R1())
    return Chain(builder.leaf(top, key=key), [], [top.certificate])


def _constrained(
    constraint: x509.GeneralName,
    *names: x509.GeneralName,
    excluded: bool = False,
    critical: bool = True,
    subject: Sequence[x509.NameAttribute[str]] = (),
) -> Make:
    """Return what makes a chain below a CA that may, or may not, issue to `constraint`."""
    trees = (None, [constraint]) if excluded else ([constraint], None)

    def make(builder: Builder) -> Chain:
        builder.subject.extend(subject)
        return builder.under(root(CA, (x509.NameConstraints(*trees), critical)), names=names)

    return make


def _constrained_intermediate(builder: Builder) -> Chain:
    only = x509.NameConstraints([x509.DNSName("plant.example")], None)
    top = root(CA, (only, True))
    other = x509.SubjectAlternativeName([x509.DNSName("elsewhere.example")])
    return builder.under(top, top.sign("devices", CA, (other, False)))


_OTHER = x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x01u")
_PLANT = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Plant")])
_IN_PLANT = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "PLANT")]
_DNS, _EMAIL, _URI = x509.DNSName, x509.RFC822Name, x509.UniformResourceIdentifier
_OUTSIDE = [x509.NameAttribute(NameOID.EMAIL_ADDRESS, "b@elsewhere.example")]


def _ip(text: str) -> x509.IPAddress:
    return x509.IPAddress(ipaddress.ip_network(text) if "/" in text else ipaddress.ip_address(text))


# By class: the chain, and the reason of its refusal; None if it is good.
CLASSES: dict[str, tuple[Make, str | None]] = {
    "below the root": (_root(CA), None),
    "over an intermediate": (_below_root(CA), None),
    "below a root with an Ed25519 key": (
        _root(CA, key=ed25519.Ed25519PrivateKey.generate()),
        None,
    ),
    # dates
    "expired intermediate": (_below_root(CA, start=-2 * DAY, end=-DAY), "ca-expired"),
    "intermediate of tomorrow": (_below_root(CA, start=DAY, end=2 * DAY), "ca-expired"),
    "expired root": (_root(CA, start=-2 * DAY, end=-DAY), "ca-expired"),
    # basic constraints and key usage
    "root permits no intermediate": (
        _below_root(CA, top=root((x509.BasicConstraints(ca=True, path_length=0), True))),
        "path-length",
    ),
    "intermediate permits no other": (_path_length_below, "path-length"),
    "self-issued CA does not count": (_self_issued, None),
    "intermediate without basicConstraints": (
        _below_root((key_usage("key_cert_sign"), True)),
        "not-a-ca",
    ),
    "intermediate is no CA": (_below_root(LEAF), "not-a-ca"),
    "intermediate without keyCertSign": (
        _below_root(CA, (key_usage("digital_signature"), True)),
        "not-a-ca",
    ),
    "root without basicConstraints": (_root((key_usage("key_cert_sign"), True)), "not-a-ca"),
    "root without keyCertSign": (_root(CA, (key_usage("crl_sign"), True)), "not-a-ca"),
    "root with basicConstraints not critical": (_root((CA[0], False)), None),
    "CA without a name": (_root(CA, name=x509.Name([])), "not-a-ca"),
    "keyCertSign on a leaf": (_cert_sign_on_leaf, "is-ca"),
    "no digitalSignature on a leaf": (_no_signature_on_leaf, "not-for-clients"),
    # extended key usage
    "intermediate for servers, critical": (
        _below_root(CA, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), True)),
        "ca-purpose",
    ),
    "intermediate for servers": (
        _below_root(CA, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)),
        "ca-purpose",
    ),
    "intermediate for both purposes": (
        _below_root(CA, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, PURPOSE]), False)),
        None,
    ),
    # extensions
    "unknown critical extension of an intermediate": (
        _below_root(CA, (UNKNOWN, True)),
        "unknown-extension",
    ),
    "unknown extension of an intermediate": (_below_root(CA, (UNKNOWN, False)), None),
    "unknown critical extension of a leaf": (_unknown_on_leaf, "unknown-extension"),
    "policy constraints": (
        _below_root(CA, (x509.PolicyConstraints(0, None), True)),
        "policy-constraints",
    ),
    "policy constraints, not critical": (
        _below_root(CA, (x509.PolicyConstraints(0, None), False)),
        "policy-constraints",
    ),
    "critical policies": (_below_root(CA, (POLICIES, True)), None),
    # key identifiers
    "no authority key identifier, one CA": (_no_hint(namesakes=1), None),
    "no authority key identifier, namesakes": (_no_hint(namesakes=2), "ambiguous-issuer"),
    "authority key identifier among namesakes": (_hint_among_namesakes, None),
    "authority key identifier of another key": (_wrong_key_in_hint, "untrusted-chain"),
    "issuer's number is another's": (_wrong_number_in_hint, "untrusted-chain"),
    # names
    "emailAddress outside": (
        _constrained(_EMAIL("plant.example"), subject=_OUTSIDE),
        "name-constraints",
    ),
    "DNS name outside": (
        _constrained(_DNS("plant.example"), _DNS("x.example")),
        "name-constraints",
    ),
    "DNS name within": (_constrained(_DNS("plant.example"), _DNS("x.plant.example")), None),
    "DNS name excluded": (
        _constrained(_DNS("plant.example"), _DNS("x.plant.example"), excluded=True),
        "name-constraints",
    ),
    "DNS name outside, not critical": (
        _constrained(_DNS("plant.example"), _DNS("x.example"), critical=False),
        "name-constraints",
    ),
    "address outside": (_constrained(_ip("10.0.0.0/8"), _ip("192.0.2.1")), "name-constraints"),
    "address within": (_constrained(_ip("10.0.0.0/8"), _ip("10.1.2.3")), None),
    "URI outside": (
        _constrained(_URI(".plant.example"), _URI("https://plant.example/")),
        "name-constraints",
    ),
    "URI within": (_constrained(_URI(".plant.example"), _URI("https://x.plant.example/")), None),
    "subject outside": (_constrained(x509.DirectoryName(_PLANT)), "name-constraints"),
    "subject within": (_constrained(x509.DirectoryName(_PLANT), subject=_IN_PLANT), None),
    "a kind of name that is not compared": (_constrained(_OTHER, _OTHER), "name-constraints"),
    "intermediate outside": (_constrained_intermediate, "name-constraints"),
}
# Only a client has a key of another kind than Ed25519.
CLIENT_CLASSES: dict[str, tuple[Make, str | None]] = {
    **CLASSES,
    "key of 192 bits": (_weak_key, "weak-key"),
}
