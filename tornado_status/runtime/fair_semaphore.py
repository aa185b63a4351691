"""A semaphore of which no key can take all places."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
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

    async def acquire(self, key: str) -> None:
        """Wait for a place, which `release` gives back."""
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = _Share(asyncio.Semaphore(self._each))
        share.users += 1
        try:
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(share.places)
                await self._total.acquire()
                stack.pop_all()
        except BaseException:
            self._leave(key)
            raise

    @contextlib.asynccontextmanager
    async def place(self, key: str) -> AsyncIterator[None]:
        """Wait for a place, and hold it."""
        await self.acquire(key)
        try:
            yield
        finally:
            self.release(key)

    def release(self, key: str) -> None:
        self._total.release()
        self._shares[key].places.release()
        self._leave(key)

    def _leave(self, key: str) -> None:
        share = self._shares[key]
        share.users -= 1
        if not share.users:
            del self._shares[key]
