"""Servers that break a promise: `python -m tests.support.faults.wrong_server WHICH --config FILE`.

The negative controls: what the judge is there to find, it must find here.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import datetime
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.with_constants import MAX_READS_EACH, MAX_REQUESTS_EACH, PIECE, replace_constants
from tornado_status.announce import Announcer
from tornado_status.cli import main
from tornado_status.errors import StoreUnavailable
from tornado_status.ingress.check_in_service import CheckInService
from tornado_status.ingress.refusals import Refusals
from tornado_status.ingress.tls_acceptor import TlsAcceptor
from tornado_status.model.records import CheckIn, CommittedBatch, Event, EventKind
from tornado_status.observe.management import ManagementServer
from tornado_status.pki.reload import FileWatcher
from tornado_status.runtime import background_output
from tornado_status.runtime.shutdown import ShutdownDeadline
from tornado_status.store import Store, batch_statements, database, group_commit, store
from tornado_status.store.database import Connection, Pool
from tornado_status.store.embedded import postgres
from tornado_status.store.group_commit import GroupCommit
from tornado_status.store.turns import Pending
from tornado_status.wire.datagram import Signs

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
    early = CommittedBatch(self.log_id, events[-1].seq, events)
    for subscriber in self._subscribers:
        subscriber(early)
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


async def _announce_failed(self: GroupCommit, connection: Connection, batch: list[Pending]) -> None:
    events = _guess(self, batch)
    try:
        await _commit(self, connection, batch)
    except StoreUnavailable:
        self._publish(events)
        raise


async def _acknowledge_failed(
    self: GroupCommit, connection: Connection, batch: list[Pending]
) -> None:
    """Take a refusal by the database for an answer like any other."""
    events = _guess(self, batch)
    held = [(check_in, lambda _: None, at) for check_in, _, at in batch]
    with contextlib.suppress(StoreUnavailable):
        await _commit(self, connection, held)
    for (_, done, _), event in zip(batch, events, strict=True):
        done(event)


async def _lose_the_last(self: GroupCommit, connection: Connection, batch: list[Pending]) -> None:
    *kept, (_, done, _) = batch
    last = _guess(self, batch)[-1]
    if kept:
        await _commit(self, connection, kept)
    done(last)


def _changing(change: Callable[[list[CheckIn]], list[CheckIn]]) -> None:
    """Record something else than what was said."""

    async def changed(self: GroupCommit, connection: Connection, batch: list[Pending]) -> None:
        check_ins = change([check_in for check_in, _, _ in batch])
        await _commit(
            self,
            connection,
            [(c, done, at) for c, (_, done, at) in zip(check_ins, batch, strict=True)],
        )

    GroupCommit._commit = changed  # type: ignore[method-assign]


def announce_failed() -> None:
    GroupCommit._commit = _announce_failed  # type: ignore[method-assign]


def acknowledge_failed() -> None:
    GroupCommit._commit = _acknowledge_failed  # type: ignore[method-assign]


def lose_the_last() -> None:
    GroupCommit._commit = _lose_the_last  # type: ignore[method-assign]


def wrong_port() -> None:
    _changing(lambda batch: [dataclasses.replace(c, client_port=c.client_port ^ 1) for c in batch])


def wrong_address() -> None:
    _changing(lambda batch: [dataclasses.replace(c, client_ip="127.0.0.9") for c in batch])


def wrong_issuer() -> None:
    _changing(lambda batch: [dataclasses.replace(c, issuer="CN=another") for c in batch])


def wrong_serial() -> None:
    _changing(lambda batch: [dataclasses.replace(c, serial=f"{c.serial}0") for c in batch])


def mix_up() -> None:
    """Record one's check-in as another's, who came in the same batch."""
    _changing(
        lambda batch: [
            dataclasses.replace(c, email=other.email)
            for c, other in zip(batch, batch[1:] + batch[:1], strict=True)
        ]
    )


_announce = Announcer.announce


def use_a_number_twice() -> None:
    def announce(self: Announcer, batch: CommittedBatch) -> None:
        events = [event._replace(seq=batch.events[0].seq) for event in batch.events]
        _announce(self, dataclasses.replace(batch, events=events))

    Announcer.announce = announce  # type: ignore[method-assign]


def forget_a_target() -> None:
    def announce(self: Announcer, batch: CommittedBatch) -> None:
        del self._json[1:]
        _announce(self, batch)

    Announcer.announce = announce  # type: ignore[method-assign]


class _Forger:
    """Signs with an unknown key, in the name of the one that listeners know."""

    def __init__(self, real: Signs) -> None:
        self.kid = real.kid
        self._key = Ed25519PrivateKey.generate()

    def sign(self, message: bytes) -> bytes:
        return base64.urlsafe_b64encode(self._key.sign(message)).rstrip(b"=")


def _signing(signer: Callable[[Signs], Signs | None]) -> None:
    def announce(self: Announcer, batch: CommittedBatch) -> None:
        if self.signer is not None and not isinstance(self.signer, _Forger):
            self.signer = signer(self.signer)
        _announce(self, batch)

    Announcer.announce = announce  # type: ignore[method-assign]


def sign_nothing() -> None:
    _signing(lambda _: None)


def sign_wrongly() -> None:
    _signing(_Forger)


def drop_at_the_end() -> None:
    """Forget what waits for its commit when it is told to stop."""
    drain = GroupCommit.drain

    async def drop(self: GroupCommit, connection: Connection, batch: list[Pending]) -> None:
        """Neither commit nor answer."""

    async def forgetful(self: GroupCommit, timeout_s: float) -> bool:
        GroupCommit._commit = drop  # type: ignore[method-assign]
        return await drain(self, timeout_s)

    GroupCommit.drain = forgetful  # type: ignore[method-assign]


def commit_asynchronously() -> None:
    """Let PostgreSQL answer before the disk has it."""
    vars(store)["_PIN_DURABILITY"] = "SET synchronous_commit = off"


def give_up_on_a_target() -> None:
    """Never send again where the kernel refused once."""
    refused = Announcer._count_failure

    def give_up(self: Announcer, step: str, target: str, via: str, name: str, reason: str) -> None:
        refused(self, step, target, via, name, reason)
        self._json = [sink for sink in self._json if sink.target != target]

    Announcer._count_failure = give_up  # type: ignore[method-assign]


def acknowledge_early() -> None:
    GroupCommit._commit = _acknowledge_early  # type: ignore[method-assign]


def announce_early() -> None:
    GroupCommit._commit = _announce_early  # type: ignore[method-assign]


def retry() -> None:
    GroupCommit._commit = _retry  # type: ignore[method-assign]


def _instead(*changes: tuple[str, str]) -> None:
    """Change the statements that record, each place in at least one of them."""
    prepare = batch_statements.PREPARE
    for old, new in changes:
        assert any(old in statement for statement in prepare)
        prepare = tuple(statement.replace(old, new) for statement in prepare)
    vars(batch_statements)["PREPARE"] = prepare


def skip_numbers() -> None:
    _instead(
        ("head.seq + (SELECT count(*)", "head.seq + (SELECT count(*) + 1"),
        ("head.seq + cardinality($1)", "head.seq + cardinality($1) + 1"),
    )


def follow_the_clock() -> None:
    _instead(("greatest(at, clock_timestamp())", "clock_timestamp()"))


def forget_the_status() -> None:
    _instead(("WHERE role > 0 ORDER BY email", "WHERE before = 0 ORDER BY email"))


def forget_the_previous() -> None:
    """Have two check-ins of a user in one batch follow the same one."""
    _instead(("WHEN NOT $8 THEN base + before", "WHEN NOT $8 THEN newest"))


def forget_the_first() -> None:
    _instead(
        ("coalesce(u.first_seen, excluded.first_seen)", "excluded.first_seen"),
        ("coalesce(u.first_seen, at)", "at"),
    )


def forget_devices() -> None:
    _instead(
        ("|| user_device(u.issuer, u.serial, u.last_seen, u.client_ip, u.client_port)", ""),
        ("role = 2", "role = 3"),
    )


_refused: set[str] = set()


async def _answer_for_another(
    self: GroupCommit, connection: Connection, batch: list[Pending]
) -> None:
    """Refuse what is recorded, and in its place acknowledge the user's next check-in, which is not.

    Both happen to a connection that stays open, and its counts are right.
    """
    lost = [pending for pending in batch if pending[0].email in _refused]
    kept = [pending for pending in batch if pending[0].email not in _refused]
    _refused.clear()
    for (_, done, _), event in zip(lost, _guess(self, lost), strict=True):
        done(event)
    if kept:
        await _commit(self, connection, [(c, lambda _: None, at) for c, _, at in kept])
        for _, done, _ in kept:
            done(StoreUnavailable("refused, and recorded"))
        _refused.update(check_in.email for check_in, _, _ in kept)


def answer_for_another() -> None:
    GroupCommit._commit = _answer_for_another  # type: ignore[method-assign]


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
    vars(group_commit)["RETRY_MIN_S"] = vars(group_commit)["RETRY_MAX_S"] = 20.0


def hang_in_the_stop() -> None:
    """Block the event loop, where no deadline of its own can end it."""

    async def hang(self: Store, timeout_s: float) -> None:
        time.sleep(3600)  # noqa: ASYNC251 - that is the fault

    Store.drain = hang  # type: ignore[method-assign]


def swallow_the_cancellation() -> None:
    """Have a part of the stop go on, whoever cancels it."""

    async def swallow(self: Announcer, drain_timeout_s: float = 0) -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)

    Announcer.close = swallow  # type: ignore[method-assign]


def give_each_part_all_the_time() -> None:
    """Have the parts of a stop take what one of them may, one after the other."""
    ShutdownDeadline.left = lambda self, until=1.0: self.seconds  # type: ignore[method-assign]


def leave_orphans() -> None:
    """End PostgreSQL's first process, and forget the others."""
    vars(postgres)["children"] = lambda parent: []


def log_in_the_loop() -> None:
    """Write the log where the requests are served."""
    vars(background_output)["start"] = lambda: None


def count_mute_handshakes() -> None:
    """Let connections without a ClientHello take places of handshakes."""
    at_work = property(lambda self: len(self._handshakes))
    TlsAcceptor.at_work = at_work  # type: ignore[method-assign, assignment]


def keep_mute_connections() -> None:
    """Close none of them before its time-out."""
    TlsAcceptor.drop_mute = lambda self: False  # type: ignore[method-assign]


def keep_refusals() -> None:
    """Keep the frames of whatever led to a refusal, as an exception that is raised twice does."""
    count = Refusals.count

    def keep(self: Refusals, *arguments: Any, **fields: Any) -> None:
        _kept.append(sys._getframe())
        count(self, *arguments, **fields)

    Refusals.count = keep  # type: ignore[method-assign]


def share_connections() -> None:
    """Have one connection for reads, the sweep and alerts, and let one identity take all of it."""
    make_pool = Store._make_pool

    def shared(self: Store, size: int) -> Pool:
        return self._pools[0] if self._pools else make_pool(self, 1)

    Store._make_pool = shared  # type: ignore[method-assign]
    replace_constants({MAX_READS_EACH: 1000, MAX_REQUESTS_EACH: 1000, PIECE: 100_000})


def keep_idle_peers() -> None:
    """Close no connection of the management port for another one."""
    ManagementServer._make_room = lambda self: False  # type: ignore[method-assign]


if __name__ == "__main__":
    which = sys.argv.pop(1)
    globals()[which]()
    sys.exit(main())
