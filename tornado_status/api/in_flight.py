"""Counting requests that are being answered, so that a shutdown can wait for them."""

from __future__ import annotations

import asyncio


class InFlight:
    """Requests that were begun and are not answered yet."""

    def __init__(self) -> None:
        self.count = 0
        self._none = asyncio.Event()
        self._none.set()

    def begin(self) -> None:
        self.count += 1
        self._none.clear()

    def end(self) -> None:
        self.count -= 1
        if self.count == 0:
            self._none.set()

    async def wait_none(self, timeout_s: float) -> bool:
        """Wait until none is left; False where that takes longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._none.wait()
        except TimeoutError:
            return False
        return True
