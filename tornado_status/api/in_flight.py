"""Requests that are being answered, counted for the graceful shutdown."""

from __future__ import annotations

import asyncio

from tornado_status.runtime.waiting import wait_set


class RequestsInFlight:
    """The number of requests that have begun and are not answered yet."""

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
        """Wait until no request is in flight; return False if that takes longer."""
        return await wait_set(self._none, timeout_s)
