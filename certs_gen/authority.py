"""The certificate authority: private keys, certificates and the CRL, made in memory.

Owns the content of a certificate (RFC 5280). Writes nothing: see `key_files`. The `issue_*` methods
issue only what the server accepts; `Authority.certify` signs whatever it is given.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tornado_status.errors import ConfigError, IdentityError
from tornado_status.model.email_address import parse_email
from tornado_status.pki import announcer_keys
from tornado_status.pki.certificates import UNREADABLE
from tornado_status.pki.identity import identify

CA_NAME = "tornado_status development CA"
SERVER_NAME = "tornado_status server"
BAD_CLIENT_NAME = "not_an_email"

CA_CERTIFICATE_FILE = "ca.crt"
CA_KEY_FILE = "ca.key"

CA_DAYS = 3650
LEAF_DAYS = 365
CRL_DAYS = 30
MAX_DAYS = CA_DAYS  # a leaf never outlives its CA, so more would say nothing
# A device whose clock is a little behind must not refuse what was issued this minute.
CLOCK_SKEW = datetime.timedelta(minutes=5)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

RSA_BITS = 3072  # as strong as P-256: 128 bits (NIST SP 800-57 part 1, table 2)
PATH_LENGTH = 1  # room for one intermediate CA between this one and a leaf
MAX_NUMBER_BITS = 159  # of serial and CRL numbers: 20 octets with a sign (RFC 5280, 4.1.2.2, 5.2.3)

MAX_DNS_NAME = 253  # characters (RFC 1035, 2.3.4: 255 bytes on the wire)
# Underscores are no host name's, but the names of containers have them, and TLS stacks match them.
_DNS_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)

KeyType = Literal["ec", "rsa"]
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
Extension = tuple[x509.ExtensionType, bool]
"""An extension of a certificate and whether it is critical."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: PrivateKey

    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        """Return the private key as PKCS#8 PEM, not encrypted: a server must start by itself."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def pkcs12(self, name: str, password: str, chain: Iterable[x509.Certificate] = ()) -> bytes:
        """Return key, certificate and `chain` as PKCS#12, which browsers import.

        `name` is what the browser shows. Raises `ValueError` when the password is empty: some
        importers refuse it, others take it for no password at all.
        """
        if not password:
            raise ValueError("expected a password that is not empty")
        return pkcs12.serialize_key_and_certificates(
            name.encode(),
            self.key,
            self.certificate,
            list(chain),
            serialization.BestAvailableEncryption(password.encode()),
        )


@dataclass(frozen=True, slots=True)
class Authority(Credential):
    """A CA. Its certificate is one of a CA and its key belongs to it, else `ValueError`."""

    def __post_init__(self) -> None:
        if not _is_ca(self.certificate):
            raise ValueError("not the certificate of a CA")
        if self.key.public_key() != self.certificate.public_key():
            raise ValueError("the private key belongs to another certificate")

    @classmethod
    def create(
        cls,
        *,
        name: str = CA_NAME,
        days: int = CA_DAYS,
        key_type: KeyType = "ec",
        now: datetime.datetime | None = None,
    ) -> Authority:
        """Make a new root CA with a new key. `now` is an aware time, by default the clock's."""
        not_before, not_after = _validity(days, now)
        key = new_key(key_type)
        subject = common_name(name)
        certificate = _sign(
            key,
            issuer=subject,
            issuer_key_identifier=x509.AuthorityKeyIdentifier.from_issuer_public_key(
                key.public_key()
            ),
            public_key=key.public_key(),
            subject=subject,
            not_before=not_before,
            not_after=not_after,
            extensions=[
                (x509.BasicConstraints(ca=True, path_length=PATH_LENGTH), True),
                (_key_usage(key_cert_sign=True, crl_sign=True), True),
            ],
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, directory: Path) -> Authority:
        """Read the CA from `ca.crt` and `ca.key` in `directory`. Raises `ConfigError`."""
        certificate_path = directory / CA_CERTIFICATE_FILE
        key_path = directory / CA_KEY_FILE
        try:
            certificate = x509.load_pem_x509_certificate(_read(certificate_path))
        except UNREADABLE as error:
            raise ConfigError(f"{certificate_path}: expected a certificate in PEM") from error
        try:
            key = serialization.load_pem_private_key(_read(key_path), password=None)
        except UNREADABLE as error:
            raise ConfigError(f"{key_path}: expected an unencrypted private key in PEM") from error
        if not isinstance(key, PrivateKey):
            raise ConfigError(f"{key_path}: expected an EC, RSA or Ed25519 key")
        try:
            return cls(certificate, key)
        except ValueError as error:
            raise ConfigError(f"{certificate_path} and {key_path.name}: {error}") from error

    def issue_client(
        self,
        email: str,
        *,
        days: int = LEAF_DAYS,
        key_type: KeyType = "ec",
        now: datetime.datetime | None = None,
    ) -> Credential:
        """Issue to a person or device; its canonical e-mail is the CN and the rfc822Name.

        Raises `ValueError` with a sentence for every name that the server would refuse.
        """
        address = client_email(email)
        credential = self._issue(
            address,
            new_key(key_type),
            leaf_extensions([ExtendedKeyUsageOID.CLIENT_AUTH], [x509.RFC822Name(address)]),
            days,
            now,
        )
        # The server's own check, so that a difference between the two is noticed here.
        try:
            identity = identify(credential.certificate.public_bytes(serialization.Encoding.DER))
        except IdentityError as error:
            raise ValueError(f"the server would refuse {address}: {error.detail}") from error
        if identity.email != address:
            raise ValueError(f"the server would take {address} for {identity.email}")
        return credential

    def issue_bad_client(
        self,
        *,
        days: int = LEAF_DAYS,
        key_type: KeyType = "ec",
        now: datetime.datetime | None = None,
    ) -> Credential:
        """Issue the one client that the server refuses, to try the refusal: its CN is no e-mail."""
        extensions = leaf_extensions([ExtendedKeyUsageOID.CLIENT_AUTH])
        return self._issue(BAD_CLIENT_NAME, new_key(key_type), extensions, days, now)

    def issue_server(
        self,
        names: Sequence[str],
        ips: Sequence[str] = (),
        *,
        days: int = LEAF_DAYS,
        key_type: KeyType = "ec",
        now: datetime.datetime | None = None,
    ) -> Credential:
        """Issue to a TLS server that is reached by these DNS names and IP addresses.

        They stand in subjectAltName alone: clients look nowhere else (RFC 9525), and a common name
        has room for 64 characters. Raises `ValueError` for a bad one, and when there is none.
        """
        hosts: list[x509.GeneralName] = []
        hosts += [x509.DNSName(name) for name in dict.fromkeys(map(dns_name, names))]
        hosts += [x509.IPAddress(address) for address in dict.fromkeys(map(ip_address, ips))]
        if not hosts:
            raise ValueError("expected at least one DNS name or IP address")
        extensions = leaf_extensions([ExtendedKeyUsageOID.SERVER_AUTH], hosts)
        return self._issue(SERVER_NAME, new_key(key_type), extensions, days, now)

    def issue_announcer(
        self,
        name: str = "announcer",
        *,
        days: int = LEAF_DAYS,
        now: datetime.datetime | None = None,
    ) -> Credential:
        """Issue to a signer of datagrams: an Ed25519 key, good for `announcers.PURPOSE` only.

        `name` tells announcers apart for a reader of their certificates, and decides nothing.
        """
        return self._issue(
            f"tornado_status {name}",
            ed25519.Ed25519PrivateKey.generate(),
            leaf_extensions([announcer_keys.PURPOSE]),
            days,
            now,
        )

    def certify(
        self,
        public_key: CertificatePublicKeyTypes,
        subject: x509.Name,
        extensions: Iterable[Extension],
        *,
        not_before: datetime.datetime,
        not_after: datetime.datetime,
    ) -> x509.Certificate:
        """Sign exactly this, with a random serial number and both key identifiers added.

        Checks nothing. The `issue_*` methods use it, and so do tests that need odd certificates:
        two common names, no purpose, an intermediate CA.
        """
        return _sign(
            self.key,
            issuer=self.certificate.subject,
            issuer_key_identifier=self._key_identifier(),
            public_key=public_key,
            subject=subject,
            not_before=not_before,
            not_after=not_after,
            extensions=extensions,
        )

    def crl(
        self,
        revoked: Iterable[x509.RevokedCertificate],
        number: int,
        *,
        days: int = CRL_DAYS,
        now: datetime.datetime | None = None,
    ) -> x509.CertificateRevocationList:
        """Sign a complete CRL of exactly these entries, good for `days`.

        `number` must be above those of all earlier lists (RFC 5280, 5.2.3); it is not checked here.
        Raises `ConfigError` when the CA's own certificate does not let it sign CRLs.
        """
        if not _may_sign_crls(self.certificate):
            raise ConfigError("the CA's certificate lacks the key usage cRLSign: make a new CA")
        this_update, next_update = _validity(days, now)
        return (
            x509.CertificateRevocationListBuilder(revoked_certificates=list(revoked))
            .issuer_name(self.certificate.subject)
            .last_update(this_update)
            .next_update(next_update)
            .add_extension(self._key_identifier(), critical=False)
            .add_extension(x509.CRLNumber(number), critical=False)
            .sign(self.key, _hash_for(self.key))
        )

    def empty_crl(
        self, *, days: int = CRL_DAYS, now: datetime.datetime | None = None
    ) -> x509.CertificateRevocationList:
        """Sign the CA's first CRL: nothing revoked, numbered by the time, good for `days`."""
        moment = now or datetime.datetime.now(datetime.UTC)
        return self.crl([], first_crl_number(moment), days=days, now=moment)

    def _issue(
        self,
        name: str,
        key: PrivateKey,
        extensions: Iterable[Extension],
        days: int,
        now: datetime.datetime | None,
    ) -> Credential:
        moment = now or datetime.datetime.now(datetime.UTC)
        not_before, not_after = _validity(days, moment)
        last = self.certificate.not_valid_after_utc
        if last <= moment:
            raise ConfigError(f"the CA's certificate expired on {last:%Y-%m-%d}: make a new CA")
        certificate = self.certify(
            key.public_key(),
            common_name(name),
            extensions,
            not_before=not_before,
            not_after=min(not_after, last),
        )
        return Credential(certificate, key)

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        # A CA made elsewhere may number its key in its own way: repeat what its certificate says.
        try:
            subject = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        except x509.ExtensionNotFound:
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject.value)


def first_crl_number(now: datetime.datetime) -> int:
    """Return the number of a list that follows none: the microseconds since the epoch.

    A CA that is made again often has the name of the one before. A program that knows its lists by
    that name must not see their numbers fall. No two lists are signed within a microsecond.
    """
    return (now - _EPOCH) // datetime.timedelta(microseconds=1)


def new_key(key_type: KeyType) -> PrivateKey:
    """Make a private key: `ec` is P-256, `rsa` has 3072 bits."""
    if key_type == "ec":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)


def common_name(name: str) -> x509.Name:
    """Return a subject that is this common name alone. `ValueError` above 64 characters."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def leaf_extensions(
    purposes: Sequence[x509.ObjectIdentifier], alternative_names: Sequence[x509.GeneralName] = ()
) -> list[Extension]:
    """Return the extensions of a leaf that signs (TLS 1.3, datagrams) for these `purposes`."""
    extensions: list[Extension] = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage(purposes), False),
    ]
    if alternative_names:
        extensions.append((x509.SubjectAlternativeName(alternative_names), False))
    return extensions


def client_email(text: str) -> str:
    """Return the e-mail as it stands in the certificate: canonical, and at most 64 characters.

    Raises `ValueError` with a sentence.
    """
    address = parse_email(text)
    # Once more: the ASCII form of an international domain can be longer than what was typed.
    if parse_email(address) != address:
        raise ValueError(f"not a valid e-mail address: {address} has another normal form")
    return address


def dns_name(text: str) -> str:
    """Return a DNS name in lower case. `ValueError` when no server could be reached by it."""
    name = text.lower()
    if not name.isascii():
        raise ValueError(f"expected a DNS name in its ASCII form (xn--...), got {text!r}")
    labels = name.removeprefix("*.").split(".")
    if len(name) > MAX_DNS_NAME or not all(_DNS_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"expected a DNS name, got {text!r}")
    if labels[-1].isdecimal():  # no top-level domain is a number (RFC 3696, 2)
        raise ValueError(f"expected a DNS name, got {text!r}: is it an IP address?")
    return name


def ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return an IP address. `ValueError` for anything else, a zone (`fe80::1%eth0`) included."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise ValueError(f"expected an IP address, got {text!r}") from error
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise ValueError(f"expected an IP address without its zone, got {text!r}")
    return address


def _validity(
    days: int, now: datetime.datetime | None
) -> tuple[datetime.datetime, datetime.datetime]:
    if not 1 <= days <= MAX_DAYS:
        raise ValueError(f"expected 1-{MAX_DAYS} days, got {days}")
    moment = now or datetime.datetime.now(datetime.UTC)
    return moment - CLOCK_SKEW, moment + datetime.timedelta(days=days)


def _sign(
    issuer_key: PrivateKey,
    *,
    issuer: x509.Name,
    issuer_key_identifier: x509.AuthorityKeyIdentifier,
    public_key: CertificatePublicKeyTypes,
    subject: x509.Name,
    not_before: datetime.datetime,
    not_after: datetime.datetime,
    extensions: Iterable[Extension],
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(issuer_key_identifier, critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, _hash_for(issuer_key))


def _hash_for(key: PrivateKey) -> hashes.SHA256 | None:
    # Ed25519 has its hash built in.
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except (x509.ExtensionNotFound, *UNREADABLE):
        return False
    return constraints.value.ca


def _may_sign_crls(certificate: x509.Certificate) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound:
        return True  # without it a key may do everything (RFC 5280, 4.2.1.3)
    return usage.value.crl_sign


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the CA: {error.strerror}") from error
