"""Writing to subscriptions, and ending them.

Events are encoded once for all subscriptions with the same filter. Nothing is queued for a
subscription except the bytes that its connection has not taken yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Sequence

from tornado_status.api.live.framing import LiveMessage, event_message
from tornado_status.api.live.live_group import LiveGroup
from tornado_status.api.live.subscription import Subscription
from tornado_status.model.records import Event
from tornado_status.runtime.bounded_dict import BoundedDict

MAX_ENCODED = 32  # writes kept for other subscriptions with the same filter


class Delivery:
    """All open subscriptions. `ended` counts, by reason, those that the server ended."""

    def __init__(self, group: LiveGroup) -> None:
        self.open: dict[Subscription, None] = {}
        self.ended: Counter[str] = Counter()
        self._group = group
        self._encoded: BoundedDict[tuple[object, ...], bytes] = BoundedDict(MAX_ENCODED)

    def send(self, subscription: Subscription, message: LiveMessage) -> None:
        """Send one message."""
        framing = subscription.framing
        self._write(subscription, framing.join([framing.frame(message)]))

    def send_events(
        self, subscription: Subscription, events: Sequence[Event]
    ) -> Awaitable[None] | None:
        """Send events of the subscription's log.

        Return what completes when the kernel has taken them.
        """
        framing, log_id = subscription.framing, subscription.log_id
        key = (framing, subscription.event_filter, log_id, events[0].seq, events[-1].seq)
        data = self._encoded.get(key)
        if data is None:
            data = framing.join([framing.frame(event_message(log_id, event)) for event in events])
            self._encoded[key] = data
        return self._write(subscription, data)

    def _write(self, subscription: Subscription, data: bytes) -> Awaitable[None] | None:
        if not subscription.is_open:
            return None
        written = subscription.write(data)
        if written is None:
            self.cut_off(subscription)
        return written

    def cut_off(self, subscription: Subscription) -> None:
        """Close the connection of a slow client. Not even a goodbye would get through."""
        if subscription.is_open:
            self.ended["slow"] += 1
            self._forget(subscription)
            subscription.iostream.close()

    def end(self, subscription: Subscription, code: int, kind: str, reason: str) -> None:
        """End a subscription gracefully, and count it as `kind`."""
        if subscription.is_open:
            self.ended[kind] += 1
            self._forget(subscription)
            subscription.say_goodbye(code, reason)

    def on_disconnected(self, subscription: Subscription) -> None:
        """Remove a subscription whose connection is closed."""
        if subscription.is_open and subscription.iostream.stalled:
            self.ended["slow"] += 1
        if subscription.is_open and subscription.iostream.chatters:
            self.ended["chatters"] += 1
        if not subscription.disconnected.done():
            subscription.disconnected.set_result(None)
        self._forget(subscription)

    def _forget(self, subscription: Subscription) -> None:
        if not subscription.is_open:
            return
        subscription.is_open = False
        subscription.slot.release()
        del self.open[subscription]
        self._group.leave(subscription)
        if not self.open:
            self._encoded.clear()
