"""The announcer: committed events to datagrams, datagrams to every target, heartbeats in silence.

Never waits: a datagram that the kernel refuses is counted, and listeners repair. What a broker
carries is queued by its outlet, which has a limit.
"""

from __future__ import annotations

import asyncio
import datetime
import errno
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import structlog
from prometheus_client.core import Metric

from tornado_status.announce.errno_hints import advice, errno_name
from tornado_status.announce.interface_monitor import Following
from tornado_status.announce.nats_sink import NatsSink
from tornado_status.announce.sink import QUEUED, Sink
from tornado_status.announce.udp_sink import udp_sinks
from tornado_status.config import AnnounceSettings
from tornado_status.errors import ConfigError, DatagramError
from tornado_status.model.records import CommittedBatch
from tornado_status.observe import metrics
from tornado_status.runtime.rate_limit import RateLimit
from tornado_status.wire import datagram

# How long a target that refused counts as failing. Not until the next datagram gets through: to a
# unicast address where nobody listens every second one seems to.
FAILING_S = 60.0


class Announcer:
    """Sends every event it is given to every target, in order.

    `sent` counts datagrams by target (for a broker, those that it confirmed), `errors` refusals by
    target and errno name.
    """

    def __init__(self, settings: AnnounceSettings) -> None:
        self._settings = settings
        self.signer: datagram.Signs | None = None  # may change at any time
        self._log = structlog.get_logger()
        self._warnings = RateLimit()
        udp = [
            outlet
            for target in settings.udp_targets
            for outlet in udp_sinks(target, settings.source_port)
        ]
        self._following = Following(udp, self._warnings)
        self._brokers = [
            NatsSink(target, self._confirmed, self._lost) for target in settings.nats_targets
        ]
        self._outlets: list[Sink] = [*udp, *self._brokers]
        self._json = [outlet for outlet in self._outlets if outlet.encoding == "json"]
        self._binary = [outlet for outlet in self._outlets if outlet.encoding == "binary"]
        self._last_sent = float("-inf")
        self._tasks: list[asyncio.Task[None]] = []
        # Known from the start, for who counts.
        self.sent: Counter[str] = Counter({str(target): 0 for target in settings.targets})
        self.errors: Counter[tuple[str, str]] = Counter()
        self._failed: dict[str, tuple[float, str]] = {}

    def open(self) -> None:
        """Open the sockets; what cannot be reached now is tried again by itself.

        Raises `ConfigError` where an interface does not exist, the source port is taken, or a file
        for a broker cannot be used.
        """
        try:
            for broker in self._brokers:
                broker.check()
            self._following.open()
            for outlet in self._outlets:
                if outlet.problem is not None and outlet.problem.errno == errno.EADDRINUSE:
                    port = self._settings.source_port
                    raise ConfigError(
                        f"announce.source_port: UDP port {port} is taken by another program"
                    )
        except BaseException:
            self._close_outlets()
            raise

    def start(self, state: Callable[[], tuple[uuid.UUID, int] | None]) -> None:
        """Follow the interfaces, and send heartbeats: after `heartbeat_s` of silence announce the
        stream and head that `state` returns.
        """
        following = self._following.run()
        self._tasks.append(asyncio.create_task(following, name="interfaces"))
        for broker in self._brokers:
            broker.start()
        if self._settings.heartbeat_s and self._json:
            heartbeats = self._send_heartbeats(state)
            self._tasks.append(asyncio.create_task(heartbeats, name="heartbeat"))

    async def wait_failed(self) -> None:
        """Return never, but raise what nobody expected, should one of these end with it."""
        await asyncio.gather(*(asyncio.shield(task) for task in self._tasks))

    def announce(self, batch: CommittedBatch) -> None:
        """Send the events of a committed batch, in order; a heartbeat if there are none."""
        events = batch.events
        if self._json:
            now = datetime.datetime.now(datetime.UTC)
            try:
                for payload in datagram.encode_json(
                    batch.log_id, now, batch.head, events, self.signer
                ):
                    self._send(self._json, payload)
            except DatagramError as error:
                self._refused("encoding", "all", "", error.reason, str(error))
            self._last_sent = asyncio.get_running_loop().time()
        if self._binary:
            for event in events:
                if event.client_ip is None:
                    continue  # no check-in, and the format has nothing else
                try:
                    self._send(self._binary, datagram.encode_binary(event))
                except DatagramError as error:
                    self._refused("encoding", "binary", "", error.reason, str(error))

    def failing(self) -> dict[str, str]:
        """Return why targets cannot be reached for now, or could not within `FAILING_S`."""
        found = {
            f"{outlet.target} by {outlet.via}": advice(outlet.problem)
            for outlet in self._outlets
            if outlet.problem is not None
        }
        told = {outlet.target for outlet in self._outlets if outlet.problem is not None}
        now = asyncio.get_running_loop().time()
        for target, (failed, reason) in self._failed.items():
            if now - failed < FAILING_S and target not in told:
                found[target] = reason
        return found

    def metrics(self) -> Iterable[Metric]:
        yield metrics.counters(
            "datagrams_sent", "Datagrams handed to the kernel or a broker", ["target"], self.sent
        )
        yield metrics.counters(
            "datagrams_failed", "Datagrams not sent", ["target", "errno"], self.errors
        )

    async def close(self, drain_timeout_s: float = 0.0) -> None:
        """Stop following and the heartbeats, publish what is queued, and close everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await asyncio.gather(*(broker.drain(drain_timeout_s) for broker in self._brokers))
        self._close_outlets()

    def _confirmed(self, outlet: Sink, count: int) -> None:
        self.sent[outlet.target] += count

    def _lost(self, outlet: Sink, error: OSError) -> None:
        self._refused("send", outlet.target, outlet.via, errno_name(error), advice(error))

    def _send(self, outlets: Sequence[Sink], payload: bytes) -> None:
        sent = self.sent
        for outlet in outlets:
            try:
                if outlet.send(payload) is not QUEUED:
                    sent[outlet.target] += 1
            except OSError as error:
                self._refused("send", outlet.target, outlet.via, errno_name(error), advice(error))

    def _refused(self, what: str, target: str, via: str, name: str, reason: str) -> None:
        self.errors[target, name] += 1
        failed = asyncio.get_running_loop().time()
        self._failed[target] = (failed, f"{name}: {reason}")
        suppressed = self._warnings.allow((target, via, name))
        if suppressed is not None:
            self._log.warning(
                f"announcement not sent ({what})",
                target=target,
                interface=via,
                errno=name,
                advice=reason,
                suppressed=suppressed,
            )

    async def _send_heartbeats(self, state: Callable[[], tuple[uuid.UUID, int] | None]) -> None:
        loop = asyncio.get_running_loop()
        interval_s = self._settings.heartbeat_s
        while True:
            silence = loop.time() - self._last_sent
            if silence < interval_s:
                await asyncio.sleep(interval_s - silence)
                continue
            known = state()
            if known is None:
                self._last_sent = loop.time()  # nothing to say yet: look again later
                continue
            log_id, head = known
            self.announce(CommittedBatch(log_id, head, ()))

    def _close_outlets(self) -> None:
        for outlet in self._outlets:
            outlet.close()
