"""Datagrams that wait to be verified: a bounded queue for each source, served in turn. Pure.

A signature takes longer to check than a forged datagram takes to send. A flood fills only the queue
of its own source, and the other sources are served as usual.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from listeners.events import Source

MAX_WAITING = 4096  # datagrams, at most 6 MB
MAX_SOURCES = 256  # addresses with ports; those beyond it share one queue


class FairQueue:
    """Holds datagrams by source. When it is full, the longest queue loses its newest datagram."""

    def __init__(self, max_waiting: int = MAX_WAITING, max_sources: int = MAX_SOURCES) -> None:
        self._max_waiting = max_waiting
        self._max_sources = max_sources
        self._queues: OrderedDict[Source | None, deque[tuple[bytes, Source]]] = OrderedDict()
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def put(self, payload: bytes, source: Source) -> bool:
        """Queue a datagram. False: another one, or this one, was dropped for it."""
        key = source if source in self._queues or len(self._queues) < self._max_sources else None
        room = self._waiting < self._max_waiting
        if not room:
            longest = max(self._queues, key=lambda known: len(self._queues[known]))
            if len(self._queues[longest]) <= len(self._queues.get(key, ())) + 1:
                return False
            self._queues[longest].pop()
            self._waiting -= 1
        self._queues.setdefault(key, deque()).append((payload, source))
        self._waiting += 1
        return room

    def get(self) -> tuple[bytes, Source] | None:
        """Return the oldest datagram of the source whose turn it is."""
        if not self._queues:
            return None
        key, queue = self._queues.popitem(last=False)
        found = queue.popleft()
        self._waiting -= 1
        if queue:
            self._queues[key] = queue
        return found
