"""A semaphore of which no key can take all places."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class _Share:
    places: asyncio.Semaphore
    users: int = 0  # those that hold a place, and those that wait for one


class FairSemaphore:
    """At most `total` places, and of these at most `each` for one key.

    A key without a free place waits for its own places. It takes none of `total` meanwhile.
    """

    def __init__(self, each: int, total: int) -> None:
        self._each = each
        self._total = asyncio.Semaphore(total)
        self._shares: dict[str, _Share] = {}

    @asynccontextmanager
    async def place(self, key: str) -> AsyncIterator[None]:
        """Wait for a place, and hold it."""
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = _Share(asyncio.Semaphore(self._each))
        share.users += 1
        try:
            async with share.places, self._total:
                yield
        finally:
            share.users -= 1
            if not share.users:
                del self._shares[key]
