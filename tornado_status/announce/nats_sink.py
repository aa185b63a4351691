"""A target that is a NATS broker: a bounded queue, and a task that publishes and sees it confirmed.

Whatever happens to the broker, a check-in never waits for it. What was not confirmed is published
again on the next connection; JetStream, and each listener, know a datagram that comes twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from tornado_status.announce.sink import QUEUED, NotCarried, Sink
from tornado_status.config import NatsTarget
from tornado_status.errors import BrokerError
from tornado_status.wire.nats_connection import RETRY_S, NatsConnection, check_files, connected

if TYPE_CHECKING:
    from nats.aio.msg import Msg

# Listeners refuse what was sent more than 60 s ago, and repair it: carrying it is of no use.
MAX_QUEUED = 10_000  # datagrams not confirmed yet; then the oldest gives way
MAX_AGE_S = 60.0
BATCH = 256  # datagrams on their way at once, about 1,800 updates a round trip
CONFIRM_S = 5.0  # a broker that has not confirmed by then is left, and asked anew
PUBLISH_SHARE, CANCELS = 0.8, 4  # of the time to end: for publishing, and how often it is told
AWAY_S = 2.0  # how long an orderly end waits for a broker that is away
# What a stream that we create keeps: MAX_AGE_S, and within that so much at most.
STREAM_BYTES = 64 * 1024 * 1024


class NatsSink:
    """Publishes to one broker. `confirmed` is told how many arrived, `lost` what will not."""

    encoding = "json"

    def __init__(
        self,
        target: NatsTarget,
        confirmed: Callable[[Sink, int], None],
        lost: Callable[[Sink, OSError], None],
    ) -> None:
        self.target = str(target)
        self.via = "nats"
        self.problem: OSError | None = None
        self._settings = target
        self._confirmed = confirmed
        self._lost = lost
        self._log = structlog.get_logger()
        self._queue: deque[tuple[float, bytes]] = deque()
        self._under_way: dict[str, tuple[float, bytes]] = {}  # by the token of its answer
        self._answers: list[str] = []  # what the broker said instead of confirming
        self._stir = asyncio.Event()
        self._ending = False
        self._task: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Raise `ConfigError` where a file, or the library, cannot be used."""
        check_files(self._settings.broker)

    def start(self) -> None:
        """Connect, now and whenever the connection broke, and publish what is queued."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run(), name=f"nats {self.target}")

    def send(self, payload: bytes, /) -> str:
        if len(self._queue) + len(self._under_way) >= MAX_QUEUED:
            if not self._queue:
                raise NotCarried("queue-full", f"{MAX_QUEUED} are not confirmed yet")
            self._queue.popleft()  # a newer one is worth more
            self._lost(self, NotCarried("queue-full", "the oldest gives way"))
        self._queue.append((asyncio.get_running_loop().time(), payload))
        self._stir.set()
        return QUEUED

    async def drain(self, timeout_s: float) -> None:
        """Publish what is queued, as far as that goes in `timeout_s`, and end the task."""
        self._ending = True
        self._stir.set()
        if self._task is None:
            return
        if self.problem is not None:
            timeout_s = min(timeout_s, AWAY_S)
        await asyncio.wait({self._task}, timeout=timeout_s * PUBLISH_SHARE)
        for _ in range(CANCELS):
            if self._task.done():
                break
            self._task.cancel()  # the library swallows a cancellation now and then
            await asyncio.wait({self._task}, timeout=timeout_s * (1 - PUBLISH_SHARE) / CANCELS)
        left = len(self._queue) + len(self._under_way)
        if left:
            self._log.warning("not published at the end", target=self.target, datagrams=left)

    def close(self) -> None:
        """`drain` has ended all there is."""

    # ------------------------------------------------------------------------------- publishing

    async def _run(self) -> None:
        while not (self._ending and not self._queue):
            try:
                async with connected(self._settings.broker, "tornado_status") as connection:
                    await self._publish_on(connection)
            except BrokerError as error:
                self._tell(error)
            except Exception as error:  # the library's own, or of a broker that broke off
                self._tell(BrokerError("broken", _name(error)))
            finally:
                self._take_back()
            if self._ending and not self._queue:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S):
                    await asyncio.Event().wait()

    async def _publish_on(self, connection: NatsConnection) -> None:
        """Publish until the queue is empty and the end is near. Raises when it cannot go on."""
        client = connection.client
        inbox = client.new_inbox()
        await client.subscribe(f"{inbox}.*", cb=self._answered)
        if self._settings.stream is not None:
            await self._ensure_stream(connection, self._settings.stream)
        if self.problem is not None:
            self._log.info("announcing again", target=self.target, interface=self.via)
        self.problem = None
        number = 0
        while True:
            self._stir.clear()
            batch = self._take()
            if not batch and self._ending:
                return
            if not batch:
                await self._wait(connection, None)
                continue
            for entry in batch:
                number += 1
                self._under_way[str(number)] = entry
            for token, (_, payload) in list(self._under_way.items()):
                if self._settings.stream is None:
                    await client.publish(self._settings.subject, payload)
                else:
                    # So that one published again, after a lost answer, is kept once.
                    name = hashlib.blake2b(payload, digest_size=16).hexdigest()
                    await client.publish(
                        self._settings.subject,
                        payload,
                        reply=f"{inbox}.{token}",
                        headers={"Nats-Msg-Id": name},
                    )
            if self._settings.stream is None:
                await client.flush(int(CONFIRM_S))  # the broker answers behind all of it
                self._confirmed(self, len(self._under_way))
                self._under_way.clear()
            else:
                await self._wait_confirmed(connection)

    def _take(self) -> list[tuple[float, bytes]]:
        oldest = self._loop.time() - MAX_AGE_S
        while self._queue and self._queue[0][0] < oldest:
            self._queue.popleft()
            self._lost(self, NotCarried("too-late", "the broker was away for a minute"))
        return [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]

    def _take_back(self) -> None:
        """What was not confirmed is published again, first."""
        self._queue.extendleft(reversed(list(self._under_way.values())))
        self._under_way.clear()
        self._answers.clear()

    async def _wait(self, connection: NatsConnection, timeout_s: float | None) -> None:
        """Wait for something to do. Raises `BrokerError` once the connection is over."""
        stir = asyncio.ensure_future(self._stir.wait())
        ended = asyncio.ensure_future(connection.ended.wait())
        try:
            await asyncio.wait(
                {stir, ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            stir.cancel()
            ended.cancel()
        if connection.ended.is_set():
            raise BrokerError("broken", "the broker closed the connection")

    async def _wait_confirmed(self, connection: NatsConnection) -> None:
        deadline = self._loop.time() + CONFIRM_S
        while self._under_way and not self._answers:
            left = deadline - self._loop.time()
            if left <= 0:
                raise BrokerError("not-confirmed", f"nothing confirmed in {CONFIRM_S:g} s")
            await self._wait(connection, left)
            self._stir.clear()
        if self._answers:
            raise BrokerError("refused", self._answers[0])

    async def _answered(self, message: Msg) -> None:
        token = message.subject.rpartition(".")[2]
        if not message.data:
            self._answers.append(f"no stream takes in {self._settings.subject!r}")
        else:
            try:
                answer = json.loads(message.data)
                refusal = answer.get("error")
            except (ValueError, AttributeError):
                refusal = {"description": "an answer that is none"}
            if refusal is None:
                if self._under_way.pop(token, None) is not None:
                    self._confirmed(self, 1)
            else:
                self._answers.append(str(refusal.get("description")))
        self._stir.set()

    async def _ensure_stream(self, connection: NatsConnection, name: str) -> None:
        """Create the stream where there is none. One that there is stays as its owner made it."""
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

    def _tell(self, error: BrokerError) -> None:
        before = self.problem
        self.problem = NotCarried(error.reason, str(error))
        if before is None or str(before) != str(error):
            self._log.warning(
                "cannot announce, trying again", target=self.target, reason=str(error)
            )


def _name(error: Exception) -> str:
    text = getattr(error, "description", None) or str(error).removeprefix("nats: ")
    return f"{type(error).__name__} {text}".strip()
