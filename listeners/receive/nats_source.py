"""Receives datagrams from a NATS broker, and reconnects when the connection breaks.

If JetStream keeps the subject, an ordered consumer begins after the last message that was received,
so that a broken connection leaves no gap. Otherwise it is a plain subscription. In both cases the
sequence numbers show what is missing, and it is repaired.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from listeners.events import Source
from tornado_status.errors import BrokerError
from tornado_status.wire.nats_broker import Broker
from tornado_status.wire.nats_connection import MAX_REASON, RETRY_S, NatsConnection, connected

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.js.manager import JetStreamManager

    from tornado_status.wire.nats_client import BoundedClient

CHECK_S = 5.0  # how often the consumer is checked: a broker may drop it without notice
ANSWER_S = 3.0
# Messages that the library may hold. One that finds no room is repaired.
MAX_MESSAGES = 65_536
MAX_BYTES = 64 * 1024 * 1024
CLOCK_DIFFERENCE = datetime.timedelta(seconds=10)  # what comes twice is a known duplicate
_FORBIDDEN = "permissions violation"  # in the broker's error
INACTIVE_S = 30.0  # a consumer whose listener is gone is removed by the broker

OnMessage = Callable[[bytes, Source], Awaitable[None]]


class NatsSource:
    """Subscribes to one subject of one broker.

    With `since`, messages that the broker has kept from that time on come too.
    """

    def __init__(
        self,
        broker: Broker,
        on_message: OnMessage,
        warn: Callable[[str], None],
        since: datetime.datetime | None,
    ) -> None:
        self.subscribed = asyncio.Event()
        self._broker = broker
        self._hand_on = on_message
        self._warn = warn
        self._since = since
        self._may_ask = True  # for the stream; a broker that forbids it logs each request
        self._stream: str | None = None
        self._last = 0  # JetStream's own number of the last message, not the log's
        self._received = 0  # messages of this consumer
        self._missed = asyncio.Event()
        self._problem: str | None = None
        self._stopping = False

    async def run(self) -> None:
        """Receive until cancelled, or until `stop`."""
        while not self._stopping:
            try:
                async with connected(self._broker, "status-listener") as connection:
                    await self._receive(connection)
            except BrokerError as error:
                self._warn_once(str(error))
            except Exception as error:  # the library's own
                text = str(error).removeprefix("nats: ")[:MAX_REASON]
                self._warn_once(f"the broker {self._broker}: {text}")
            if self.subscribed.is_set():
                # Ask for what is kept from now on, if there is no number to go on from.
                now = datetime.datetime.now(datetime.UTC)
                self._since = self._since or now - CLOCK_DIFFERENCE
            await asyncio.sleep(RETRY_S)

    def stop(self) -> None:
        """Open no more connections: the library may swallow a cancellation."""
        self._stopping = True

    async def _receive(self, connection: NatsConnection) -> None:
        client = connection.client
        host, _, port = connection.where.rpartition(":")
        source = (host, int(port))

        async def on_message(message: Msg) -> None:
            await self._on_message(message, source)

        manager = client.jsm(timeout=ANSWER_S)
        stream = await self._find_stream(client, manager) if self._may_ask else None
        subject = self._broker.subject if stream is None else client.new_inbox()
        before = client.last_error
        await client.subscribe(
            subject,
            cb=on_message,
            pending_msgs_limit=MAX_MESSAGES,
            pending_bytes_limit=MAX_BYTES,
        )
        self._missed.clear()
        self._received = 0
        consumer = None if stream is None else await self._consume(manager, stream, subject)
        await client.flush(int(ANSWER_S))  # the broker has answered the subscription by now
        if connection.ended.is_set() or client.last_error is not before:
            why = str(client.last_error)[:MAX_REASON]
            raise BrokerError("refused", f"the broker {self._broker}: {why}")
        if self._problem is not None:
            self._warn(f"receiving from the broker {self._broker} again")
        self._problem = None
        self.subscribed.set()
        while not self._stopping:
            if await _either(connection.ended, self._missed, CHECK_S):
                why = (
                    "it closed the connection"
                    if connection.ended.is_set()
                    else "it skipped a message"
                )
                raise BrokerError("broken", f"the broker {self._broker}: {why}")
            if stream is not None and consumer is not None:
                await manager.consumer_info(stream, consumer, timeout=ANSWER_S)
            else:
                await client.flush(int(ANSWER_S))

    async def _find_stream(self, client: BoundedClient, manager: JetStreamManager) -> str | None:
        """Return the JetStream stream that keeps the subject. None also if we may not ask."""
        from nats.errors import Error

        before = client.last_error
        try:
            return await manager.find_stream_name_by_subject(self._broker.subject)
        except Error:
            if client.last_error is not before and _FORBIDDEN in str(client.last_error).lower():
                self._may_ask = False
            return None

    async def _consume(self, manager: JetStreamManager, stream: str, subject: str) -> str:
        from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

        state = (await manager.stream_info(stream)).state
        if stream != self._stream or state.last_seq < self._last:
            self._stream, self._last = stream, 0  # another one, or it was recreated
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
            self._received += 1
            if sequence.consumer != self._received:
                self._missed.set()  # this one comes again as a duplicate
                return
            self._last = sequence.stream
        await self._hand_on(message.data, source)

    def _warn_once(self, problem: str) -> None:
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
