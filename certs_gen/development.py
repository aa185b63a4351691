"""The development set: its certificates and their file names."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from certs_gen import key_files
from certs_gen.authority import Authority, KeyType
from certs_gen.key_files import NewFile

DIRECTORY = Path("certs")  # where config.yaml looks for them
SERVER_NAMES = ("localhost", "server")  # `server` is its name among containers
SERVER_IPS = ("127.0.0.1", "::1")
CLIENT_EMAIL = "valid_user@example.com"
OPERATOR_EMAIL = "operator@example.com"  # a reader in config.yaml
ANNOUNCER_STEM = "announcer"
CRL_FILE = "ca.crl"

STEMS = ("ca", "server", "client", "bad_client", "operator", ANNOUNCER_STEM)
FILE_NAMES = (*(f"{stem}.{suffix}" for stem in STEMS for suffix in ("crt", "key")), CRL_FILE)


def make(directory: Path, *, days: int, key_type: KeyType) -> list[NewFile]:
    """Make a new CA and everything that it issues for a start, to be written in `directory`."""
    authority = Authority.create(key_type=key_type)
    made = key_files.pair(directory, "ca", authority, key_mode=key_files.CA_PRIVATE)
    made.append(crl_file(directory, authority.empty_crl()))
    issued = {
        "server": authority.issue_server(SERVER_NAMES, SERVER_IPS, days=days, key_type=key_type),
        "client": authority.issue_client(CLIENT_EMAIL, days=days, key_type=key_type),
        "bad_client": authority.issue_bad_client(days=days, key_type=key_type),
        "operator": authority.issue_client(OPERATOR_EMAIL, days=days, key_type=key_type),
        ANNOUNCER_STEM: authority.issue_announcer(days=days),
    }
    for stem, credential in issued.items():
        made += key_files.pair(directory, stem, credential)
    return made


def crl_file(directory: Path, crl: x509.CertificateRevocationList) -> NewFile:
    """Return the CA's list of revoked certificates, to be written in `directory`."""
    return NewFile(
        directory / CRL_FILE,
        crl.public_bytes(serialization.Encoding.PEM),
        note=f"until {crl.next_update_utc:%Y-%m-%d}, {len(crl)} revoked",
    )
