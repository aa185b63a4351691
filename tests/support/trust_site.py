"""A server whose certificates, CAs and CRLs a test may change."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certs_gen.authority import Authority, Credential, new_key
from tests.support.harness import Answer, Server, free_port, wait_until

DAY = datetime.timedelta(days=1)


POST = ("POST", "/api/client")


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def revocation_list(
    authority: Credential,
    serials: Sequence[int] = (),
    *,
    number: int | None = 2,
    this_update: datetime.datetime | None = None,
    next_update: datetime.datetime | None = None,
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> bytes:
    """Return a list in PEM, of any kind."""
    start = this_update or now() - DAY
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(start)
        .next_update(next_update or now() + DAY)
    )
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical=critical)
    for serial in serials:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start).build()
        )
    key = authority.key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def replace(path: Path, content: bytes) -> None:
    """Put a file in the place of another, as whoever renews certificates does."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.chmod(0o600)
    fresh.replace(path)


class Site:
    """A server whose certificates a test may change, and the CA that it trusts."""

    def __init__(self, start: Callable[..., Server], certs: Path) -> None:
        self.certs = certs
        self.authority = Authority.load(certs)
        self._start = start
        self._reloads = 0
        first = x509.load_pem_x509_crl((certs / "ca.crl").read_bytes())
        number = first.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        self._first_number = number

    def start(self, *, wait: bool = True, names_list: bool = True, **tls: object) -> Server:
        """Start the server. By default it has the list `ca.crl` even if no setting names it."""
        files = {**FILES, "crl": "ca.crl"} if names_list else FILES
        self.server = self._start(
            tls={**{key: str(self.certs / name) for key, name in files.items()}, **tls},
            announce={"signing_key": str(self.certs / "announcer.key")},
            server={"port": 0 if wait else free_port()},  # it tells its port once it serves
            wait=wait,
        )
        return self.server

    def wait_reloaded(self) -> None:
        self._reloads += 1
        count = self._reloads
        wait_until(
            lambda: len(self.server.events("certificates and keys reloaded")) >= count, "a reload"
        )

    def revoke(self, *names: str, number: int = 2) -> None:
        serials = [
            x509.load_pem_x509_certificate((self.certs / f"{n}.crt").read_bytes()).serial_number
            for n in names
        ]
        self.put_list(serials, number)
        self.wait_reloaded()

    def put_list(self, serials: Sequence[int], number: int) -> None:
        """Put a list in place whose number is so much above that of the development set's."""
        number += self._first_number
        replace(self.certs / "ca.crl", revocation_list(self.authority, serials, number=number))

    def issue_brief(self) -> x509.Certificate:
        """Issue `brief` to brief@example.com: a client's certificate, good for ten seconds."""
        key = new_key("ec")
        template = self.authority.issue_client("brief@example.com").certificate
        by_issuing = x509.SubjectKeyIdentifier | x509.AuthorityKeyIdentifier
        brief = self.authority.certify(
            key.public_key(),
            template.subject,
            [
                (e.value, e.critical)
                for e in template.extensions
                if not isinstance(e.value, by_issuing)
            ],
            not_before=now() - DAY,
            not_after=now() + datetime.timedelta(seconds=10),
        )
        credential = Credential(brief, key)
        (self.certs / "brief.key").write_bytes(credential.key_pem())
        (self.certs / "brief.crt").write_bytes(credential.certificate_pem())
        return brief

    def request(self, cert: str = "client", how: tuple[str, str] = POST) -> Answer:
        return self.server.request(*how, cert=cert)


FILES = {"certificate": "server.crt", "private_key": "server.key", "client_ca": "ca.crt"}
