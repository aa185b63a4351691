"""Who may read what. Pure."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable


class Access:
    """The readers of everybody's status, by e-mail or shell pattern (`*@ops.example.com`)."""

    def __init__(self, readers: Iterable[str]) -> None:
        self._readers = any_of(readers)

    def may_read_all(self, email: str) -> bool:
        """Say whether this (canonical) e-mail may read everybody's status."""
        return self._readers is not None and self._readers.fullmatch(email) is not None


def any_of(patterns: Iterable[str]) -> re.Pattern[str] | None:
    """Return what fully matches the e-mails of any of these shell patterns; None without one."""
    translated = [fnmatch.translate(pattern.lower()) for pattern in patterns]
    return re.compile("|".join(translated)) if translated else None
