"""Keeps the announcers' certificates published in the database, for listeners to fetch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from tornado_status.errors import StoreError
from tornado_status.pki.signing import Signing

REFRESH_S = (
    60.0  # how often a certificate in use is said to be so; readers keep it for an hour more
)


class Publication:
    """Says again and again which certificates are in use, so that readers can fetch them."""

    def __init__(self, publish: Callable[[Sequence[tuple[str, str]]], Awaitable[None]]) -> None:
        self._publish = publish
        self._entries: list[tuple[str, str]] = []
        self._changed = asyncio.Event()

    def use(self, signing: Signing | None) -> None:
        """From now on publish these, at once."""
        published = signing.published if signing is not None else ()
        self._entries = [(each.kid, each.certificate) for each in published]
        self._changed.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            self._changed.clear()
            wait_s = REFRESH_S
            try:
                if self._entries:
                    await self._publish(self._entries)
            except StoreError:
                wait_s = 1.0  # the database is away, and the log says so already
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
