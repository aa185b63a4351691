"""Which events a reader of the live stream wants. Pure."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tornado_status.model.email_patterns import any_of
from tornado_status.model.records import Event

MAX_TERMS = 20  # of each kind: every event is held against every different filter
MAX_PATTERN = 254  # characters, as of an e-mail
MAX_KIND = 32

_SPECIAL = re.compile(r"[*?\[]")
_KIND = re.compile(r"[a-z][a-z-]*")


class FilterError(ValueError):
    """A filter that cannot be; the message is a sentence for the client."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Events of these e-mails or patterns and of these kinds; of all where there is none.

    `emails` are literal, whatever characters are in them: `*@example.com` is an address, too.
    """

    emails: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()

    @property
    def only(self) -> frozenset[str] | None:
        """The e-mails where nobody else's events are wanted, else None."""
        return self.emails if self.emails and not self.patterns else None

    def select(self, events: Sequence[Event]) -> Sequence[Event]:
        """Return the wanted ones of `events`."""
        if self.kinds:
            events = [event for event in events if event.event in self.kinds]
        if self.patterns:
            matches = _matches(self)
            events = [event for event in events if matches(event.email)]
        elif self.emails:
            events = [event for event in events if event.email in self.emails]
        return events


def own(email: str, kinds: Iterable[str]) -> Wanted:
    """Return a filter for the events of one user."""
    return Wanted(emails=frozenset([email]), kinds=_kinds(kinds))


def parse(patterns: Iterable[str], kinds: Iterable[str]) -> Wanted:
    """Return a reader's filter. Raises `FilterError`."""
    lowered = {pattern.lower() for pattern in patterns}
    if len(lowered) > MAX_TERMS or any(not 0 < len(text) <= MAX_PATTERN for text in lowered):
        raise FilterError(
            f"email: expected up to {MAX_TERMS} patterns of 1-{MAX_PATTERN} characters"
        )
    shaped = frozenset(text for text in lowered if _SPECIAL.search(text))
    return Wanted(frozenset(lowered) - shaped, shaped, _kinds(kinds))


def _kinds(kinds: Iterable[str]) -> frozenset[str]:
    found = frozenset(kinds)
    if len(found) > MAX_TERMS or any(
        len(kind) > MAX_KIND or not _KIND.fullmatch(kind) for kind in found
    ):
        raise FilterError(f"event: expected up to {MAX_TERMS} kinds, such as check-in")
    return found


@functools.lru_cache(256)
def _matches(wanted: Wanted) -> Callable[[str], object]:
    compiled = any_of([*wanted.patterns, *map(_literally, wanted.emails)])
    return compiled.fullmatch if compiled is not None else lambda _: None


def _literally(email: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", email)
