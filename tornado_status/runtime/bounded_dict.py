"""A dict with a size limit, for caches that a peer can fill."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(dict[K, V]):
    """A dict of at most `max_size` keys. A new key beyond that evicts the oldest one.

    Only `d[key] = value` keeps the limit: use no `update` and no `setdefault`.
    """

    def __init__(self, max_size: int) -> None:
        super().__init__()
        self._max_size = max_size

    def __setitem__(self, key: K, value: V) -> None:
        if len(self) >= self._max_size and key not in self:
            del self[next(iter(self))]
        super().__setitem__(key, value)
