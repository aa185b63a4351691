"""The keys that may announce: from files that the operator gave, and from the server. No network.

A certificate's chain and purpose are checked once, here. The dates of the whole chain are checked
whenever its key is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cryptography import x509

from tornado_status.errors import AnnouncerError, ConfigError
from tornado_status.pki.announcer_keys import AnnouncerKey, verify_announcer
from tornado_status.pki.certificates import read_pem

MAX_PUBLISHED = 64  # announcers: many servers, each with the last key and the next


class KnownAnnouncers:
    """The announcers by the name of their key (kid). A new list of the server replaces the last."""

    def __init__(self, cas: Sequence[x509.Certificate] = ()) -> None:
        self._cas = cas
        self._files: dict[str, AnnouncerKey] = {}
        self.known: Mapping[str, AnnouncerKey] = {}

    @classmethod
    def from_files(cls, ca: Path | None, announcers: Iterable[Path]) -> KnownAnnouncers:
        """Read the CA and the announcers' files. Raises `ConfigError` that names the file."""
        keys = cls(_load("--ca", ca) if ca is not None else ())
        for path in announcers:
            try:
                announcer = verify_announcer(_load("--announcer", path), keys._cas)
            except AnnouncerError as error:
                raise ConfigError(f"--announcer: {path} is refused: {error}") from error
            keys._files[announcer.kid] = announcer
        keys.known = dict(keys._files)
        return keys

    def replace_published(self, certificates: Iterable[str]) -> list[str]:
        """Trust these certificates (PEM, intermediate CAs behind each) beside those of the files.

        Returns the reasons for those that are refused.
        """
        published: dict[str, AnnouncerKey] = {}
        refusals = []
        for pem in certificates:
            if len(published) >= MAX_PUBLISHED:
                refusals.append(f"more than {MAX_PUBLISHED} announcers")
                break
            try:
                announcer = verify_announcer(read_pem(pem.encode()), self._cas)
            except (AnnouncerError, ValueError) as error:
                reason = str(error) if isinstance(error, AnnouncerError) else "no certificate"
                refusals.append(reason)
            else:
                published[announcer.kid] = announcer
        self.known = {**published, **self._files}
        return refusals


def _load(option: str, path: Path) -> tuple[x509.Certificate, ...]:
    try:
        return read_pem(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{option}: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{option}: {path} holds no certificate in PEM form") from error
