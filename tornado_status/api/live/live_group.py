"""The subscriptions that are up to date. They share one position in the log."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

from tornado_status.api.live.event_filter import EventFilter
from tornado_status.api.live.subscription import Subscription
from tornado_status.model.records import Event
from tornado_status.runtime.waiting import wait_set

Members = dict[Subscription, None]  # in the order in which they joined


class LiveGroup:
    """All up-to-date subscriptions, by event filter: an event is matched once for each filter."""

    def __init__(self) -> None:
        self.log_id = uuid.UUID(int=0)
        self.position = 0
        self._by_filter: dict[EventFilter, Members] = {}
        self._by_email: dict[str, dict[EventFilter, Members]] = {}  # filters that name users only
        self._broad: dict[EventFilter, Members] = {}  # the others: matched against every event
        self._moved = asyncio.Event()

    def move_to(self, position: int, log_id: uuid.UUID | None = None) -> None:
        """Set the position of all members, and the log id if a new log has begun."""
        self.position = position
        if log_id is not None:
            self.log_id = log_id
        self._moved.set()
        self._moved = asyncio.Event()

    async def wait_moved(self, timeout_s: float) -> None:
        """Return once the position has moved, at the latest after `timeout_s`."""
        await wait_set(self._moved, timeout_s)

    def join(self, subscription: Subscription) -> bool:
        """Add a subscription; return False if it is at another position."""
        if (subscription.log_id, subscription.position) != (self.log_id, self.position):
            return False
        event_filter = subscription.event_filter
        members = self._by_filter.get(event_filter)
        if members is None:
            members = self._by_filter[event_filter] = {}
            if event_filter.only is None:
                self._broad[event_filter] = members
            for email in event_filter.only or ():
                self._by_email.setdefault(email, {})[event_filter] = members
        members[subscription] = None
        return True

    def leave(self, subscription: Subscription) -> None:
        """Remove a subscription. Does nothing if it is no member."""
        event_filter = subscription.event_filter
        members = self._by_filter.get(event_filter)
        if members is None or members.pop(subscription, False) is False or members:
            return
        del self._by_filter[event_filter]
        self._broad.pop(event_filter, None)
        for email in event_filter.only or ():
            del self._by_email[email][event_filter]
            if not self._by_email[email]:
                del self._by_email[email]

    def members(self) -> list[Subscription]:
        """Return all members."""
        return [each for members in self._by_filter.values() for each in members]

    def interested(self, events: Sequence[Event]) -> list[tuple[EventFilter, list[Subscription]]]:
        """Return the filters that may match one of `events`, with their members."""
        found = dict(self._broad)
        if self._by_email:
            for event in events:
                found.update(self._by_email.get(event.email, {}))
        return [(event_filter, list(members)) for event_filter, members in found.items()]
