"""Copies the certificates and keys that one machine of an installation needs, and no others."""

from __future__ import annotations

from pathlib import Path

from certs_gen import development, key_files
from certs_gen.authority import CA_CERTIFICATE_FILE
from certs_gen.key_files import NewFile
from tornado_status.errors import ConfigError

SERVER, LISTENER, CLIENT = ROLES = ("server", "listener", "client")

# Public files, and pairs of a certificate and its key, which change together.
_ALONE = {
    SERVER: (CA_CERTIFICATE_FILE, development.CRL_FILE),
    LISTENER: (CA_CERTIFICATE_FILE, f"{development.ANNOUNCER_STEM}.crt"),
    CLIENT: (CA_CERTIFICATE_FILE,),
}
_PAIRS = {
    SERVER: ("server", development.ANNOUNCER_STEM),
    LISTENER: ("operator",),
    CLIENT: ("client",),
}


def copy(directory: Path, role: str, to: Path, *, email: str | None = None) -> list[NewFile]:
    """Copy from `directory` what a `role` needs; return the files that were not there like that.

    With `email` a listener or client gets the certificate of that user, under the name that its
    programs look for. A program that reads a file at the same time finds the old one or the new
    one. No certificate lies beside another one's key. Raises `ConfigError`.
    """
    if email is not None and role == SERVER:
        raise ConfigError("a server's certificate has no e-mail: --email is for the others")
    if to.resolve() == directory.resolve():
        raise ConfigError(f"{to}: the copies need a directory of their own")
    alone = [_read(directory / name, to / name) for name in _ALONE[role]]
    pairs = []
    for stem in _PAIRS[role]:
        source = stem if email is None else key_files.client_stem(email)
        pairs.append(
            [
                _read(directory / f"{source}.key", to / f"{stem}.key", key_files.PRIVATE),
                _read(directory / f"{source}.crt", to / f"{stem}.crt"),
            ]
        )
    key_files.make_directory(to)
    changed: list[NewFile] = []
    with key_files.locked(to):
        for file in alone:
            if not _same(file):
                key_files.replace(file)
                changed.append(file)
        for pair in pairs:
            if not all(_same(file) for file in pair):
                key_files.write(pair, force=True)
                changed += pair
    return changed


def _read(source: Path, path: Path, mode: int = key_files.PUBLIC) -> NewFile:
    try:
        return NewFile(path, source.read_bytes(), mode)
    except OSError as error:
        raise ConfigError(f"{source}: cannot read it: {error.strerror}") from error


def _same(file: NewFile) -> bool:
    try:
        return file.path.read_bytes() == file.content
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(f"{file.path}: cannot read it: {error.strerror}") from error
