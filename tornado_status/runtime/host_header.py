"""Checking a Host header (RFC 9110, 7.2). Pure. Tornado accepts any number of colons."""

from __future__ import annotations

import re

# RFC 3986, 3.2.2 and 3.2.3: a name or an IPv4 address, or an IPv6 address in brackets; a port.
_HOST = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?"
)


def is_host(value: str) -> bool:
    """Return whether `value` is one host, with or without a port; it may be empty."""
    return _HOST.fullmatch(value) is not None
