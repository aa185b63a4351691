"""Connections that wait for their handshake to begin: addresses take turns. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class WaitingRoom(Generic[T]):
    """Items that wait, by address."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[T]] = OrderedDict()  # in the order of their turns
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, address: str, item: T) -> None:
        """Let an item wait behind those of its address."""
        self._queues.setdefault(address, deque()).append(item)
        self._count += 1

    def take(self) -> T:
        """Remove and return the first item of the address whose turn it is."""
        address, queue = self._queues.popitem(last=False)
        item = queue.popleft()
        if queue:
            self._queues[address] = queue
        self._count -= 1
        return item

    def drop(self) -> T:
        """Remove and return the last item of the address with the most."""
        address, queue = max(self._queues.items(), key=lambda each: len(each[1]))
        item = queue.pop()
        if not queue:
            del self._queues[address]
        self._count -= 1
        return item
