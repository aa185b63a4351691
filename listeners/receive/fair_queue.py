"""Datagrams that wait to be verified: a bounded queue for each source, served in turn. Pure.

A signature takes longer to check than a forged datagram takes to send. A flood fills only the queue
of its own source. A flood from many forged sources fills only the half that sources share which
have announced nothing yet.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from listeners.events import Source

MAX_WAITING = 4096  # datagrams, at most 6 MB
MAX_SOURCES = 256  # addresses with ports; those beyond it share one queue
MAX_PROVEN = 64  # addresses with ports: each server has one for each of its interfaces


class FairQueue:
    """Holds datagrams by source. When it is full, the longest queue loses its newest datagram.

    A source is proven once `prove` was called for it. Proven sources and all others have half of
    the room each, and are served in turn.
    """

    def __init__(self, max_waiting: int = MAX_WAITING, max_sources: int = MAX_SOURCES) -> None:
        self._max_waiting = max_waiting
        self._max_sources = max_sources
        self._proven: OrderedDict[Source, None] = OrderedDict()
        self._of_proven, self._of_others = _Ring(), _Ring()
        self._next = self._of_proven

    def __len__(self) -> int:
        return self._of_proven.waiting + self._of_others.waiting

    def prove(self, source: Source) -> None:
        """Note that this source has sent an announcement that was verified."""
        self._proven[source] = None
        self._proven.move_to_end(source)
        if len(self._proven) > MAX_PROVEN:
            self._proven.popitem(last=False)

    def put(self, payload: bytes, source: Source) -> bool:
        """Queue a datagram. False: another one, or this one, was dropped for it."""
        ring, other = self._of_others, self._of_proven
        if source in self._proven:
            ring, other = other, ring
        key = source if source in ring.queues or len(ring.queues) < self._max_sources else None
        room = len(self) < self._max_waiting
        if not room and 2 * ring.waiting < self._max_waiting:
            other.shorten(1)
        elif not room and not ring.shorten(len(ring.queues.get(key, ())) + 2):
            return False
        ring.put(key, payload, source)
        return room

    def get(self) -> tuple[bytes, Source] | None:
        """Return the oldest datagram of the source whose turn it is."""
        ring = self._next
        other = self._of_others if ring is self._of_proven else self._of_proven
        self._next = other
        return ring.get() or other.get()


class _Ring:
    """Queues that are served in turn."""

    def __init__(self) -> None:
        self.queues: OrderedDict[Source | None, deque[tuple[bytes, Source]]] = OrderedDict()
        self.waiting = 0

    def put(self, key: Source | None, payload: bytes, source: Source) -> None:
        self.queues.setdefault(key, deque()).append((payload, source))
        self.waiting += 1

    def shorten(self, least: int) -> bool:
        """Drop the newest datagram of the longest queue, if that has `least` or more."""
        key = max(self.queues, key=lambda known: len(self.queues[known]))
        if len(self.queues[key]) < least:
            return False
        self.queues[key].pop()
        self.waiting -= 1
        if not self.queues[key]:
            del self.queues[key]
        return True

    def get(self) -> tuple[bytes, Source] | None:
        if not self.queues:
            return None
        key, queue = self.queues.popitem(last=False)
        found = queue.popleft()
        self.waiting -= 1
        if queue:
            self.queues[key] = queue
        return found
