"""Signatures of webhooks by the Standard Webhooks specification, v1. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

from tornado_status.errors import ConfigError

PREFIX = "whsec_"
MIN_BYTES, MAX_BYTES = 24, 64  # of a secret, by the specification


def parse_secrets(text: str, key: str) -> list[bytes]:
    """Return the secrets, one a line. All of them sign: there are several during a key rotation.

    Raises `ConfigError`, which names `key` and never shows a secret.
    """
    secrets = []
    for line in text.split():
        try:
            secret = base64.b64decode(line.removeprefix(PREFIX), validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if not line.startswith(PREFIX) or not MIN_BYTES <= len(secret) <= MAX_BYTES:
            raise ConfigError(
                f"{key}: expected {PREFIX} and {MIN_BYTES} to {MAX_BYTES} random bytes in base64, "
                f"as of: echo {PREFIX}$(openssl rand -base64 32)"
            )
        secrets.append(secret)
    if not secrets:
        raise ConfigError(f"{key}: holds no secret")
    return secrets


def sign(secrets: Sequence[bytes], webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the three headers of a webhook. `timestamp` is this attempt's, in seconds."""
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    signatures = [
        "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
        for secret in secrets
    ]
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }
