"""Reads datagrams without proof, unsigned or of an unknown key, and returns new updates. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from listeners.order.bounded_set import DEFAULT_SIZE, BoundedSet
from tornado_status.model.records import Event
from tornado_status.runtime.bounded_dict import BoundedDict
from tornado_status.wire.datagram import BinaryUpdate, Datagram, decode

MAX_LOGS = 64  # log ids of which the first number is kept


class Encoding(enum.StrEnum):
    """Which of the two formats is shown."""

    AUTO = "auto"
    JSON = "json"
    BINARY = "binary"


@dataclass(slots=True)
class UnverifiedCounts:
    """Updates and datagrams that were not returned."""

    duplicates: int = 0  # updates
    healed: int = 0  # updates that came only as a repetition
    ignored: int = 0  # well-formed datagrams of the encoding that was not asked for


class UnverifiedReader:
    """Decodes datagrams and drops the updates that were received before.

    A JSON update is known by its log id and number. A binary one, which has neither, is known by
    all its bytes. An update that comes in both encodings is shown twice: nothing proves the two
    equal.
    """

    def __init__(self, encoding: Encoding = Encoding.AUTO, window_size: int = DEFAULT_SIZE) -> None:
        self.counts = UnverifiedCounts()
        self._encoding = encoding
        # One set each, so that a flood of one format cannot push out what the other remembers.
        self._numbers = BoundedSet[tuple[int, int]](window_size)
        self._payloads = BoundedSet[bytes](window_size)
        # By log id, the number that its first datagram began with: older repetitions are no news.
        self._first = BoundedDict[int, int](MAX_LOGS)

    def receive(self, payload: bytes) -> Sequence[Event | BinaryUpdate]:
        """Return the new updates of one datagram in order, those that it repeats first.

        Raises `DatagramError` for bytes that are no status datagram.
        """
        datagram = decode(payload)
        updates: list[Event | BinaryUpdate]
        if isinstance(datagram, Datagram):
            if self._encoding is Encoding.BINARY:
                self.counts.ignored += 1
                return ()
            new = [event for event in datagram.updates if self._is_new(datagram, event)]
            self.counts.duplicates += len(datagram.updates) - len(new)
            healed = self._healed(datagram)
            self.counts.healed += len(healed)
            updates = [*healed, *new]
        else:
            if self._encoding is Encoding.JSON:
                self.counts.ignored += 1
                return ()
            updates = [datagram] if self._payloads.add(payload) else []
            self.counts.duplicates += 1 - len(updates)
        return updates

    def _healed(self, datagram: Datagram) -> list[Event]:
        log_id = datagram.log_id.int
        if log_id not in self._first:
            first = datagram.updates[0].seq if datagram.updates else datagram.head + 1
            self._first[log_id] = first
        first = self._first[log_id]
        return [
            event
            for event in reversed(datagram.repeated)
            if event.seq >= first and self._is_new(datagram, event)
        ]

    def _is_new(self, datagram: Datagram, event: Event) -> bool:
        return self._numbers.add((datagram.log_id.int, event.seq))
