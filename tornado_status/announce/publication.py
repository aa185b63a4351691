"""Keeps the announcer's certificates in the database, where listeners fetch them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from tornado_status.errors import StoreError
from tornado_status.pki.datagram_signing import Signing
from tornado_status.runtime.waiting import wait_set

REFRESH_S = 60.0  # a certificate that is refreshed no more is served for an hour


class Publication:
    """Publishes the certificates in use, and refreshes them."""

    def __init__(self, publish: Callable[[Sequence[tuple[str, str]]], Awaitable[None]]) -> None:
        self._publish = publish
        self._entries: list[tuple[str, str]] = []
        self._changed = asyncio.Event()

    def use(self, signing: Signing | None) -> None:
        """Publish these certificates from now on."""
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
                wait_s = 1.0  # the database is away; the store logs it
            await wait_set(self._changed, wait_s)
