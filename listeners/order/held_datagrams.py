"""Datagrams of logs that are not followed yet, until it is known how the log began. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from listeners.events import Source
from tornado_status.runtime.bounded_dict import BoundedDict
from tornado_status.wire.datagram import Datagram

# How long a log's heartbeat, or the server, may take to say how the log began. Servers send a
# heartbeat at once, and every `announce.heartbeat_s` after that, by default 5 s.
HOLD_S = 12.0
MAX_HELD = 1024  # datagrams of one log, of about 20 updates at most
MAX_LOGS = 8


@dataclass(slots=True)
class _Log:
    """`first` is the smallest number of its datagrams so far, `until` when holding them ends."""

    first: int
    until: float
    datagrams: list[tuple[Datagram, Source]] = field(default_factory=list)


class HeldDatagrams:
    """Holds at most `MAX_HELD` datagrams of each of the newest `MAX_LOGS` logs, for `HOLD_S`."""

    def __init__(self) -> None:
        self._logs = BoundedDict[uuid.UUID, _Log](MAX_LOGS)

    def hold(self, datagram: Datagram, source: Source, now: float) -> bool:
        """Hold a datagram; return False if there is no time or room left for those of its log."""
        log_id = datagram.log_id
        held = self._logs.get(log_id)
        if held is None:
            held = self._logs[log_id] = _Log(first_number(datagram), now + HOLD_S)
        held.first = min(held.first, first_number(datagram))
        if now >= held.until or len(held.datagrams) >= MAX_HELD:
            return False
        held.datagrams.append((datagram, source))
        return True

    def first(self, log_id: uuid.UUID) -> int | None:
        """Return the smallest number of a log's datagrams so far, None if there were none."""
        held = self._logs.get(log_id)
        return None if held is None else held.first

    def take(self, log_id: uuid.UUID) -> tuple[int, Sequence[tuple[Datagram, Source]]]:
        """Return the datagrams of a log in the order of their arrival, and hold them no longer.

        Before them is the smallest number of all that came, 0 if there were none.
        """
        held = self._logs.pop(log_id, None)
        return (0, ()) if held is None else (held.first, held.datagrams)

    def overdue(self, now: float) -> uuid.UUID | None:
        """Return a log whose datagrams were held for as long as may be."""
        for log_id, held in self._logs.items():
            if held.datagrams and now >= held.until:
                return log_id
        return None

    def wake_at(self) -> float | None:
        """Return when there may be an overdue log."""
        return min((held.until for held in self._logs.values() if held.datagrams), default=None)


def first_number(datagram: Datagram) -> int:
    """Return the number that a datagram's events begin with, or the one that comes next."""
    return min((event.seq for event in datagram.updates), default=datagram.head + 1)
