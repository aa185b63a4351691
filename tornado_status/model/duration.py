"""Durations as people write them: seconds, or a number with a unit. Pure.

`clients.cli` has the same grammar, because it imports the standard library only; a test compares
the two.
"""

from __future__ import annotations

import re

EXPECTED = "expected seconds, or a duration such as 90s, 15m, 12h, 7d"

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float:
    """Return the seconds of `90`, `90s`, `15m`, `12h` or `7d`. Raises `ValueError`."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smhd])", text.strip())
    if match:
        return float(match[1]) * _UNITS_S[match[2]]
    try:
        return float(text)
    except ValueError:
        raise ValueError(EXPECTED) from None
