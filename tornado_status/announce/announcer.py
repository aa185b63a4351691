"""The announcer: encodes committed events, sends them to every target, and sends heartbeats.

It never waits: a datagram that the kernel refuses is counted, and listeners repair the gap. The
sink of a broker queues datagrams, up to a limit.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import errno
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import structlog
from prometheus_client.core import Metric

from tornado_status.announce.errno_hints import errno_name, hint
from tornado_status.announce.interface_monitor import InterfaceMonitor
from tornado_status.announce.nats_sink import NatsSink
from tornado_status.announce.sink import Sink
from tornado_status.announce.udp_sink import udp_sinks
from tornado_status.config.settings import AnnounceSettings
from tornado_status.errors import ConfigError, DatagramError
from tornado_status.model.records import CommittedBatch
from tornado_status.observe import metrics
from tornado_status.runtime.listening import holder
from tornado_status.runtime.rate_limit import RateLimit
from tornado_status.wire import datagram
from tornado_status.wire.sealed_datagram import Sealer

# How long a target counts as failing after an error. The next success is no proof: to a unicast
# address where no program listens, every second datagram seems to be sent.
FAILING_S = 60.0

# How often the log id is compared. Listeners hold a new log's datagrams until they know its parent.
LOG_CHECK_S = 0.5

LogPosition = Callable[[], CommittedBatch | None]  # a batch without events


class Announcer:
    """Sends every event it is given to every target, in order.

    `sent` counts datagrams by target (for a broker, those that it confirmed), `failed` those that
    were not sent, by target and errno name.
    """

    def __init__(self, settings: AnnounceSettings) -> None:
        self._settings = settings
        # Both may change at any time. Without a sealer nothing goes to sealed targets.
        self.signer: datagram.Signs | None = None
        self.sealer: Sealer | None = None
        self._log = structlog.get_logger()
        self._warnings = RateLimit()
        udp = [
            sink
            for target in settings.udp_targets
            for sink in udp_sinks(target, settings.source_port)
        ]
        self._interface_monitor = InterfaceMonitor(udp, self._warnings)
        self._brokers = [
            NatsSink(target, self._confirmed, self._lost) for target in settings.nats_targets
        ]
        self._sinks: list[Sink] = [*udp, *self._brokers]
        self._json = [sink for sink in self._sinks if sink.encoding == "json"]
        self._sealed = [sink for sink in self._sinks if sink.encoding == "sealed"]
        self._binary = [sink for sink in self._sinks if sink.encoding == "binary"]
        self._encoder = datagram.DatagramEncoder(settings.repeat)
        self._log_id: uuid.UUID | None = None  # of the last announcement
        self._last_sent = self._last_heartbeat = float("-inf")
        self._tasks: list[asyncio.Task[None]] = []
        # With every target from the start, so that a rate over the first datagram is right.
        self.sent: Counter[str] = Counter({str(target): 0 for target in settings.targets})
        self.failed: Counter[tuple[str, str]] = Counter()
        self._last_failures: dict[str, tuple[float, str]] = {}

    def open(self) -> None:
        """Open the sockets. One that cannot be opened now is tried again.

        Raises `ConfigError` if an interface does not exist, the source port is taken, or a file
        for a broker cannot be used.
        """
        try:
            for broker in self._brokers:
                broker.check()
            self._interface_monitor.open()
            for sink in self._sinks:
                if sink.problem is not None and sink.problem.errno == errno.EADDRINUSE:
                    port = self._settings.source_port
                    raise ConfigError(
                        f"announce.source_port: UDP port {port} is taken by "
                        f"{holder(port, 'udp')}: stop it, or set another port"
                    )
        except BaseException:
            self._close_sinks()
            raise

    def start(self, log_position: LogPosition) -> None:
        """Watch the interfaces, and send a heartbeat after `heartbeat_s` without an announcement.

        If the log goes on from another one, send a heartbeat every `heartbeat_s`, and at once when
        it begins. `log_position` returns the log as a batch without events, or None while it is
        unknown.
        """
        watching = self._interface_monitor.run()
        self._tasks.append(asyncio.create_task(watching, name="interface monitor"))
        for broker in self._brokers:
            broker.start()
        if self._settings.heartbeat_s and (self._json or self._sealed):
            heartbeats = self._send_heartbeats(log_position)
            self._tasks.append(asyncio.create_task(heartbeats, name="heartbeat"))

    async def wait_failed(self) -> None:
        """Never return; raise the error of a background task that fails."""
        await asyncio.gather(*(asyncio.shield(task) for task in self._tasks))

    def announce(self, batch: CommittedBatch) -> None:
        """Send the events of a committed batch, in order; a heartbeat if there are none."""
        if self._json or self._sealed:
            if batch.log_id != self._log_id:
                self._begin_log(batch)
            self._announce_json(batch)
        if self._binary:
            for event in batch.events:
                if event.client_ip is None:
                    continue  # the format has check-ins only
                try:
                    self._send(self._binary, datagram.encode_binary(event))
                except DatagramError as error:
                    self._count_failure("encoding", "binary", "", error.reason, str(error))

    def _begin_log(self, batch: CommittedBatch) -> None:
        another = self._log_id is not None
        self._log_id = batch.log_id
        if another and batch.events:
            # First how the log began, which only heartbeats say.
            self._announce_json(dataclasses.replace(batch, events=()))

    def _announce_json(self, batch: CommittedBatch) -> None:
        if not (batch.events or self._settings.heartbeat_s):
            return
        now = datetime.datetime.now(datetime.UTC)
        try:
            for payload in self._encoder.encode(
                batch.log_id, now, batch.head, batch.events, self.signer, batch.parent
            ):
                self._send(self._json, payload)
                if self._sealed:
                    self._send_sealed(payload)
        except DatagramError as error:
            self._count_failure("encoding", "all", "", error.reason, str(error))
        self._last_sent = asyncio.get_running_loop().time()
        if not batch.events:
            self._last_heartbeat = self._last_sent

    def failing(self) -> dict[str, str]:
        """Return, by target, why it cannot be reached now, or could not within `FAILING_S`."""
        found = {
            f"{sink.target} by {sink.via}": hint(sink.problem)
            for sink in self._sinks
            if sink.problem is not None
        }
        reported = {sink.target for sink in self._sinks if sink.problem is not None}
        now = asyncio.get_running_loop().time()
        for target, (failed, reason) in self._last_failures.items():
            if now - failed < FAILING_S and target not in reported:
                found[target] = reason
        return found

    def metrics(self) -> Iterable[Metric]:
        yield metrics.counters(
            "datagrams_sent", "Datagrams handed to the kernel or a broker", ["target"], self.sent
        )
        yield metrics.counters(
            "datagrams_failed", "Datagrams not sent", ["target", "errno"], self.failed
        )

    async def close(self, drain_timeout_s: float = 0.0) -> None:
        """Stop the monitor and the heartbeats, publish what is queued, and close all sinks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await asyncio.gather(*(broker.drain(drain_timeout_s) for broker in self._brokers))
        self._close_sinks()

    def _confirmed(self, sink: Sink, count: int) -> None:
        self.sent[sink.target] += count

    def _lost(self, sink: Sink, error: OSError) -> None:
        self._count_failure("send", sink.target, sink.via, errno_name(error), hint(error))

    def _send(self, sinks: Sequence[Sink], payload: bytes) -> None:
        sent = self.sent
        for sink in sinks:
            try:
                if sink.send(payload):
                    sent[sink.target] += 1
            except OSError as error:
                self._count_failure("send", sink.target, sink.via, errno_name(error), hint(error))

    def _send_sealed(self, payload: bytes) -> None:
        if self.sealer is not None:
            self._send(self._sealed, self.sealer.seal(payload))
            return
        for sink in self._sealed:
            reason = "the key of this hour has not been read from the database yet"
            self._count_failure("seal", sink.target, sink.via, "no-key", reason)

    def _count_failure(self, step: str, target: str, via: str, name: str, reason: str) -> None:
        self.failed[target, name] += 1
        failed = asyncio.get_running_loop().time()
        self._last_failures[target] = (failed, f"{name}: {reason}")
        suppressed = self._warnings.allow((target, via, name))
        if suppressed is not None:
            self._log.warning(
                "announcement not sent",
                step=step,
                target=target,
                interface=via,
                errno=name,
                hint=reason,
                suppressed=suppressed,
            )

    async def _send_heartbeats(self, log_position: LogPosition) -> None:
        loop = asyncio.get_running_loop()
        interval_s = self._settings.heartbeat_s
        while True:
            position = log_position()
            # Only heartbeats say how a log goes on from another: not even much traffic stops them.
            parted = position is not None and position.parent is not None
            last = self._last_heartbeat if parted else self._last_sent
            due_s = last + interval_s - loop.time()
            if position is not None and (due_s <= 0 or position.log_id != self._log_id):
                self.announce(position)
                due_s = interval_s
            await asyncio.sleep(min(due_s, LOG_CHECK_S) if due_s > 0 else LOG_CHECK_S)

    def _close_sinks(self) -> None:
        for sink in self._sinks:
            sink.close()
