"""Servers that break a promise: `python -m tests.faults.wrong_server WHICH --config FILE`.

The negative controls: what the judge is there to find, it must find here.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import sys
import time
from collections.abc import Callable

from tornado_status.announce import Announcer
from tornado_status.checkin import Event, EventKind
from tornado_status.cli import main
from tornado_status.errors import StoreUnavailable
from tornado_status.ingress import CheckInService, FileWatcher
from tornado_status.store import Store, commit, database, embedded, store
from tornado_status.store.commit import GroupCommit, Pending
from tornado_status.store.database import Connection

_commit = GroupCommit._commit


def _guess(self: GroupCommit, batch: list[Pending]) -> list[Event]:
    now = datetime.datetime.now(datetime.UTC)
    return [
        Event(self.head + n, EventKind.CHECK_IN, c.email, now, c.client_ip, c.client_port)
        for n, (c, _, _) in enumerate(batch, start=1)
    ]


async def _acknowledge_early(
    self: GroupCommit, connection: Connection, batch: list[Pending]
) -> None:
    for (_, done, _), event in zip(batch, _guess(self, batch), strict=True):
        done(event)
    await _commit(self, connection, [(check_in, lambda _: None, at) for check_in, _, at in batch])


async def _announce_early(self: GroupCommit, connection: Connection, batch: list[Pending]) -> None:
    events = _guess(self, batch)
    self._on_commit(events, events[-1].seq)
    await _commit(self, connection, batch)


async def _retry(self: GroupCommit, connection: Connection, batch: list[Pending]) -> None:
    """Send again what may have been recorded."""
    held = [(check_in, lambda _: None, at) for check_in, _, at in batch]
    try:
        await _commit(self, connection, held)
    except StoreUnavailable:
        self._queue.extendleft(reversed(batch))
        raise
    for (_, done, _), event in zip(batch, _guess(self, batch), strict=True):
        done(event)


def acknowledge_early() -> None:
    GroupCommit._commit = _acknowledge_early  # type: ignore[method-assign]


def announce_early() -> None:
    GroupCommit._commit = _announce_early  # type: ignore[method-assign]


def retry() -> None:
    GroupCommit._commit = _retry  # type: ignore[method-assign]


def _instead(old: str, new: str) -> None:
    assert old in commit.PREPARE_RECORD
    vars(store)["PREPARE_RECORD"] = commit.PREPARE_RECORD.replace(old, new)


def skip_numbers() -> None:
    _instead("head.seq + (SELECT count(*)", "head.seq + (SELECT count(*) + 1")


def follow_the_clock() -> None:
    _instead("greatest(at, clock_timestamp())", "clock_timestamp()")


def forget_the_status() -> None:
    _instead("WHERE role > 0 ORDER BY email", "WHERE before = 0 ORDER BY email")


def ignore_warnings() -> None:
    """Believe a commit whose wait for the standby was canceled."""
    database._has_warning = lambda raw: False


def hang_up() -> None:
    """End the connections before what was read from them is answered."""
    CheckInService.drain = CheckInService.close  # type: ignore[method-assign]


_kept: list[object] = []


def _keep(make: Callable[[], object]) -> None:
    """Let every batch leave something behind."""

    async def keeping(self: GroupCommit, connection: Connection, batch: list[Pending]) -> None:
        _kept.append(make())
        await _commit(self, connection, batch)

    GroupCommit._commit = keeping  # type: ignore[method-assign]


def keep_memory() -> None:
    _keep(lambda: bytearray(b"x" * 100_000))


def keep_descriptors() -> None:
    _keep(lambda: os.open("/dev/null", os.O_RDONLY))


async def _stumble(*_: object) -> None:
    await asyncio.sleep(3)  # when it serves; what is tested does not depend on it
    raise RuntimeError("a part has stumbled")


def lose_the_heartbeats() -> None:
    Announcer._send_heartbeats = _stumble  # type: ignore[assignment]


def lose_the_watcher() -> None:
    FileWatcher.run = _stumble  # type: ignore[assignment]


def recover_slowly() -> None:
    """Wait long between two attempts to connect."""
    vars(commit)["RETRY_MIN_S"] = vars(commit)["RETRY_MAX_S"] = 20.0


def hang_in_the_stop() -> None:
    """Block the event loop, where no deadline of its own can end it."""

    async def hang(self: Store, timeout_s: float) -> None:
        time.sleep(3600)  # noqa: ASYNC251 - that is the fault

    Store.drain = hang  # type: ignore[method-assign]


def leave_orphans() -> None:
    """End PostgreSQL's first process, and forget the others."""
    embedded._children = lambda parent: []


if __name__ == "__main__":
    which = sys.argv.pop(1)
    globals()[which]()
    sys.exit(main())
