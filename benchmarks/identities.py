"""Certificates for a run: a private CA, for servers and many clients, and two to be refused."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from certs_gen.authority import Authority, Credential

BAD = "bad_client"  # its CN is no e-mail address
STRANGER = "stranger"  # of another CA
READERS = 10  # of the clients: each may have a hundred live streams
ISSUER = "CN=tornado_status benchmark CA"  # of users who have no certificate


@dataclass(frozen=True, slots=True)
class Identities:
    """The files, by name: `ca`, `server`, `announcer`, a client's e-mail, `BAD` or `STRANGER`."""

    directory: Path
    emails: tuple[str, ...]

    def certificate(self, name: str) -> Path:
        return self.directory / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.directory / f"{name}.key"

    @property
    def bundle(self) -> Path:
        """The certificates and keys of all clients with an e-mail, as load.c reads them."""
        return self.directory / "clients.pem"

    def client_context(self, name: str | None) -> ssl.SSLContext:
        """Return a context that trusts the CA and shows the certificate of `name`, if any."""
        context = ssl.create_default_context(cafile=str(self.certificate("ca")))
        if name is not None:
            context.load_cert_chain(self.certificate(name), self.key(name))
        return context


def email(number: int) -> str:
    return f"user{number:07d}@example.com"


def device(number: int) -> tuple[str, str]:
    """Return issuer and serial of a user's certificate, as long as real ones are."""
    return ISSUER, f"{number:040x}"


def make(directory: Path, count: int) -> Identities:
    """Issue a CA, what a server needs, and `count` clients, all into `directory`."""
    made = Identities(directory, tuple(email(number) for number in range(count)))
    directory.mkdir(parents=True, exist_ok=True)
    authority = Authority.create()
    issued: dict[str, Credential] = {
        "ca": authority,
        "server": authority.issue_server(["localhost"], ["127.0.0.1"]),
        "announcer": authority.issue_announcer(),
        BAD: authority.issue_bad_client(),
        STRANGER: Authority.create().issue_client("stranger@example.com"),
        **{name: authority.issue_client(name) for name in made.emails},
    }
    for name, credential in issued.items():
        # Keys of a CA that nothing trusts, for a minute on this machine.
        made.certificate(name).write_bytes(credential.certificate_pem())
        made.key(name).write_bytes(credential.key_pem())
    files = [file(name) for name in made.emails for file in (made.certificate, made.key)]
    made.bundle.write_bytes(b"".join(path.read_bytes() for path in files))
    return made
