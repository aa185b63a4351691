"""Notices that certificate, key and CRL files have changed, by polling them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import structlog

from tornado_status.errors import ConfigError

LOOK_EVERY_S = 0.25  # stat(2) of a few files; a change is in force well within a second

Signature = tuple[tuple[int, int, int] | None, ...]


class FileWatcher:
    """Calls `reload` when one of the files has changed and stands still, or when told to.

    Polling and not inotify: it sees what renames, bind mounts and network file systems do.
    `problem` is why the last reload failed, "" once one has gone well.
    """

    def __init__(self, files: Iterable[Path], reload: Callable[[], Awaitable[None]]) -> None:
        self._files = tuple(files)
        self._reload = reload
        self._told = asyncio.Event()
        self.problem = ""
        self._log = structlog.get_logger()

    def tell(self) -> None:
        """Reload now, whether or not anything has changed."""
        self._told.set()

    async def run(self) -> None:
        """Watch until cancelled. A reload that fails is logged, and the old state stays."""
        in_force = seen = self._look()
        while True:
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._told.wait()
            except TimeoutError:
                pass
            now = self._look()
            if not self._told.is_set() and (now == in_force or now != seen):
                seen = now  # nothing new, or still being written
                continue
            self._told.clear()
            in_force = seen = now
            try:
                await self._reload()
            except ConfigError as error:
                self.problem = str(error)
                self._log.error("reload failed, the old state stays", reason=self.problem)
            else:
                self.problem = ""

    def _look(self) -> Signature:
        found: list[tuple[int, int, int] | None] = []
        for file in self._files:
            try:
                status = file.stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(found)
