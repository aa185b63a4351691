"""The `X-Request-ID` of a request, which finds its lines in the log. Pure."""

from __future__ import annotations

import re
import secrets

HEADER = "X-Request-ID"

# As proxies and programs make them: UUIDs, hexadecimal, trace ids with separators. No character
# that could forge a log line, and a bounded length.
_ACCEPTED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=+/-]{0,127}", re.ASCII)


def request_id(sent: str | None) -> str:
    """Return the id that the client sent if it is acceptable, else a new one."""
    if sent is not None and _ACCEPTED.fullmatch(sent):
        return sent
    return secrets.token_hex(8)
