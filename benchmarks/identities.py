"""Certificates for a run: a private CA, for servers and many clients, and two to be refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from certs_gen.authority import Authority, Credential

BAD = "bad_client"  # whose CN is no e-mail address
STRANGER = "stranger"  # of another CA

ISSUER = "CN=tornado_status benchmark CA"  # of users who have no certificate


@dataclass(frozen=True, slots=True)
class Identities:
    """Where the files are. `listed` names them line by line, as load.c reads it."""

    directory: Path
    emails: tuple[str, ...]

    @property
    def ca(self) -> Path:
        return self.directory / "ca.crt"

    @property
    def server_certificate(self) -> Path:
        return self.directory / "server.crt"

    @property
    def server_key(self) -> Path:
        return self.directory / "server.key"

    @property
    def announcer_key(self) -> Path:
        return self.directory / "announcer.key"

    @property
    def listed(self) -> Path:
        return self.directory / "clients.txt"

    def pair(self, name: str) -> tuple[Path, Path]:
        """Return the certificate and the key of a client: an e-mail, `BAD` or `STRANGER`."""
        return self.directory / f"{name}.crt", self.directory / f"{name}.key"


def email(number: int) -> str:
    return f"user{number:07d}@example.com"


def device(number: int) -> tuple[str, str]:
    """Return issuer and serial of a user's certificate, as long as real ones are."""
    return ISSUER, f"{number:040x}"


def make(directory: Path, count: int) -> Identities:
    """Issue a CA, what a server needs, and `count` clients, all into `directory`."""
    identities = Identities(directory, tuple(email(number) for number in range(count)))
    directory.mkdir(parents=True, exist_ok=True)
    authority = Authority.create()
    _write(directory, "ca", authority)
    _write(directory, "server", authority.issue_server(["localhost"], ["127.0.0.1"]))
    _write(directory, "announcer", authority.issue_announcer())
    _write(directory, BAD, authority.issue_bad_client())
    _write(directory, STRANGER, Authority.create().issue_client("stranger@example.com"))
    for name in identities.emails:
        _write(directory, name, authority.issue_client(name))
    pairs = [identities.pair(name) for name in identities.emails]
    identities.listed.write_text("".join(f"{cert}\t{key}\n" for cert, key in pairs))
    return identities


def _write(directory: Path, name: str, credential: Credential) -> None:
    # Keys of a CA that nobody trusts, for a minute on this machine.
    (directory / f"{name}.crt").write_bytes(credential.certificate_pem())
    (directory / f"{name}.key").write_bytes(credential.key_pem())
