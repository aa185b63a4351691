"""Reading files that settings name. Each error is a `ConfigError` with the setting and the file."""

from __future__ import annotations

import stat
from pathlib import Path

from cryptography import x509

from tornado_status.errors import ConfigError
from tornado_status.pki.certificates import read_pem
from tornado_status.pki.file_kinds import not_a_certificate, not_a_key


def read(setting: str, path: Path, maker: str = "") -> bytes:
    """Return the contents of a file. `maker` says how to make a missing one."""
    check_file(setting, path, maker)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from error


def check_file(setting: str, path: Path, maker: str = "") -> None:
    """Raise `ConfigError` unless the file exists and can be opened."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            # A pipe would have no end, and a directory is a wrong path or a wrong mount.
            raise ConfigError(f"{setting}: {path} is not a file")
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        hint = f" ({maker})" if maker else ""
        raise ConfigError(f"{setting}: no file {path}{hint}") from error
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from error


def read_certificates(setting: str, path: Path, maker: str = "") -> tuple[x509.Certificate, ...]:
    """Return all certificates in the file that `setting` names, at least one."""
    content = read(setting, path, maker)
    wrong = not_a_certificate(path, content)
    if wrong is not None:
        raise ConfigError(f"{setting}: {wrong}")
    try:
        return read_pem(content)
    except ValueError as error:
        raise ConfigError(f"{setting}: cannot use {path}: {error}") from error


def check_key(setting: str, path: Path, maker: str = "") -> None:
    """Raise `ConfigError` unless the file holds an unencrypted private key in PEM."""
    wrong = not_a_key(path, read(setting, path, maker))
    if wrong is not None:
        raise ConfigError(f"{setting}: {wrong}")
