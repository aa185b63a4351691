"""A worker for each alert: it reads the log, queues messages, and sends those that are due.

All state is in the database, behind a lease: one server works for an alert, and another takes over
at the position where it stopped. A message that was sent, but not yet marked as sent, is sent again
with the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from prometheus_client.core import Metric

from tornado_status.alerts.filter import AlertFilter
from tornado_status.alerts.webhook import NotDelivered, Webhook
from tornado_status.alerts.webhook_signature import parse_secrets, sign
from tornado_status.config.settings import AlertSettings
from tornado_status.errors import ConfigError, StoreUnavailable
from tornado_status.model.alert import AlertCursor, AlertMessage, UserReturn, committed_at
from tornado_status.model.records import Event, timestamp
from tornado_status.observe import metrics
from tornado_status.runtime.backoff import Backoff
from tornado_status.wire.event_object import encode_update

if TYPE_CHECKING:
    from tornado_status.store.alert_queue import AlertQueue

POLL_S = 1.0  # between two reads of the log: one small query an alert
LEASE_S = 10.0  # plus the time-out of an attempt: for the commits before and after it
SCAN = 10_000  # events of the log in one step
SEND = 100  # messages between two reads of the log
SAVE_CURSOR_S = 30.0  # filtered events are read again after a crash: no commit a second for them
BACK_OFF_S = (2.0, 300.0)  # after the first failure of a receiver, and at most
MAX_QUEUED = 100_000  # messages of one alert, about 20 MB; beyond it see `AlertQueue.give_up`
GIVE_UP_EVERY_S = 60.0
REGISTER_S = 5.0  # how long a start waits until new alerts are registered
STOP_S = 2.0  # to stop, and to give the leases back: otherwise another server waits for them


@dataclass(frozen=True, slots=True)
class AlertSender:
    """Signs and sends the messages of one alert to its receiver."""

    alert: AlertSettings
    webhook: Webhook

    def secrets(self) -> list[bytes]:
        """Return the secrets, read from the file if there is one. Raises `ConfigError`."""
        alert = self.alert
        if alert.secret_file is None:
            return parse_secrets(alert.secret or "", f"alerts.{alert.name}.secret")
        key = f"alerts.{alert.name}.secret_file"
        try:
            text = alert.secret_file.read_text("ascii")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{key}: {alert.secret_file} cannot be read") from error
        return parse_secrets(text, key)

    async def send(self, message: AlertMessage) -> int:
        """Post a message and return the status. Raises `NotDelivered`."""
        event = message.event
        data: dict[str, object] = {"alert": self.alert.name, "log": str(message.log_id)}
        data |= json.loads(encode_update(event))
        # Without a full stop, which separates the parts of the signed text.
        webhook_id = f"msg_{message.log_id.hex}_{event.seq}_{self.alert.name}"
        return await self._post(webhook_id, str(event.event), timestamp(committed_at(event)), data)

    async def send_test(self) -> int:
        """Post a message of type `test` and return the status. Raises `NotDelivered`."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
        return await self._post(
            f"msg_{uuid.uuid4().hex}_{self.alert.name}", "test", now, {"alert": self.alert.name}
        )

    async def _post(self, webhook_id: str, kind: str, at: str, data: dict[str, object]) -> int:
        members = {"type": kind, "timestamp": at, "data": data}
        body = json.dumps(members, separators=(",", ":")).encode()
        try:
            headers = sign(self.secrets(), webhook_id, int(time.time()), body)
        except ConfigError as error:  # a file that is being replaced right now
            raise NotDelivered(str(error)) from error
        return await self.webhook.post(body, headers)


def load_senders(
    alerts: Sequence[AlertSettings], contexts: Mapping[str, ssl.SSLContext]
) -> list[AlertSender]:
    """Return a sender for each alert. Raises `ConfigError` for a bad secret.

    `contexts` verify the receivers, by the alerts' names.
    """
    senders = []
    for alert in alerts:
        webhook = Webhook(alert.url, contexts[alert.name], alert.timeout_s)
        senders.append(AlertSender(alert, webhook))
        senders[-1].secrets()
    return senders


class Alerts:
    """Runs a worker for each sender. `counts` are by alert and outcome, since the start.

    The outcomes: `delivered`, `failed` (attempts), `quiet` (suppressed, since the absence was
    short) and `dropped` (messages given up).
    """

    def __init__(self, senders: Sequence[AlertSender], queue: AlertQueue) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._senders = senders
        self._queue = queue
        self._holder = uuid.uuid4()
        self._tasks: list[asyncio.Task[None]] = []
        self._registered = False

    def metrics(self) -> Iterable[Metric]:
        yield metrics.counters(
            "alert_messages", "Messages of alerts", ["alert", "outcome"], self.counts
        )

    def use(self, contexts: Mapping[str, ssl.SSLContext]) -> None:
        """Verify receivers with these contexts, from the next delivery on."""
        for sender in self._senders:
            sender.webhook.use(contexts[sender.alert.name])

    async def register(self) -> None:
        """Let new alerts begin at the log's head, before the server announces that it serves.

        If the database does not answer within `REGISTER_S`, they begin once it does.
        """
        if self._senders:
            with contextlib.suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout(REGISTER_S):
                    await self._queue.register(self._names())
                    self._registered = True

    def start(self) -> None:
        """Start the workers. They survive an outage of the database."""
        for sender in self._senders:
            worker = _Worker(sender, self._names(), self._queue, self._holder, self.counts)
            name = f"alert {sender.alert.name}"
            self._tasks.append(asyncio.create_task(worker.run(self._registered), name=name))

    def _names(self) -> list[str]:
        return [sender.alert.name for sender in self._senders]

    async def stop(self, timeout_s: float = STOP_S) -> None:
        """Stop within `timeout_s`, also amid a delivery, and give the leases back."""
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
                    await self._queue.release(self._holder)
            except (StoreUnavailable, TimeoutError):
                pass  # the leases expire by themselves


class _Worker:
    def __init__(
        self,
        sender: AlertSender,
        names: Sequence[str],
        queue: AlertQueue,
        holder: uuid.UUID,
        counts: Counter[tuple[str, str]],
    ) -> None:
        alert = sender.alert
        self._sender = sender
        self._name = alert.name
        self._names = names
        self._lease_s = LEASE_S + alert.timeout_s
        self._queue = queue
        self._holder = holder
        self._counts = counts
        self._filter = AlertFilter(alert.users, alert.events, alert.quiet_s)
        self._log = structlog.get_logger().bind(alert=alert.name)
        self._read_to: tuple[uuid.UUID, int] | None = None  # None: only the database knows
        self._leased_at = self._saved_at = self._gave_up_at = float("-inf")
        self._backoff = Backoff(*BACK_OFF_S)
        self._paused_until = float("-inf")
        self._failure: str | None = None  # of the receiver, as it was logged last

    async def run(self, registered: bool) -> None:
        """Work until cancelled; register the alerts first, unless they are `registered`."""
        while True:
            again = False
            try:
                if not registered:
                    await self._queue.register(self._names)
                    registered = True
                again = await self._step()
            except StoreUnavailable:
                self._read_to = None  # the store logs it
            except Exception:
                # The worker goes on: no other part would send this alert.
                self._read_to = None
                self._log.exception("alert failed")
            if not again:
                await asyncio.sleep(POLL_S)

    async def _step(self) -> bool:
        """Read the log, then send. Return True if there is more of either."""
        cursor = await self._queue.cursor(self._name, self._holder, self._lease_s / 2)
        if not cursor.held:
            self._read_to = None
            if not (cursor.free and await self._lease()):
                return False
            cursor = await self._queue.cursor(self._name, self._holder, 0)
        if not await self._read(cursor):
            return True  # an event in the rest of the log may suppress a queued message
        now = time.monotonic()
        if now - self._gave_up_at >= min(GIVE_UP_EVERY_S, self._sender.alert.give_up_s):
            self._gave_up_at = now
            await self._give_up()
        if cursor.due and now >= self._paused_until:
            return await self._send()
        return False

    async def _lease(self) -> bool:
        now = time.monotonic()
        held = await self._queue.lease(self._name, self._holder, self._lease_s)
        if held:
            self._leased_at = now
        return held

    # ----------------------------------------------------------------------------- reading

    async def _read(self, cursor: AlertCursor) -> bool:
        """Read one step of the log. Return False if there is more."""
        if cursor.followed != cursor.log_id or cursor.seq > cursor.head:
            # A restore brings the cursor back with the log, so it is right in the new log, too. It
            # is above the head only if the log alone was replaced.
            self._log.warning("alert continues in another log", log_id=str(cursor.log_id))
            await self._save(cursor.log_id, min(cursor.seq, cursor.head))
            return False
        if self._read_to is None or self._read_to[0] != cursor.log_id:
            self._read_to = (cursor.log_id, cursor.seq)
        after = max(self._read_to[1], cursor.seq)
        last = min(cursor.head, after + SCAN)
        if last == after:
            return True
        first, events = await self._queue.scan(after, last, self._filter.kinds)
        if first > after + 1:
            self._log.error("log pruned before it was read", first=after + 1, last=first - 1)
        filtered = self._filter.apply(events)
        self._counts[self._name, "quiet"] += filtered.suppressed
        if filtered.events or filtered.returns:
            await self._save(cursor.log_id, last, filtered.events, filtered.returns)
            return False  # the queued messages may be due
        if time.monotonic() - self._saved_at >= SAVE_CURSOR_S:
            await self._save(cursor.log_id, last)
        self._read_to = (cursor.log_id, last)
        return last == cursor.head

    async def _save(
        self,
        log_id: uuid.UUID,
        seq: int,
        events: Sequence[Event] = (),
        returns: Sequence[UserReturn] = (),
    ) -> None:
        quiet_s = self._sender.alert.quiet_s
        suppressed = await self._queue.advance(
            self._name, self._holder, log_id, seq, events, quiet_s, returns
        )
        if suppressed is None:
            self._read_to = None  # another server has the lease, and reads the same events
            return
        self._counts[self._name, "quiet"] += suppressed
        self._read_to = (log_id, seq)
        self._saved_at = time.monotonic()

    # --------------------------------------------------------------------------------- sending

    async def _send(self) -> bool:
        messages = await self._queue.due(self._name, SEND)
        for message in messages:
            # The lease must outlast this attempt.
            if time.monotonic() - self._leased_at > LEASE_S / 2 and not await self._lease():
                self._read_to = None
                return False
            try:
                await self._sender.send(message)
            except NotDelivered as error:
                await self._failed(message, error)
                return False
            self._counts[self._name, "delivered"] += 1
            if self._failure is not None:
                self._log.info("alert delivered again")
                self._failure = None
            self._backoff.reset()
            await self._queue.delivered(message)
        return bool(messages)

    async def _failed(self, message: AlertMessage, error: NotDelivered) -> None:
        """Pause all messages to the receiver, and put this one after the others."""
        self._counts[self._name, "failed"] += 1
        delay_s = max(self._backoff.next_s(), error.retry_after_s)
        self._paused_until = time.monotonic() + delay_s
        if str(error) != self._failure:
            self._failure = str(error)
            self._log.warning("alert not delivered, trying again", reason=self._failure)
        await self._queue.failed(message, delay_s)

    async def _give_up(self) -> None:
        after_s = self._sender.alert.give_up_s
        dropped = await self._queue.give_up(self._name, after_s, MAX_QUEUED)
        if dropped:
            self._counts[self._name, "dropped"] += dropped
            self._log.error("alert messages dropped", messages=dropped, reason=self._failure)
