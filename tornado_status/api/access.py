"""Who may read what, and who may enrol and remove. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tornado_status.model.email_patterns import any_of


class Access:
    """The readers of everybody's status, and the admins, by e-mail or shell pattern
    (`*@ops.example.com`). Admins may read, too.
    """

    def __init__(self, readers: Iterable[str], admins: Iterable[str] = ()) -> None:
        self._readers = any_of(readers)
        self._admins = any_of(admins)

    def may_read_all(self, email: str) -> bool:
        """Say whether this (canonical) e-mail may read everybody's status."""
        return _names(self._readers, email) or self.may_administer(email)

    def may_administer(self, email: str) -> bool:
        """Say whether this (canonical) e-mail may enrol and remove users."""
        return _names(self._admins, email)


def _names(patterns: re.Pattern[str] | None, email: str) -> bool:
    return patterns is not None and patterns.fullmatch(email) is not None
