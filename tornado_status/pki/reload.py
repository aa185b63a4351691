"""Watching certificate, key and CRL files for changes, by polling them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import structlog

from tornado_status.errors import ConfigError
from tornado_status.runtime.waiting import wait_set

POLL_EVERY_S = 0.25  # stat(2) of a few files; a change is in force well within a second

Signature = tuple[tuple[int, int, int] | None, ...]


class FileWatcher:
    """Calls `reload` when a file has changed and is not being written, or on `reload_now`.

    Polling instead of inotify also sees renames, bind mounts and network file systems. `problem` is
    why the last reload failed, "" if it succeeded.
    """

    def __init__(self, files: Iterable[Path], reload: Callable[[], Awaitable[None]]) -> None:
        self._files = tuple(files)
        self._reload = reload
        self._requested = asyncio.Event()
        self.problem = ""
        self._log = structlog.get_logger()

    def reload_now(self) -> None:
        """Reload even if no file has changed."""
        self._requested.set()

    async def run(self) -> None:
        """Watch until cancelled. A reload that fails is logged and changes nothing."""
        in_force = seen = self._poll()
        while True:
            requested = await wait_set(self._requested, POLL_EVERY_S)
            now = self._poll()
            if not requested and (now == in_force or now != seen):
                seen = now  # no change, or still being written
                continue
            self._requested.clear()
            in_force = seen = now
            try:
                await self._reload()
            except ConfigError as error:
                self.problem = str(error)
                self._log.error(
                    "reload failed, keeping the previous certificates", reason=self.problem
                )
            else:
                self.problem = ""

    def _poll(self) -> Signature:
        found: list[tuple[int, int, int] | None] = []
        for file in self._files:
            try:
                status = file.stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(found)
