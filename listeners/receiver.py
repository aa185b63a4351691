"""Judges what arrives: bytes in, the updates worth showing out. No sockets, no clock."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from listeners.duplicates import WINDOW_SIZE, Window
from tornado_status.checkin import Event
from tornado_status.datagram import BinaryUpdate, Datagram, decode
from tornado_status.errors import DatagramError


class Encoding(enum.StrEnum):
    """Which of the two formats is shown."""

    AUTO = "auto"
    JSON = "json"
    BINARY = "binary"


@dataclass(slots=True)
class Counts:
    """What became of everything that was heard."""

    datagrams: int = 0
    shown: int = 0  # updates; all that follows counts updates or datagrams that were not
    duplicates: int = 0
    malformed: int = 0
    ignored: int = 0  # well-formed, of the encoding that was not asked for


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

        Raises `DatagramError` for bytes that are no status datagram, after counting them.
        """
        self.counts.datagrams += 1
        try:
            datagram = decode(payload)
        except DatagramError:
            self.counts.malformed += 1
            raise
        updates: Sequence[Event | BinaryUpdate]
        if isinstance(datagram, Datagram):
            if self._encoding is Encoding.BINARY:
                self.counts.ignored += 1
                return ()
            stream = datagram.stream.int
            updates = [
                event for event in datagram.updates if self._numbers.add((stream, event.seq))
            ]
            self.counts.duplicates += len(datagram.updates) - len(updates)
        else:
            if self._encoding is Encoding.JSON:
                self.counts.ignored += 1
                return ()
            updates = [datagram] if self._payloads.add(payload) else []
            self.counts.duplicates += 1 - len(updates)
        return updates
