"""Reads what nothing proves, unsigned or of an unknown key: bytes in, new updates out. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from listeners.order.lru_set import WINDOW_SIZE, Window
from tornado_status.model.records import Event
from tornado_status.wire.datagram import BinaryUpdate, Datagram, decode


class Encoding(enum.StrEnum):
    """Which of the two formats is shown."""

    AUTO = "auto"
    JSON = "json"
    BINARY = "binary"


@dataclass(slots=True)
class Counts:
    """What was not returned."""

    duplicates: int = 0  # updates
    ignored: int = 0  # datagrams, well-formed, of the encoding that was not asked for


class Receiver:
    """Decodes datagrams and drops the updates that were heard before.

    JSON updates are known by their stream and number, binary ones, which have neither, by all
    their bytes. An update heard in both encodings is shown twice: nothing proves the two equal.
    """

    def __init__(self, encoding: Encoding = Encoding.AUTO, window_size: int = WINDOW_SIZE) -> None:
        self.counts = Counts()
        self._encoding = encoding
        # One window each, so that a flood of one format cannot push out what the other remembers.
        self._numbers = Window[tuple[int, int]](window_size)
        self._payloads = Window[bytes](window_size)

    def receive(self, payload: bytes) -> Sequence[Event | BinaryUpdate]:
        """Return the new updates of one datagram, in its order; none for a heartbeat.

        Raises `DatagramError` for bytes that are no status datagram.
        """
        datagram = decode(payload)
        updates: Sequence[Event | BinaryUpdate]
        if isinstance(datagram, Datagram):
            if self._encoding is Encoding.BINARY:
                self.counts.ignored += 1
                return ()
            log_id = datagram.log_id.int
            updates = [
                event for event in datagram.updates if self._numbers.add((log_id, event.seq))
            ]
            self.counts.duplicates += len(datagram.updates) - len(updates)
        else:
            if self._encoding is Encoding.JSON:
                self.counts.ignored += 1
                return ()
            updates = [datagram] if self._payloads.add(payload) else []
            self.counts.duplicates += 1 - len(updates)
        return updates
