"""The parameters of a NATS broker: addresses, subject, and files with credentials. Pure.

Shared by the server, which publishes, and the listeners, which subscribe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

PORT = 4222
SUBJECT = "status"

# Without wildcards: a publisher needs one subject, and a stream must not store all of them.
_SUBJECT = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_STREAM = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker, or the members of a cluster, and the credentials for it.

    `ca` is None for the system's CAs. With one, or with an address tls://, TLS is required.
    """

    addresses: tuple[str, ...]
    subject: str = SUBJECT
    user: str | None = None
    password_file: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None

    def __str__(self) -> str:
        return ",".join(self.addresses)

    @property
    def needs_tls(self) -> bool:
        """Return whether a broker without TLS is refused."""
        named = any(address.startswith("tls://") for address in self.addresses)
        return named or self.ca is not None or self.certificate is not None


def parse_addresses(text: str) -> tuple[str, ...]:
    """Return `nats://host:port` or `tls://host:port` for each of a comma-separated list.

    Raises `ValueError`, whose message never repeats the text: it may hold a password.
    """
    return tuple(_parse_address(part.strip()) for part in text.split(","))


def check_subject(text: str) -> str:
    """Return `text`. Raises `ValueError` if it is no subject, or has a wildcard."""
    if not _SUBJECT.fullmatch(text):
        raise ValueError("expected a subject of letters, digits, - and _, with dots between them")
    return text


def check_stream(text: str) -> str:
    """Return `text`. Raises `ValueError` if it is no name of a JetStream stream."""
    if not _STREAM.fullmatch(text):
        raise ValueError("expected a stream's name of letters, digits, - and _")
    return text


def check_credentials(broker: Broker) -> None:
    """Raise `ValueError`, which begins with the key, if one of a pair is missing."""
    if broker.user is not None and broker.password_file is None:
        raise ValueError("password_file: needed with user")
    if broker.password_file is not None and broker.user is None:
        raise ValueError("user: needed with password_file")
    if broker.certificate is not None and broker.private_key is None:
        raise ValueError("private_key: needed with certificate")
    if broker.private_key is not None and broker.certificate is None:
        raise ValueError("certificate: needed with private_key")


def _parse_address(text: str) -> str:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port or PORT
        (host or "").encode("idna")  # as the system's lookup does
    except ValueError:
        raise ValueError("expected nats://host:4222 or tls://host:4222") from None
    if parts.username is not None or "@" in text:
        raise ValueError(
            "expected no user or password in it, since addresses are shown: see password_file"
        )
    beyond = parts.path.strip("/") or parts.query or parts.fragment
    if parts.scheme not in ("nats", "tls") or not host or beyond:
        raise ValueError("expected nats://host:4222 or tls://host:4222")
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
