"""Permissions: who may read all users, and who may enrol and remove them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tornado_status.model.email_patterns import any_of


class Access:
    """The readers and the admins, by e-mail address or shell pattern (`*@ops.example.com`).

    Admins are readers, too.
    """

    def __init__(self, readers: Iterable[str], admins: Iterable[str] = ()) -> None:
        self._readers = any_of(readers)
        self._admins = any_of(admins)

    def may_read_all(self, email: str) -> bool:
        """Return whether this (canonical) e-mail address may read the status of all users."""
        return _matches(self._readers, email) or self.may_administer(email)

    def may_administer(self, email: str) -> bool:
        """Return whether this (canonical) e-mail address may enrol and remove users."""
        return _matches(self._admins, email)


def _matches(patterns: re.Pattern[str] | None, email: str) -> bool:
    return patterns is not None and patterns.fullmatch(email) is not None
