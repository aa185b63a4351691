"""The doctor's check of the key exchange: whether this OpenSSL has the post-quantum hybrid."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from tornado_status.commands.doctor.finding import Finding, note, ok
from tornado_status.config.settings import Settings

TOPIC = "tls"
HYBRID = "X25519MLKEM768"
HYBRID_SINCE = (3, 5)


def examine(
    settings: Settings,
    version: tuple[int, ...] = ssl.OPENSSL_VERSION_INFO,
    name: str = ssl.OPENSSL_VERSION,
) -> Iterator[Finding]:
    """Check the `version` of this Python's OpenSSL; in mode proxy the proxy exchanges the keys."""
    if settings.ingress.mode == "proxy":
        return
    if version[:2] >= HYBRID_SINCE:
        yield ok(TOPIC, f"{name} has the post-quantum hybrid key exchange, {HYBRID}")
    else:
        yield note(
            TOPIC,
            f"{name} is too old for the post-quantum hybrid key exchange, {HYBRID}",
            "Connections are encrypted with keys of X25519 alone. Use a Python that is linked with "
            "OpenSSL 3.5 or later, as that of Debian 13: docs/security.md.",
        )
