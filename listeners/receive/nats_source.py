"""Hears datagrams that a NATS broker carries, over one connection after the other.

Where JetStream keeps the subject, an ordered consumer begins behind the last message that was
heard, so that a connection that broke leaves no gap; elsewhere it is a plain subscription. Either
way what is missing shows by the numbers, and is repaired.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from listeners.events import Source
from tornado_status.errors import BrokerError
from tornado_status.wire.nats_broker import Broker
from tornado_status.wire.nats_connection import RETRY_S, NatsConnection, connected

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.js.manager import JetStreamManager

LOOK_S = 5.0  # how often the consumer is looked at: a broker may forget it without a word
ANSWER_S = 3.0
# What the library may hold until it is taken; what finds no room is repaired.
MAX_MESSAGES = 65_536
MAX_BYTES = 64 * 1024 * 1024
SOME_CLOCKS_DIFFER = datetime.timedelta(seconds=10)  # what is heard twice is known
INACTIVE_S = 30.0  # a consumer whose listener is gone is removed by the broker

TakeIn = Callable[[bytes, Source], Awaitable[None]]


class NatsSource:
    """Hears one subject of one broker. `since`: what is kept from that moment on is heard, too."""

    def __init__(
        self,
        broker: Broker,
        take_in: TakeIn,
        warn: Callable[[str], None],
        since: datetime.datetime | None,
    ) -> None:
        self.listening = asyncio.Event()
        self._broker = broker
        self._take_in = take_in
        self._warn = warn
        self._since = since
        self._stream: str | None = None
        self._last = 0  # the stream's own number of the last message, not the log's
        self._heard = 0  # of this consumer
        self._missed = asyncio.Event()
        self._problem: str | None = None
        self._stopping = False

    async def run(self) -> None:
        """Hear until cancelled, or until `stop`."""
        while not self._stopping:
            try:
                async with connected(self._broker, "status-listener") as connection:
                    await self._hear(connection)
            except BrokerError as error:
                self._tell(str(error))
            except Exception as error:  # the library's own
                self._tell(f"the broker {self._broker}: {str(error).removeprefix('nats: ')}")
            if self.listening.is_set():
                # What is kept from now on is asked for, where there is no number to go on from.
                now = datetime.datetime.now(datetime.UTC)
                self._since = self._since or now - SOME_CLOCKS_DIFFER
            await asyncio.sleep(RETRY_S)

    def stop(self) -> None:
        """Begin no other connection: the library may swallow a cancellation."""
        self._stopping = True

    async def _hear(self, connection: NatsConnection) -> None:
        client = connection.client
        host, _, port = connection.where.rpartition(":")
        source = (host, int(port))

        async def on_message(message: Msg) -> None:
            await self._on_message(message, source)

        manager = client.jsm(timeout=ANSWER_S)
        stream = await self._find_stream(manager)
        subject = self._broker.subject if stream is None else client.new_inbox()
        before = client.last_error
        await client.subscribe(
            subject,
            cb=on_message,
            pending_msgs_limit=MAX_MESSAGES,
            pending_bytes_limit=MAX_BYTES,
        )
        self._missed.clear()
        self._heard = 0
        consumer = None if stream is None else await self._consume(manager, stream, subject)
        await client.flush(int(ANSWER_S))  # the broker knows of it now, or said why not
        if connection.ended.is_set() or client.last_error is not before:
            raise BrokerError("refused", f"the broker {self._broker}: {client.last_error}")
        if self._problem is not None:
            self._warn(f"hearing the broker {self._broker} again")
        self._problem = None
        self.listening.set()
        while not self._stopping:
            if await _either(connection.ended, self._missed, LOOK_S):
                why = "it closed the connection" if connection.ended.is_set() else "it left one out"
                raise BrokerError("broken", f"the broker {self._broker}: {why}")
            if stream is not None and consumer is not None:
                await manager.consumer_info(stream, consumer, timeout=ANSWER_S)
            else:
                await client.flush(int(ANSWER_S))

    async def _find_stream(self, manager: JetStreamManager) -> str | None:
        """Return the stream that keeps the subject; None also where we may not ask."""
        from nats.errors import Error

        try:
            return await manager.find_stream_name_by_subject(self._broker.subject)
        except Error:
            return None

    async def _consume(self, manager: JetStreamManager, stream: str, subject: str) -> str:
        from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

        state = (await manager.stream_info(stream)).state
        if stream != self._stream or state.last_seq < self._last:
            self._stream, self._last = stream, 0  # another one, or made anew
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.NEW,
            deliver_subject=subject,
            filter_subject=self._broker.subject,
            ack_policy=AckPolicy.NONE,
            max_deliver=1,
            mem_storage=True,
            num_replicas=1,
            inactive_threshold=INACTIVE_S,
        )
        if self._last:
            config.deliver_policy = DeliverPolicy.BY_START_SEQUENCE
            config.opt_start_seq = self._last + 1
        elif self._since is not None:
            config.deliver_policy = DeliverPolicy.BY_START_TIME
            config.opt_start_time = self._since
        return (await manager.add_consumer(stream, config)).name

    async def _on_message(self, message: Msg, source: Source) -> None:
        if message.reply.startswith("$JS.ACK."):
            sequence = message.metadata.sequence
            self._heard += 1
            if sequence.consumer != self._heard:
                self._missed.set()  # what came too early is a duplicate the second time
                return
            self._last = sequence.stream
        await self._take_in(message.data, source)

    def _tell(self, problem: str) -> None:
        if problem != self._problem:
            self._warn(f"{problem}; trying again")
        self._problem = problem


async def _either(one: asyncio.Event, other: asyncio.Event, timeout_s: float) -> bool:
    waits = {asyncio.ensure_future(event.wait()) for event in (one, other)}
    try:
        done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return bool(done)
