"""Certificates for many clients at once."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from certs_gen.authority import Authority


def with_clients(certs: Path, directory: Path, emails: Mapping[str, str]) -> Path:
    """Copy a set to `directory`, with one more client for each file name of `emails`."""
    shutil.copytree(certs, directory)
    authority = Authority.load(directory)
    for name, email in emails.items():
        credential = authority.issue_client(email)
        (directory / f"{name}.key").write_bytes(credential.key_pem())
        (directory / f"{name}.crt").write_bytes(credential.certificate_pem())
    return directory
