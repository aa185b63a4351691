"""A name for each request, to find its lines in the log by. Pure."""

from __future__ import annotations

import re
import secrets

HEADER = "X-Request-ID"

# What proxies and programs make of it: UUIDs, hexadecimal, traces with their separators. Nothing
# that could forge a line or fill the log.
_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=+/-]{0,127}", re.ASCII)


def request_id(asked_for: str | None) -> str:
    """Return the sender's own name for a request where it is sane, else a new one."""
    if asked_for is not None and _SANE.fullmatch(asked_for):
        return asked_for
    return secrets.token_hex(8)
