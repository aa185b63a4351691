"""Patterns of users: e-mail addresses, or shell patterns of them. Pure."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from tornado_status.model.email_address import parse_email


def any_of(patterns: Iterable[str]) -> re.Pattern[str] | None:
    """Return what fully matches the e-mails of any of these shell patterns; None without one."""
    translated = [fnmatch.translate(_canonical(pattern)) for pattern in patterns]
    return re.compile("|".join(translated)) if translated else None


def _canonical(pattern: str) -> str:
    try:
        return parse_email(pattern)  # an address, however its domain is written
    except ValueError:
        return pattern.lower()
