"""Keeps the key that announcements are sealed with: the database's newest, changed in time."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence

from tornado_status.errors import StoreError
from tornado_status.model.records import GroupKey
from tornado_status.pki.trust_anchors import Anchors
from tornado_status.runtime.waiting import wait_set
from tornado_status.wire.sealed_datagram import EpochSecret, Sealer

POLL_S = 5.0  # how late an epoch that another server began is used at most
RETRY_S = 1.0

Keep = Callable[[bytes | None], Awaitable[list[GroupKey]]]


class GroupKeyKeeper:
    """Calls `use_sealer` with a new `Sealer` whenever an epoch begins.

    `keep` returns the key in use and the next one, see `store.group_keys.keep`.
    """

    def __init__(self, keep: Keep, use_sealer: Callable[[Sealer], None]) -> None:
        self._keep = keep
        self._use_sealer = use_sealer
        self.readers = b""  # the hash in force here; at each new connection the database is told
        self._stored = False  # between two connections only a change is told, see `_refresh`
        self._changed = asyncio.Event()
        self._used: tuple[int, bytes] | None = None

    def restrict_to(self, readers: bytes) -> None:
        """Begin an epoch if others than before may read; `readers` is from `reader_hash`."""
        self.readers = readers
        self._stored = False
        self._changed.set()

    async def run(self) -> None:
        """Keep until cancelled."""
        while True:
            self._changed.clear()
            try:
                wait_s = await self._refresh()
            except StoreError:
                wait_s = RETRY_S  # the store logs it
            await wait_set(self._changed, wait_s)

    async def _refresh(self) -> float:
        """Use the newest key that has begun; return the seconds until the next look."""
        readers = self.readers
        # Once is enough: two servers with other settings would begin epochs in turn for ever.
        keys = await self._keep(None if self._stored else readers)
        self._stored = readers is self.readers
        self.use(keys)
        return min([POLL_S, *(key.wait_s for key in keys if key.wait_s > 0)])

    def use(self, keys: Sequence[GroupKey]) -> None:
        """Seal with the newest of these keys that has begun."""
        begun = [(key.epoch, key.secret) for key in keys if key.wait_s <= 0]
        if begun and begun[-1] != self._used:
            self._used = begun[-1]
            self._use_sealer(Sealer(EpochSecret(*self._used)))


def reader_hash(readers: Sequence[str], admins: Sequence[str], anchors: Anchors) -> bytes:
    """Return a hash of what decides who may read: the patterns, the CAs, and what is revoked."""
    digest = hashlib.sha256(anchors.fingerprint)
    for pattern in (*sorted(readers), "", *sorted(admins)):
        digest.update(pattern.encode() + b"\n")
    for ca, crl in sorted(anchors.crls.items()):
        digest.update(ca + crl.mark.entries)
    return digest.digest()
