"""Event filters of subscriptions: by e-mail address, pattern and kind of event. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tornado_status.model.email_patterns import any_of
from tornado_status.model.records import Event

MAX_TERMS = 20  # of each sort: every event is matched against every different filter
MAX_PATTERN = 254  # characters, as of an e-mail address
MAX_WILDCARDS = 16  # of a pattern: each makes compiling and matching slower
MAX_KIND = 32

_SPECIAL = re.compile(r"[*?\[]")
_KIND = re.compile(r"[a-z][a-z-]*")


class FilterError(ValueError):
    """An invalid filter; the message is a sentence for the client."""


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Selects events of these e-mails or patterns, and of these kinds. An empty set selects all.

    `emails` are literal: `*@example.com` is a valid address, too.
    """

    emails: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    _matches: Callable[[str], object] | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # Here, once: a slow compilation costs the subscriber's own request, and no delivery.
        object.__setattr__(self, "_matches", self._compile())

    @property
    def only(self) -> frozenset[str] | None:
        """The e-mails, if events of these users alone can match; else None."""
        return self.emails if self.emails and not self.patterns else None

    def select(self, events: Sequence[Event]) -> Sequence[Event]:
        """Return the events that match."""
        if self.kinds:
            events = [event for event in events if event.event in self.kinds]
        if (matches := self._matches) is not None:
            events = [event for event in events if matches(event.email)]
        elif self.emails:
            events = [event for event in events if event.email in self.emails]
        return events

    def _compile(self) -> Callable[[str], object] | None:
        if not self.patterns:
            return None
        compiled = any_of([*self.patterns, *map(_escape, self.emails)])
        return None if compiled is None else compiled.fullmatch


def own_events(email: str, kinds: Iterable[str]) -> EventFilter:
    """Return a filter for the events of one user. Raises `FilterError`."""
    return EventFilter(emails=frozenset([email]), kinds=_parse_kinds(kinds))


def parse_filter(patterns: Iterable[str], kinds: Iterable[str]) -> EventFilter:
    """Return a reader's filter. Raises `FilterError`."""
    lowered = {pattern.lower() for pattern in patterns}
    if len(lowered) > MAX_TERMS or any(not 0 < len(text) <= MAX_PATTERN for text in lowered):
        raise FilterError(
            f"email: expected up to {MAX_TERMS} patterns of 1-{MAX_PATTERN} characters"
        )
    if any(len(_SPECIAL.findall(text)) > MAX_WILDCARDS for text in lowered):
        raise FilterError(f"email: expected up to {MAX_WILDCARDS} wildcards in a pattern")
    special = frozenset(text for text in lowered if _SPECIAL.search(text))
    return EventFilter(frozenset(lowered) - special, special, _parse_kinds(kinds))


def _parse_kinds(kinds: Iterable[str]) -> frozenset[str]:
    found = frozenset(kinds)
    if len(found) > MAX_TERMS or any(
        len(kind) > MAX_KIND or not _KIND.fullmatch(kind) for kind in found
    ):
        raise FilterError(f"event: expected up to {MAX_TERMS} kinds, such as check-in")
    return found


def _escape(email: str) -> str:
    """Return a pattern that matches this address alone."""
    return re.sub(r"([*?\[])", r"[\1]", email)
