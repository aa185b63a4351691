"""What was heard before: a bounded memory of keys. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

# Copies of an update (by multicast, by broadcast, from a second interface) are milliseconds apart.
# A database logs at most about 64,000 check-ins a second, so this is a second at the highest rate.
WINDOW_SIZE = 65_536


class Window(Generic[Key]):
    """Remembers the newest `size` keys, in the order in which they first came."""

    def __init__(self, size: int = WINDOW_SIZE) -> None:
        if size < 1:
            raise ValueError(f"size: expected at least 1, got {size}")
        self._size = size
        # An OrderedDict, because a dict's oldest key gets ever slower to find as keys are dropped.
        self._keys: OrderedDict[Key, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    def add(self, key: Key) -> bool:
        """Remember `key` and forget the oldest one beyond the size. False: it was known."""
        if key in self._keys:
            return False
        self._keys[key] = None
        if len(self._keys) > self._size:
            self._keys.popitem(last=False)
        return True
