"""The workers, one an alert: read the log on, queue what is to be told, and send what is due.

All state is in the database, behind a lease: of several servers one works for an alert, and another
goes on where it stopped. What was sent and not yet noted as sent is sent again, with the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
from prometheus_client.core import Metric

from tornado_status.alerts.filter import AlertFilter
from tornado_status.alerts.signature import parse_secrets, sign
from tornado_status.alerts.webhook import NotDelivered, Webhook
from tornado_status.config import AlertSettings
from tornado_status.errors import ConfigError, StoreUnavailable
from tornado_status.model.alert import Cursor, Message, Return, moment
from tornado_status.model.records import Event, timestamp
from tornado_status.observe import metrics
from tornado_status.wire.datagram import encode_update

POLL_S = 1.0  # between two looks at the log: one small query an alert
LEASE_S = 10.0  # and as long as an attempt may take: for the commits before and after it
SCAN = 10_000  # entries of the log in one step
SEND = 100  # messages between two looks
SAVE_CURSOR_S = 30.0  # entries that tell nothing are read again after a crash: no commit a second
BACK_OFF_S = (2.0, 300.0)  # after the first failure of a receiver, and at most
MAX_WAITING = 100_000  # messages of one alert, about 20 MB; beyond it the oldest are dropped
GIVE_UP_EVERY_S = 60.0
ADOPT_S = 5.0  # a start waits no longer for where new alerts begin
STOP_S = 2.0  # for ending, and for giving the leases back: else another server waits for them


class Journal(Protocol):
    """The part of the store that alerts need; see `store.alerts`."""

    async def adopt(self, names: Sequence[str]) -> None: ...

    async def look(self, name: str, holder: uuid.UUID, renew_s: float) -> Cursor: ...

    async def lease(self, name: str, holder: uuid.UUID, seconds: float) -> bool: ...

    async def release(self, holder: uuid.UUID) -> None: ...

    async def scan(
        self, after: int, last: int, kinds: Sequence[str]
    ) -> tuple[int, list[Event]]: ...

    async def advance(
        self,
        name: str,
        holder: uuid.UUID,
        log_id: uuid.UUID,
        seq: int,
        events: Sequence[Event],
        quiet_s: float,
        returns: Sequence[Return],
    ) -> int | None: ...

    async def due(self, name: str, limit: int) -> list[Message]: ...

    async def delivered(self, message: Message) -> None: ...

    async def failed(self, message: Message, delay_s: float) -> None: ...

    async def give_up(self, name: str, after_s: float, most: int) -> int: ...


@dataclass(frozen=True, slots=True)
class Sender:
    """An alert's settings, its receiver, and how to sign for it."""

    alert: AlertSettings
    webhook: Webhook

    def secrets(self) -> list[bytes]:
        """Return the secrets, read anew from a file. Raises `ConfigError`."""
        alert = self.alert
        if alert.secret_file is None:
            return parse_secrets(alert.secret or "", f"alerts.{alert.name}.secret")
        key = f"alerts.{alert.name}.secret_file"
        try:
            text = alert.secret_file.read_text("ascii")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{key}: {alert.secret_file} cannot be read") from error
        return parse_secrets(text, key)

    async def tell(self, message: Message) -> int:
        """Post a message and return the status. Raises `NotDelivered`."""
        event = message.event
        data: dict[str, object] = {"alert": self.alert.name, "log": str(message.log_id)}
        data |= json.loads(encode_update(event))
        # No full stop in it: that is what the signed text is divided by.
        webhook_id = f"msg_{message.log_id.hex}_{event.seq}_{self.alert.name}"
        return await self._post(webhook_id, str(event.event), timestamp(moment(event)), data)

    async def test(self) -> int:
        """Post a message of type `test` and return the status. Raises `NotDelivered`."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
        return await self._post(
            f"msg_{uuid.uuid4().hex}_{self.alert.name}", "test", now, {"alert": self.alert.name}
        )

    async def _post(self, webhook_id: str, kind: str, moment: str, data: dict[str, object]) -> int:
        members = {"type": kind, "timestamp": moment, "data": data}
        body = json.dumps(members, separators=(",", ":")).encode()
        try:
            headers = sign(self.secrets(), webhook_id, int(time.time()), body)
        except ConfigError as error:  # a file that is being renewed right now
            raise NotDelivered(str(error)) from error
        return await self.webhook.post(body, headers)


def load_senders(alerts: Sequence[AlertSettings]) -> list[Sender]:
    """Return what tells each alert's receiver. Raises `ConfigError` for a bad secret or CA."""
    senders = []
    for alert in alerts:
        try:
            webhook = Webhook(alert.url, alert.ca, alert.timeout_s)
        except ConfigError as error:
            raise ConfigError(f"alerts.{alert.name}.ca: {error}") from error
        senders.append(Sender(alert, webhook))
        senders[-1].secrets()
    return senders


class Alerts:
    """Runs a worker for each sender. `counts` are by alert and outcome, since the start.

    The outcomes: `delivered`, `failed` (attempts), `quiet` (absences too short to be told), and
    `dropped` (messages given up).
    """

    def __init__(self, senders: Sequence[Sender], journal: Journal) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._senders = senders
        self._journal = journal
        self._holder = uuid.uuid4()
        self._tasks: list[asyncio.Task[None]] = []
        self._adopted = False

    def metrics(self) -> Iterable[Metric]:
        yield metrics.counters(
            "alert_messages", "Messages of alerts", ["alert", "outcome"], self.counts
        )

    async def adopt(self) -> None:
        """Let alerts that are new begin at the log's head: here, before anybody is told to come.

        Where the database does not answer in `ADOPT_S` they begin as soon as it does.
        """
        if self._senders:
            with contextlib.suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout(ADOPT_S):
                    await self._journal.adopt(self._names())
                    self._adopted = True

    def start(self) -> None:
        """Begin to tell; the database may come and go."""
        for sender in self._senders:
            worker = _Worker(sender, self._names(), self._journal, self._holder, self.counts)
            name = f"alert {sender.alert.name}"
            self._tasks.append(asyncio.create_task(worker.run(self._adopted), name=name))

    def _names(self) -> list[str]:
        return [sender.alert.name for sender in self._senders]

    async def stop(self, timeout_s: float = STOP_S) -> None:
        """End at once, whatever receivers do, and let another server go on: in `timeout_s`."""
        patience_s = min(STOP_S, timeout_s / 2)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience_s)
        for sender in self._senders:
            sender.webhook.close()
        if self._tasks:
            try:
                async with asyncio.timeout(patience_s):
                    await self._journal.release(self._holder)
            except (StoreUnavailable, TimeoutError):
                pass  # the leases end by themselves


class _Worker:
    def __init__(
        self,
        sender: Sender,
        names: Sequence[str],
        journal: Journal,
        holder: uuid.UUID,
        counts: Counter[tuple[str, str]],
    ) -> None:
        alert = sender.alert
        self._sender = sender
        self._name = alert.name
        self._names = names
        self._lease_s = LEASE_S + alert.timeout_s
        self._journal = journal
        self._holder = holder
        self._counts = counts
        self._sieve = AlertFilter(alert.users, alert.events, alert.quiet_s)
        self._log = structlog.get_logger().bind(alert=alert.name)
        self._read_to: tuple[uuid.UUID, int] | None = None  # None: only the database knows
        self._leased_at = self._saved_at = self._gave_up_at = float("-inf")
        self._failures = 0
        self._paused_until = float("-inf")
        self._told: str | None = None

    async def run(self, adopted: bool) -> None:
        """Work until cancelled; first see to where alerts begin, unless that was `adopted`."""
        while True:
            again = False
            try:
                if not adopted:
                    await self._journal.adopt(self._names)
                    adopted = True
                again = await self._step()
            except StoreUnavailable:
                self._read_to = None  # the writer tells of it
            except Exception:
                # Nobody else would go on for this alert.
                self._read_to = None
                self._log.exception("alert failed")
            if not again:
                await asyncio.sleep(POLL_S)

    async def _step(self) -> bool:
        """Read on, then send. True: there is more of either."""
        cursor = await self._journal.look(self._name, self._holder, self._lease_s / 2)
        if not cursor.held:
            self._read_to = None
            if not (cursor.free and await self._lease()):
                return False
            cursor = await self._journal.look(self._name, self._holder, 0)
        if not await self._read(cursor):
            return True  # what is in the rest of the log may make a message untold
        now = time.monotonic()
        if now - self._gave_up_at >= min(GIVE_UP_EVERY_S, self._sender.alert.give_up_s):
            self._gave_up_at = now
            await self._give_up()
        if cursor.due and now >= self._paused_until:
            return await self._send()
        return False

    async def _lease(self) -> bool:
        now = time.monotonic()
        held = await self._journal.lease(self._name, self._holder, self._lease_s)
        if held:
            self._leased_at = now
        return held

    # ----------------------------------------------------------------------------- reading on

    async def _read(self, cursor: Cursor) -> bool:
        """Read a step of the log. False: there is more."""
        if cursor.followed != cursor.log_id or cursor.seq > cursor.head:
            # The cursor is restored with the log, so it is right in a new stream, too; unless
            # somebody took the log away from under it.
            self._log.warning("a new stream of numbers", log_id=str(cursor.log_id))
            await self._save(cursor.log_id, min(cursor.seq, cursor.head))
            return False
        if self._read_to is None or self._read_to[0] != cursor.log_id:
            self._read_to = (cursor.log_id, cursor.seq)
        after = max(self._read_to[1], cursor.seq)
        last = min(cursor.head, after + SCAN)
        if last == after:
            return True
        first, events = await self._journal.scan(after, last, self._sieve.kinds)
        if first > after + 1:
            self._log.error(
                "the log was pruned before it was read", first=after + 1, last=first - 1
            )
        sifted = self._sieve.sift(events)
        self._counts[self._name, "quiet"] += sifted.dropped
        if sifted.events or sifted.returns:
            await self._save(cursor.log_id, last, sifted.events, sifted.returns)
            return False  # what was queued may be due
        if time.monotonic() - self._saved_at >= SAVE_CURSOR_S:
            await self._save(cursor.log_id, last)
        self._read_to = (cursor.log_id, last)
        return last == cursor.head

    async def _save(
        self,
        log_id: uuid.UUID,
        seq: int,
        events: Sequence[Event] = (),
        returns: Sequence[Return] = (),
    ) -> None:
        quiet_s = self._sender.alert.quiet_s
        dropped = await self._journal.advance(
            self._name, self._holder, log_id, seq, events, quiet_s, returns
        )
        if dropped is None:
            self._read_to = None  # another server has the lease, and reads the same again
            return
        self._counts[self._name, "quiet"] += dropped
        self._read_to = (log_id, seq)
        self._saved_at = time.monotonic()

    # --------------------------------------------------------------------------------- sending

    async def _send(self) -> bool:
        messages = await self._journal.due(self._name, SEND)
        for message in messages:
            # Sure of the lease for as long as this attempt may take.
            if time.monotonic() - self._leased_at > LEASE_S / 2 and not await self._lease():
                self._read_to = None
                return False
            try:
                await self._sender.tell(message)
            except NotDelivered as error:
                await self._failed(message, error)
                return False
            self._counts[self._name, "delivered"] += 1
            if self._told is not None:
                self._log.info("alerts are delivered again")
            self._failures, self._told = 0, None
            await self._journal.delivered(message)
        return bool(messages)

    async def _failed(self, message: Message, error: NotDelivered) -> None:
        """The receiver rests, all of it; and this message stands behind the others."""
        self._counts[self._name, "failed"] += 1
        least, most = BACK_OFF_S
        delay_s = min(most, least * 2 ** min(self._failures, 16))
        delay_s = max(delay_s * random.uniform(0.5, 1), error.retry_after_s)  # noqa: S311 - jitter
        self._failures += 1
        self._paused_until = time.monotonic() + delay_s
        if str(error) != self._told:
            self._told = str(error)
            self._log.warning("alert not delivered, trying again", reason=self._told)
        await self._journal.failed(message, delay_s)

    async def _give_up(self) -> None:
        after_s = self._sender.alert.give_up_s
        dropped = await self._journal.give_up(self._name, after_s, MAX_WAITING)
        if dropped:
            self._counts[self._name, "dropped"] += dropped
            self._log.error("alerts given up", messages=dropped, reason=self._told)
