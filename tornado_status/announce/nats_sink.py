"""The sink of a NATS broker: a bounded queue, and a task that publishes and awaits confirmation.

A check-in never waits for the broker. Unconfirmed datagrams are published again on the next
connection; JetStream and the listeners drop duplicates.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from tornado_status.announce.sink import SendError, Sink
from tornado_status.config.settings import NatsTarget
from tornado_status.errors import BrokerError
from tornado_status.wire.nats_connection import (
    MAX_REASON,
    RETRY_S,
    NatsConnection,
    check_files,
    connected,
)

if TYPE_CHECKING:
    from nats.aio.msg import Msg

# Listeners refuse a datagram that was sent more than 60 s ago, and repair the gap.
MAX_QUEUED = 10_000  # unconfirmed datagrams; beyond it the oldest is dropped
MAX_AGE_S = 60.0
BATCH = 256  # datagrams in flight, about 1,800 events a round trip
CONFIRM_S = 5.0  # time-out of a confirmation; then the sink reconnects
# Of the time of a shutdown, the share for publishing; then the task is cancelled so often.
PUBLISH_SHARE, CANCELS = 0.8, 4
AWAY_S = 2.0  # how long a shutdown waits for a broker that is away
# A stream that we create keeps datagrams for MAX_AGE_S, up to this size.
STREAM_BYTES = 64 * 1024 * 1024


class NatsSink:
    """Publishes to one broker. Calls `confirmed` with a count, `lost` for each that is dropped."""

    def __init__(
        self,
        target: NatsTarget,
        confirmed: Callable[[Sink, int], None],
        lost: Callable[[Sink, OSError], None],
    ) -> None:
        self.target = str(target)
        self.via = "nats"
        self.encoding = target.encoding
        self.problem: OSError | None = None
        self._settings = target
        self._confirmed = confirmed
        self._lost = lost
        self._log = structlog.get_logger()
        self._queue: deque[tuple[float, bytes]] = deque()
        self._in_flight: dict[str, tuple[float, bytes]] = {}  # by the token of its confirmation
        self._refusal: str | None = None  # of the broker, the first on this connection
        self._wake = asyncio.Event()
        self._draining = False
        self._task: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Raise `ConfigError` if a file or the library cannot be used."""
        check_files(self._settings.broker)

    def start(self) -> None:
        """Start the task that connects, reconnects, and publishes what is queued."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run(), name=f"nats {self.target}")

    def send(self, payload: bytes, /) -> bool:
        if len(self._queue) + len(self._in_flight) >= MAX_QUEUED:
            if not self._queue:
                raise SendError("queue-full", f"{MAX_QUEUED} are not confirmed yet")
            self._queue.popleft()
            self._lost(self, SendError("queue-full", "the oldest is dropped"))
        self._queue.append((asyncio.get_running_loop().time(), payload))
        self._wake.set()
        return False

    async def drain(self, timeout_s: float) -> None:
        """Publish what is queued, for at most `timeout_s`, and end the task."""
        self._draining = True
        self._wake.set()
        if self._task is None:
            return
        if self.problem is not None:
            timeout_s = min(timeout_s, AWAY_S)
        await asyncio.wait({self._task}, timeout=timeout_s * PUBLISH_SHARE)
        for _ in range(CANCELS):
            if self._task.done():
                break
            self._task.cancel()  # the library sometimes swallows a cancellation
            await asyncio.wait({self._task}, timeout=timeout_s * (1 - PUBLISH_SHARE) / CANCELS)
        left = len(self._queue) + len(self._in_flight)
        if left:
            self._log.warning(
                "datagrams not published at shutdown", target=self.target, datagrams=left
            )

    def close(self) -> None:
        """Do nothing: `drain` has closed the connection."""

    # ------------------------------------------------------------------------------- publishing

    async def _run(self) -> None:
        while not (self._draining and not self._queue):
            try:
                async with connected(self._settings.broker, "tornado_status") as connection:
                    await self._publish_on(connection)
            except BrokerError as error:
                self._report(error)
            except Exception as error:  # any error of the library
                self._report(BrokerError("broken", _name(error)))
            finally:
                self._requeue()
            if self._draining and not self._queue:
                return
            await asyncio.sleep(RETRY_S)

    async def _publish_on(self, connection: NatsConnection) -> None:
        """Publish until `drain` is called and the queue is empty. Raises if it cannot go on."""
        client = connection.client
        inbox = client.new_inbox()
        await client.subscribe(f"{inbox}.*", cb=self._on_confirmation)
        if self._settings.stream is not None:
            await self._ensure_stream(connection, self._settings.stream)
        if self.problem is not None:
            self._log.info("announcing again", target=self.target, interface=self.via)
        self.problem = None
        number = 0
        while True:
            self._wake.clear()
            batch = self._take()
            if not batch and self._draining:
                return
            if not batch:
                await self._wait(connection, None)
                continue
            for entry in batch:
                number += 1
                self._in_flight[str(number)] = entry
            for token, (_, payload) in list(self._in_flight.items()):
                if self._settings.stream is None:
                    await client.publish(self._settings.subject, payload)
                else:
                    # JetStream drops a duplicate by its id, as after a lost confirmation.
                    name = hashlib.blake2b(payload, digest_size=16).hexdigest()
                    await client.publish(
                        self._settings.subject,
                        payload,
                        reply=f"{inbox}.{token}",
                        headers={"Nats-Msg-Id": name},
                    )
            if self._settings.stream is None:
                await client.flush(int(CONFIRM_S))  # the broker answers after all of them
                self._confirmed(self, len(self._in_flight))
                self._in_flight.clear()
            else:
                await self._wait_confirmed(connection)

    def _take(self) -> list[tuple[float, bytes]]:
        oldest = self._loop.time() - MAX_AGE_S
        while self._queue and self._queue[0][0] < oldest:
            self._queue.popleft()
            self._lost(self, SendError("too-late", "the broker was away for a minute"))
        return [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]

    def _requeue(self) -> None:
        """Put unconfirmed datagrams back, in front of the queue."""
        self._queue.extendleft(reversed(list(self._in_flight.values())))
        self._in_flight.clear()
        self._refusal = None

    async def _wait(self, connection: NatsConnection, timeout_s: float | None) -> None:
        """Wait until woken, or `timeout_s`. Raises `BrokerError` if the connection is closed."""
        wake = asyncio.ensure_future(self._wake.wait())
        ended = asyncio.ensure_future(connection.ended.wait())
        try:
            await asyncio.wait(
                {wake, ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            wake.cancel()
            ended.cancel()
        if connection.ended.is_set():
            raise BrokerError("broken", "the broker closed the connection")

    async def _wait_confirmed(self, connection: NatsConnection) -> None:
        deadline = self._loop.time() + CONFIRM_S
        while self._in_flight and self._refusal is None:
            left = deadline - self._loop.time()
            if left <= 0:
                raise BrokerError("not-confirmed", f"nothing confirmed in {CONFIRM_S:g} s")
            await self._wait(connection, left)
            self._wake.clear()
        if self._refusal is not None:
            raise BrokerError("refused", self._refusal)

    async def _on_confirmation(self, message: Msg) -> None:
        token = message.subject.rpartition(".")[2]
        refusal = self._read_refusal(message.data)
        if refusal is None:
            if self._in_flight.pop(token, None) is not None:
                self._confirmed(self, 1)
        elif self._refusal is None:
            self._refusal = refusal[:MAX_REASON]
        self._wake.set()

    def _read_refusal(self, answer: bytes) -> str | None:
        if not answer:
            return f"no stream takes in {self._settings.subject!r}"
        try:
            error = json.loads(answer).get("error")
            return None if error is None else str(error.get("description"))
        except (ValueError, AttributeError, RecursionError):
            return "no JSON in its answer"

    async def _ensure_stream(self, connection: NatsConnection, name: str) -> None:
        """Create the stream if there is none. An existing one is left as its owner made it."""
        from nats.errors import Error
        from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
        from nats.js.errors import NotFoundError

        manager = connection.client.jsm(timeout=CONFIRM_S)
        try:
            try:
                await manager.stream_info(name)
            except NotFoundError:
                await manager.add_stream(
                    StreamConfig(
                        name=name,
                        subjects=[self._settings.subject],
                        retention=RetentionPolicy.LIMITS,
                        discard=DiscardPolicy.OLD,
                        storage=StorageType.FILE,
                        max_age=MAX_AGE_S,
                        max_bytes=STREAM_BYTES,
                        duplicate_window=MAX_AGE_S,
                    )
                )
                self._log.info("stream created", target=self.target, stream=name)
        except Error as error:
            what = _name(error)
            raise BrokerError("stream", f"stream {name} cannot be used: {what}") from error

    def _report(self, error: BrokerError) -> None:
        before = self.problem
        self.problem = SendError(error.reason, str(error))
        if before is None or str(before) != str(error):
            self._log.warning(
                "cannot announce, trying again", target=self.target, reason=str(error)
            )


def _name(error: Exception) -> str:
    text = getattr(error, "description", None) or str(error).removeprefix("nats: ")
    return f"{type(error).__name__} {text}".strip()[:MAX_REASON]
