"""The listener as a library: verified and complete updates, one after the other.

    async with Listener(ListenerSettings(...)) as listener:
        async for delivery in listener:
            ...

Puts the stages together: receive, verify, order, repair, deliver, save. See docs/listeners.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from clients.https import Refused
from listeners.events import Delivery, Source
from listeners.operator_warnings import OperatorWarnings
from listeners.order.log_follower import LogFollower, Start
from listeners.order.sequence import Position
from listeners.order.state_file import SAVE_INTERVAL_S, StateFile
from listeners.receive.nats_source import NatsSource
from listeners.receive.sockets import WILDCARD, open_sockets
from listeners.receive.udp_receiver import UdpReceiver
from listeners.repair.repair import Repair
from listeners.repair.server_api import ServerApi
from listeners.verify.known_announcers import KnownAnnouncers
from listeners.verify.unverified import Encoding
from listeners.verify.verification import Verification, VerificationCallbacks
from listeners.verify.verifier import MAX_SKEW_S, Verifier
from tornado_status.errors import ConfigError
from tornado_status.model.presence import PresenceTimes
from tornado_status.wire.datagram import Datagram
from tornado_status.wire.nats_broker import Broker
from tornado_status.wire.nats_connection import check_files
from tornado_status.wire.sealed_datagram import MAX_SEALED, Opener

# The target in the shipped config.yaml.
GROUP = "239.255.66.66"
PORT = 6667
INTERFACE = "127.0.0.1"

TURN = 64  # deliveries in a row before the loop reads the sockets again
BROKER_START_S = 5.0  # how long the broker may delay the first delivery
TASK_END_S = 1.0  # after which a task is cancelled once more
MAX_UNREAD = 1024  # a broker's datagrams that wait to be verified; the rest waits in the broker

logger = logging.getLogger("listeners")


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """The addresses to listen on, the certificates to trust, and the number to begin with.

    Trust: `ca`, and one or both of `announcers` (certificate files) and `urls` with a reader's
    `certificate` and `private_key`. The latter also repair, from any server of one database.
    Without them `insecure` is needed, or the binary format, which nothing can prove.
    With a `broker` the listener subscribes to its subject, and opens no UDP socket.
    `start` is "now", "start", "snapshot" (first the records of all users, from the server), or the
    number of the first update. A saved `state` comes first.
    """

    address: str = WILDCARD
    port: int = PORT
    groups: Sequence[str] = (GROUP,)
    interfaces: Sequence[str] = (INTERFACE,)
    broker: Broker | None = None
    ca: Path | None = None
    announcers: Sequence[Path] = ()
    urls: Sequence[str] = ()
    certificate: Path | None = None
    private_key: Path | None = None
    log_id: uuid.UUID | None = None
    state: Path | None = None
    start: Start = "now"
    max_skew_s: float = MAX_SKEW_S
    window_s: float | None = None
    insecure: bool = False
    encoding: Encoding = Encoding.AUTO


@dataclass(frozen=True, slots=True)
class ListenerCounts:
    """Datagrams and updates so far, by their fate."""

    datagrams: int
    duplicates: int  # updates that were known; a whole datagram counts as one
    refused: Counter[str]  # datagrams, by reason
    ignored: int  # of the encoding that was not asked for
    dropped: int  # no room, before they were verified
    healed: int  # updates that a later datagram repeated
    repaired: int  # updates that were fetched
    missed: int  # numbers reported in gaps
    # Numbers that are known to exist and not delivered yet. None: datagrams are refused for their
    # time, so there may be any number of them.
    lag: int | None


@dataclass(frozen=True, slots=True)
class Condition:
    """The state of the listener right now.

    `repairs`: a server is asked for what is missing. `problem`: why the last request got no answer.
    `silent_s`: seconds since the last verified datagram; None before the first. `presence`: the
    server's times that make a user late or offline; None if it did not say.
    """

    repairs: bool
    problem: str | None
    silent_s: float | None
    presence: PresenceTimes | None


class Listener:
    """Delivers what a server announces. An async context manager, and an async iterator.

    A delivery counts as delivered once the next one is asked for, or when the context is left
    without an exception. `warn` gets sentences for the operator. Raises `ConfigError`, also on
    entering, for settings that cannot be used.
    """

    def __init__(
        self,
        settings: ListenerSettings | None = None,
        *,
        warn: Callable[[str], None] = logger.warning,
    ) -> None:
        self._settings = settings = settings or ListenerSettings()
        self._warnings = OperatorWarnings(warn)
        self._keys = KnownAnnouncers.from_files(settings.ca, settings.announcers)
        server = _server(settings)
        self._verifies = bool(server or self._keys.known)
        if not (self._verifies or settings.insecure or settings.encoding is Encoding.BINARY):
            raise ConfigError(
                "nothing to verify announcements with: give --announcer and --ca, or --url with a "
                "reader's --cert and --key, or --insecure to show unverified updates"
            )
        if settings.start == "snapshot" and server is None:
            raise ConfigError("--from snapshot: needs a reader's certificate (--cert, --key)")
        self._state = StateFile(settings.state) if settings.state is not None else None
        self._resumed = self._state.load() if self._state is not None else None
        if self._state is not None:
            self._state.check()
        if settings.broker is not None:
            check_files(settings.broker)
        self._opener = Opener() if server is not None else None
        self._verification = Verification(
            Verifier(lambda: self._keys.known, settings.max_skew_s) if self._verifies else None,
            VerificationCallbacks(
                verified=self._order,
                unknown_key=self._want_keys,
                progress=lambda: self._ready.set(),
                call_soon=lambda turn: self._loop.call_soon(turn),
            ),
            self._warnings,
            encoding=settings.encoding,
            insecure=settings.insecure,
            opener=self._opener,
        )
        self._follower = LogFollower(
            start=settings.start,
            pinned=settings.log_id,
            resumed=self._resumed,
            repairs=server is not None,
            window_s=settings.window_s,
            warn=warn,
            on_unconfirmed=self._want_log,
        )
        self._repair: Repair | None = None
        if server is not None and self._opener is not None:
            self._repair = Repair(
                server,
                self._keys,
                self._opener,
                self._verification.receive_sealed_again,
                self._follower,
                self._warnings,
                lambda: self._loop.time(),
            )
        self._acknowledged: Position | None = None
        self._received_at: float | None = None
        self._deliveries = 0
        self._stopped = False
        self._failure: BaseException | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._udp: UdpReceiver | None = None
        self._broker: NatsSource | None = None

    # ------------------------------------------------------------------------------------- start

    async def __aenter__(self) -> Listener:
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()  # there may be something to deliver
        self._wake_repair = asyncio.Event()  # there may be something to ask the server for
        self._wake_report = asyncio.Event()  # a gap may be open
        if self._settings.broker is None:
            self._open_sockets()
        try:
            # Before the caller learns that it listens: no later announcement is missed.
            await self._start_repair()
            self._follower.resume(datetime.datetime.now(datetime.UTC), self._loop.time())
            self._begin(self._report_gaps())
            if self._repair is not None:
                self._begin(self._keep_repaired(self._repair))
            if self._state is not None:
                self._begin(self._keep_saved())
            if self._udp is not None:
                await self._udp.start()
                self._begin(self._udp.keep_joined())
            if self._settings.broker is not None:
                await self._start_broker(self._settings.broker)
        except BaseException:
            await self._close()
            raise
        return self

    def _open_sockets(self) -> None:
        settings = self._settings
        sockets = open_sockets(
            settings.address, settings.port, settings.groups, settings.interfaces
        )
        self._udp = UdpReceiver(sockets, self._verification.receive, self._warnings)

    async def _start_repair(self) -> None:
        if self._repair is None:
            if self._verifies:
                self._warnings.warn(
                    "without a reader's certificate (--cert, --key) gaps are reported, not repaired"
                )
            return
        try:
            await self._repair.start()
        except Refused as error:
            if not self._keys.known:
                raise ConfigError(f"{error}: give a reader's certificate with --cert") from error
            self._warnings.warn(f"{error}: gaps are reported, not repaired")
            self._repair.close()
            self._repair = self._verification.opener = None
            self._follower.give_up_repairs()
            return
        # If the caller asked for a position, what is missing waits for the server.
        anywhere = self._settings.start == "now" and self._resumed is None
        if self._follower.sequence.log_id is None and self._keys.known and anywhere:
            self._warnings.warn("until a server answers (--url) gaps are reported, not repaired")
            self._follower.give_up_repairs()

    async def _start_broker(self, broker: Broker) -> None:
        """Subscribe, and wait a moment for that. A broker that is away is tried again."""
        since = None
        if self._resumed is not None or self._settings.start != "now":
            # Older datagrams would be refused.
            skew = datetime.timedelta(seconds=self._settings.max_skew_s)
            since = datetime.datetime.now(datetime.UTC) - skew
        self._broker = NatsSource(broker, self._receive_from_broker, self._warnings.warn, since)
        self._begin(self._broker.run())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BROKER_START_S):
                await self._broker.subscribed.wait()

    def _begin(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(coroutine)
        task.add_done_callback(self._on_task_end)
        self._tasks.append(task)

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
            self._ready.set()

    # ------------------------------------------------------------------------ receive and verify

    async def _receive_from_broker(self, payload: bytes, source: Source) -> None:
        """Receive a datagram that can wait, once there is room to verify it."""
        while len(self._verification) >= MAX_UNREAD:  # noqa: ASYNC110 - the queue is worked off
            await asyncio.sleep(0)
        self._verification.receive(payload[: MAX_SEALED + 1], source)

    # ----------------------------------------------------------------------------- order, repair

    def _order(self, datagram: Datagram, source: Source) -> None:
        """Add a verified datagram. Raises `DatagramError` if its log is not followed."""
        now = self._received_at = self._loop.time()
        self._follower.receive(datagram, source, now)
        if self._follower.wake_at() is not None:
            self._wake_tasks()

    def _want_log(self) -> None:
        if self._repair is not None:
            self._repair.want_log()
            self._wake_repair.set()

    def _want_keys(self) -> None:
        if self._repair is not None:
            self._repair.want_keys()
            self._wake_repair.set()

    def _wake_tasks(self) -> None:
        self._wake_repair.set()
        self._wake_report.set()

    async def _keep_repaired(self, repair: Repair) -> None:
        """Ask the server for what is missing."""
        while True:
            self._wake_repair.clear()
            if await repair.request():
                self._ready.set()
                self._wake_report.set()
                continue
            sequence = self._follower.sequence
            fetch_at = sequence.wake_at() if sequence.repairs else None
            moments = [moment for moment in (fetch_at, repair.wake_at()) if moment is not None]
            await self._wait(self._wake_repair, min(moments))

    async def _report_gaps(self) -> None:
        """Report what is missing while nothing repairs it."""
        while True:
            self._wake_report.clear()
            follower = self._follower
            if follower.expire(self._loop.time()):
                self._ready.set()
                continue
            until = None if follower.sequence.repairs else follower.wake_at()
            await self._wait(self._wake_report, until)

    async def _wait(self, event: asyncio.Event, until: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await event.wait()

    async def _keep_saved(self) -> None:
        """Save the position, also while a request waits for its answer."""
        while True:
            self._save()
            await asyncio.sleep(SAVE_INTERVAL_S)

    # ----------------------------------------------------------------------------------- deliver

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> Delivery:
        sequence = self._follower.sequence
        self._acknowledged = sequence.position
        self._save()
        self._deliveries += 1
        if self._deliveries % TURN == 0:
            await asyncio.sleep(0)  # a reader that never waits would keep the sockets waiting
        while not self._stopped:
            if self._failure is not None:
                raise self._failure
            if self._verification.unverified:
                return self._verification.unverified.popleft()
            delivery = sequence.next_delivery()
            if delivery is not None:
                if sequence.wake_at() is not None:
                    self._wake_tasks()  # there is room again for what is missing
                return delivery
            self._ready.clear()
            await self._ready.wait()
        raise StopAsyncIteration

    @property
    def counts(self) -> ListenerCounts:
        """Datagrams and updates so far."""
        received, unverified = self._verification.counts, self._verification.reader.counts
        ordered = self._follower.sequence.counts
        return ListenerCounts(
            datagrams=received.datagrams,
            duplicates=received.duplicates + ordered.duplicates + unverified.duplicates,
            refused=received.refused,
            ignored=received.ignored + unverified.ignored,
            dropped=received.dropped,
            healed=ordered.healed + unverified.healed,
            repaired=ordered.repaired,
            missed=ordered.missed,
            lag=self._follower.sequence.lag if received.clock_is_right else None,
        )

    @property
    def condition(self) -> Condition:
        """The state of the listener right now."""
        repair, at = self._repair, self._received_at
        return Condition(
            repairs=repair is not None,
            problem=None if repair is None else repair.failure,
            silent_s=None if at is None else self._loop.time() - at,
            presence=None if repair is None else repair.presence,
        )

    # ---------------------------------------------------------------------------- save and close

    def _save(self, *, at_once: bool = False) -> None:
        if self._state is None or self._acknowledged is None:
            return
        try:
            self._state.save(self._acknowledged, self._loop.time(), at_once=at_once)
        except OSError as error:
            self._warnings.warn_limited("the state file", "state", f"not written: {error.strerror}")

    def stop(self) -> None:
        """End the iteration. From the loop's thread; from another by `call_soon_threadsafe`."""
        self._stopped = True
        self._ready.set()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._acknowledged = self._follower.sequence.position
        await self._close()
        self._save(at_once=True)

    async def _close(self) -> None:
        if self._broker is not None:
            self._broker.stop()
        left = set(self._tasks)
        while left:  # the broker's library swallows a cancellation now and then
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=TASK_END_S)
        if self._udp is not None:
            self._udp.close()
        if self._repair is not None:
            self._repair.close()


def _server(settings: ListenerSettings) -> ServerApi | None:
    if not settings.urls:
        return None
    if not (settings.ca and settings.certificate and settings.private_key):
        raise ConfigError("--url: needs --ca, and a reader's --cert and --key")
    return ServerApi(settings.urls, settings.certificate, settings.private_key, settings.ca)
