"""The listener as a library: true and complete updates, one after the other.

    async with Listener(Settings(...)) as listener:
        async for delivery in listener:
            ...

Puts the parts together: `sockets` and `intake` receive, `verify`, `keys` and `streams` judge,
`sequence` orders, `repair` fetches what is missing, `state` remembers. See docs/listeners.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import random
import socket
import uuid
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

from clients.https import HttpsError, Refused, Unreachable
from listeners.complaints import Complaints
from listeners.events import Delivery, Source, Update
from listeners.order.backoff import Pace, Refresh
from listeners.order.log_tracker import Streams, Verdict
from listeners.order.sequence import PAGE, Fetch, FetchEvents, FetchUsers, Position
from listeners.order.sequence import Sequence as Numbers
from listeners.order.state_file import SAVE_INTERVAL_S, StateFile
from listeners.receive.fair_queue import FairQueue
from listeners.receive.nats_source import NatsSource
from listeners.receive.sockets import WILDCARD, Sockets, open_ears
from listeners.repair.server_api import Gone, ServerApi
from listeners.verify.known_announcers import KnownAnnouncers
from listeners.verify.unverified import Encoding, Receiver
from listeners.verify.verifier import MAX_SKEW_S, UNPROVEN, Copy, Verifier
from tornado_status.errors import ConfigError, DatagramError
from tornado_status.wire.datagram import MAX_DATAGRAM, Datagram, decode_binary
from tornado_status.wire.nats_broker import Broker
from tornado_status.wire.nats_connection import check_files

# What the shipped config.yaml announces.
GROUP = "239.255.66.66"
PORT = 6667
INTERFACE = "127.0.0.1"

DRAIN = 256  # datagrams taken from a socket before anything else has its turn
VERIFY = 32  # signatures checked in a row, some milliseconds: sockets are drained between
TURN = 64  # deliveries in a row before the sockets have their turn again
MAX_UNPROVEN = 4096  # unverified updates that wait for their reader, with `insecure`
MEET_S = 5.0  # how long a server may keep the first datagram waiting
END_S = 1.0  # after which a task is cancelled once more
REJOIN_S = 3.0  # how often interfaces are looked at
MAX_UNREAD = 1024  # of a broker's datagrams that wait to be verified; the rest waits in the broker
MAX_HINTS = 8  # unconfirmed streams whose first number is remembered

logger = logging.getLogger("listeners")


@dataclass(frozen=True, slots=True)
class Settings:
    """What to listen to, whom to trust, and where to begin.

    Trust: `ca` and one or both of `announcers` (certificate files) and `url` with a reader's
    `certificate` and `private_key`, which repairs, too. None of them only with `insecure`, or for
    the binary format, which nothing can prove.
    With a `broker` its subject is heard, and no UDP at all.
    `start` is "now", "start", "snapshot" (everybody's record first, from the server), or the number
    of the first update; a saved `state` comes first.
    """

    address: str = WILDCARD
    port: int = PORT
    groups: Sequence[str] = (GROUP,)
    interfaces: Sequence[str] = (INTERFACE,)
    broker: Broker | None = None
    ca: Path | None = None
    announcers: Sequence[Path] = ()
    url: str | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    log_id: uuid.UUID | None = None
    state: Path | None = None
    start: int | Literal["now", "start", "snapshot"] = "now"
    max_skew_s: float = MAX_SKEW_S
    window_s: float | None = None
    insecure: bool = False
    encoding: Encoding = Encoding.AUTO


@dataclass(slots=True)
class Counts:
    """What became of everything that was heard, so far."""

    datagrams: int = 0
    duplicates: int = 0  # updates that were known; whole datagrams count as one
    refused: Counter[str] = field(default_factory=Counter)  # datagrams, by reason
    ignored: int = 0  # of the encoding that was not asked for
    dropped: int = 0  # for want of room, before they were verified
    repaired: int = 0  # updates that were fetched
    missed: int = 0  # numbers reported in gaps
    lag: int = 0  # numbers that are known to exist and not delivered yet


@dataclass(frozen=True, slots=True)
class Condition:
    """How it goes right now.

    `repairs`: a server is asked for what is missing. `trouble`: why it gave none the last time.
    `silent_s`: seconds since the last verified datagram; None before the first.
    """

    repairs: bool
    trouble: str | None
    silent_s: float | None


class Listener:
    """Delivers what a server announces. An async context manager, and an async iterator.

    What was returned counts as delivered once the next one is asked for, or when the context is
    left without an exception. `warn` gets sentences for the operator. Entering it raises
    `ConfigError` for what cannot be used.
    """

    def __init__(
        self, settings: Settings | None = None, *, warn: Callable[[str], None] = logger.warning
    ) -> None:
        self._settings = settings = settings or Settings()
        self._warn = warn
        self._counts = Counts()
        self._complaints = Complaints()
        self._server: ServerApi | None = None
        self._keys = KnownAnnouncers.from_files(settings.ca, settings.announcers)
        if settings.url is not None:
            if not (settings.ca and settings.certificate and settings.private_key):
                raise ConfigError("--url: needs --ca, and a reader's --cert and --key")
            self._server = ServerApi(
                settings.url, settings.certificate, settings.private_key, settings.ca
            )
        self._verifies = bool(self._server or self._keys.known)
        if not (self._verifies or settings.insecure or settings.encoding is Encoding.BINARY):
            raise ConfigError(
                "nothing to verify announcements with: give --announcer and --ca, or --url with a "
                "reader's --cert and --key, or --insecure to show what nobody vouches for"
            )
        self._verifier = Verifier(lambda: self._keys.known, settings.max_skew_s)
        self._streams = Streams(pinned=settings.log_id, confirms=self._server is not None)
        self._numbers = Numbers(
            repairs=self._server is not None, chance=random.random, window_s=settings.window_s
        )
        if settings.start == "snapshot" and self._server is None:
            raise ConfigError("--from snapshot: needs a reader's certificate (--cert, --key)")
        self._trouble: str | None = None
        self._heard_at: float | None = None
        self._state = StateFile(settings.state) if settings.state is not None else None
        self._resumed = self._state.load() if self._state is not None else None
        if self._state is not None:
            self._state.check()
        self._receiver = Receiver(settings.encoding)
        self._unproven: deque[Update] = deque()
        self._intake = FairQueue()
        self._judging = False
        self._hints: dict[uuid.UUID, int] = {}
        self._refresh = Refresh(random.random)
        self._locating = Pace(random.random)
        self._acknowledged: Position | None = None
        self._turn = 0
        self._warned_of_binary = False
        self._stopped = False
        self._failure: BaseException | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._transports: list[asyncio.BaseTransport] = []
        self._ears: Sockets | None = None
        self._broker: NatsSource | None = None
        if settings.broker is not None:
            check_files(settings.broker)

    # ---------------------------------------------------------------------------------- its life

    async def __aenter__(self) -> Listener:
        settings = self._settings
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._stir = asyncio.Event()
        if settings.broker is None:
            self._ears = open_ears(
                settings.address, settings.port, settings.groups, settings.interfaces
            )
        try:
            # Before anybody is told that it listens: what comes from now on is not missed.
            await self._meet_server()
            if self._server is None and self._resumed is not None:
                # Another stream must be newer than this moment: else a replay could bring one back.
                self._streams.follow(self._resumed.log_id, datetime.datetime.now(datetime.UTC))
                self._numbers.begin(self._resumed.log_id, self._resumed.seq, 0, self._loop.time())
            self._begin(self._keep_up())
            if self._ears is not None:
                for sock in self._ears.sockets:
                    await self._receive_on(sock)
                self._begin(self._rejoin(self._ears))
            if settings.broker is not None:
                await self._hear_broker(settings.broker)
        except BaseException:
            await self._close()
            raise
        return self

    def _begin(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(coroutine)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._acknowledged = self._numbers.position
        await self._close()
        self._save(at_once=True)

    def stop(self) -> None:
        """End the iteration. From the loop's thread; from another by `call_soon_threadsafe`."""
        self._stopped = True
        self._ready.set()

    @property
    def counts(self) -> Counts:
        """What happened so far."""
        counts, numbers, receiver = self._counts, self._numbers.counts, self._receiver.counts
        return Counts(
            datagrams=counts.datagrams,
            duplicates=counts.duplicates + numbers.duplicates + receiver.duplicates,
            refused=counts.refused,
            ignored=counts.ignored + receiver.ignored,
            dropped=counts.dropped,
            repaired=numbers.repaired,
            missed=numbers.missed,
            lag=self._numbers.lag,
        )

    @property
    def condition(self) -> Condition:
        """How it goes right now."""
        silent_s = None if self._heard_at is None else self._loop.time() - self._heard_at
        return Condition(self._server is not None, self._trouble, silent_s)

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> Delivery:
        self._acknowledged = self._numbers.position
        self._save()
        self._turn += 1
        if self._turn % TURN == 0:
            await asyncio.sleep(0)  # a reader that never waits would keep the sockets waiting
        while not self._stopped:
            if self._failure is not None:
                raise self._failure
            if self._unproven:
                return self._unproven.popleft()
            delivery = self._numbers.take()
            if delivery is not None:
                if self._numbers.wake_at() is not None:
                    self._stir.set()  # there is room again for what is missing
                return delivery
            self._ready.clear()
            await self._ready.wait()
        raise StopAsyncIteration

    async def _close(self) -> None:
        if self._broker is not None:
            self._broker.stop()
        left = set(self._tasks)
        while left:  # the broker's library swallows a cancellation now and then
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=END_S)
        for transport in self._transports:
            transport.close()
        if self._ears is not None:
            for sock in self._ears.sockets:
                with contextlib.suppress(NotImplementedError, ValueError):
                    self._loop.remove_reader(sock)
            self._ears.close()
        if self._server is not None:
            self._server.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
            self._ready.set()

    def _save(self, *, at_once: bool = False) -> None:
        if self._state is None or self._acknowledged is None:
            return
        try:
            self._state.save(self._acknowledged, self._loop.time(), at_once=at_once)
        except OSError as error:
            self._complain("the state file", "state", f"not written: {error.strerror}")

    # --------------------------------------------------------------------------------- receiving

    async def _receive_on(self, sock: socket.socket) -> None:
        try:
            self._loop.add_reader(sock, self._drain, sock)
        except NotImplementedError:  # Windows' proactor has only endpoints
            transport, _ = await self._loop.create_datagram_endpoint(
                lambda: _Endpoint(self._take_in), sock=sock
            )
            self._transports.append(transport)

    def _drain(self, sock: socket.socket) -> None:
        for _ in range(DRAIN):
            try:
                # One byte more than the largest: what is longer shows, and costs no memory.
                payload, source = sock.recvfrom(MAX_DATAGRAM + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # it belongs to one datagram
                self._complain("a datagram", "receive", str(error))
                return
            self._take_in(payload, source)

    async def _hear_broker(self, broker: Broker) -> None:
        """Begin to hear, and wait a moment for that. A broker that is away may come."""
        since = None
        if self._resumed is not None or self._settings.start != "now":
            # Older ones would be refused.
            skew = datetime.timedelta(seconds=self._settings.max_skew_s)
            since = datetime.datetime.now(datetime.UTC) - skew
        self._broker = NatsSource(broker, self._take_in_turn, self._warn, since)
        self._begin(self._broker.run())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MEET_S):
                await self._broker.listening.wait()

    async def _take_in_turn(self, payload: bytes, source: Source) -> None:
        """Take in a datagram that can wait, once there is room to verify it."""
        while len(self._intake) >= MAX_UNREAD:  # noqa: ASYNC110 - `_judge` is at work on it
            await asyncio.sleep(0)
        self._take_in(payload[: MAX_DATAGRAM + 1], source)

    def _take_in(self, payload: bytes, source: Sequence[object]) -> None:
        """Screen a datagram, and queue it to be verified where it may be good."""
        self._counts.datagrams += 1
        sender = (str(source[0]), int(str(source[1])))
        try:
            if not payload.startswith(b'{"'):
                self._take_binary(payload, sender)
            elif self._settings.encoding is Encoding.BINARY:
                self._counts.ignored += 1
            elif not self._verifies:
                self._take_unproven(payload, sender)
            else:
                self._screen(payload, sender)
        except DatagramError as error:
            self._refuse(sender, error)
        if self._unproven:
            self._ready.set()

    def _screen(self, payload: bytes, source: Source) -> None:
        try:
            self._verifier.screen(payload, datetime.datetime.now(datetime.UTC))
        except Copy:
            self._counts.duplicates += 1
        except DatagramError as error:
            self._doubt(payload, source, error)
        else:
            if not self._intake.put(payload, source):
                self._counts.dropped += 1
            if not self._judging:
                self._judging = True
                self._loop.call_soon(self._judge)

    def _judge(self) -> None:
        """Verify some of what waits. Sockets have their turn between two calls."""
        for _ in range(VERIFY):
            waiting = self._intake.get()
            if waiting is None:
                break
            payload, source = waiting
            try:
                try:
                    datagram = self._verifier.verify(payload, datetime.datetime.now(datetime.UTC))
                    self._hear(datagram, source)
                except DatagramError as error:
                    self._doubt(payload, source, error)
            except Copy:
                self._counts.duplicates += 1
            except DatagramError as error:
                self._refuse(source, error)
        self._judging = len(self._intake) > 0
        if self._judging:
            self._loop.call_soon(self._judge)
        self._ready.set()

    def _doubt(self, payload: bytes, source: Source, error: DatagramError) -> None:
        """What does not prove itself: ask about its key, show it if that is wanted, or refuse."""
        if error.reason == "unknown-kid" and self._server is not None:
            self._refresh.want(self._loop.time())
            self._stir.set()
        if not (self._settings.insecure and error.reason in UNPROVEN):
            raise error
        self._take_unproven(payload, source)
        self._ready.set()

    def _take_binary(self, payload: bytes, source: Source) -> None:
        # Who asks for the binary format, and nothing else, knows that it proves nothing.
        if self._settings.insecure or self._settings.encoding is Encoding.BINARY:
            self._take_unproven(payload, source)
            return
        if self._settings.encoding is Encoding.JSON:
            self._counts.ignored += 1
            return
        decode_binary(payload)  # tells what is no datagram at all
        self._counts.refused["binary"] += 1
        if not self._warned_of_binary:
            self._warned_of_binary = True
            self._warn(
                "datagrams of the binary format are not signed: they are counted, and shown only "
                "with --encoding binary or --insecure"
            )

    def _take_unproven(self, payload: bytes, source: Source) -> None:
        for update in self._receiver.receive(payload):
            if len(self._unproven) < MAX_UNPROVEN:
                self._unproven.append(Update(update, source, verified=False))
            else:
                self._counts.dropped += 1

    def _refuse(self, source: Source, error: DatagramError) -> None:
        self._counts.refused[error.reason] += 1
        self._complain(f"a datagram from {source[0]}", error.reason, str(error))

    def _complain(self, subject: str, reason: str, sentence: str) -> None:
        withheld = self._complaints.allow((subject, reason), self._loop.time())
        if withheld is None:
            return
        more = f" ({withheld} more like it before)" if withheld else ""
        dropped = "dropped " if subject.startswith("a datagram") else ""
        self._warn(f"{dropped}{subject}: {sentence}{more}")

    # ---------------------------------------------------------------------------------- ordering

    def _hear(self, datagram: Datagram, source: Source) -> None:
        now = self._heard_at = self._loop.time()
        log_id = datagram.log_id
        first = min((event.seq for event in datagram.updates), default=datagram.head + 1)
        verdict = self._streams.judge(log_id, datagram.sent)
        if verdict is Verdict.UNCONFIRMED:
            if log_id in self._hints or len(self._hints) < MAX_HINTS:
                self._hints[log_id] = min(first, self._hints.get(log_id, first))
            self._refresh.want(now)
            self._stir.set()
            raise DatagramError("log", f"its stream {log_id} is not confirmed by the server")
        if verdict is Verdict.REFUSED:
            raise DatagramError("log", f"its stream {log_id} is not the one that is followed")
        if verdict is Verdict.NEW:
            self._follow_heard(datagram, first, now)
        self._numbers.hear(datagram.head, datagram.updates, source, now)
        if self._numbers.wake_at() is not None:
            self._stir.set()

    def _follow_heard(self, datagram: Datagram, first: int, now: float) -> None:
        """Follow a stream on the word of its announcer, or of the operator who pinned it."""
        before = self._streams.followed
        self._streams.follow(datagram.log_id, datagram.sent)
        if before is not None or self._resumed is not None:
            if before is None and self._resumed is not None:
                if self._resumed.log_id == datagram.log_id:
                    self._numbers.begin(datagram.log_id, self._resumed.seq, datagram.head, now)
                    return
                self._numbers.begin(self._resumed.log_id, self._resumed.seq, 0, now)
            self._warn(f"a new stream begins: {datagram.log_id}")
            self._numbers.restart(datagram.log_id, first - 1, now)
            return
        match self._settings.start:
            case "snapshot" if self._server is not None:
                self._numbers.begin_with_snapshot(datagram.log_id)
                return
            case "now" | "snapshot":
                after = first - 1
            case "start":
                after = 0
            case number:
                after = number - 1
        self._numbers.begin(datagram.log_id, after, datagram.head, now)

    # ------------------------------------------------------------------------------- the server

    async def _meet_server(self) -> None:
        """Learn keys and stream before the first datagram. A server that is away may come."""
        server = self._server
        if server is None:
            if self._verifies:
                self._warn(
                    "without a reader's certificate (--cert, --key) gaps are reported, not repaired"
                )
            return
        try:
            async with asyncio.timeout(MEET_S):
                await self._look_who_announces(server)
                await self._locate(server)
        except TimeoutError:
            self._not_answered(Unreachable(f"No answer from {server.where} yet"))
        except Refused as error:
            if not self._keys.known:
                raise ConfigError(f"{error}: give a reader's certificate with --cert") from error
            self._warn(f"{error}: gaps are reported, not repaired")
            server.close()
            self._server = None
            self._numbers = Numbers(
                repairs=False, chance=random.random, window_s=self._settings.window_s
            )
            self._streams = Streams(pinned=self._settings.log_id)
        except HttpsError as error:
            self._not_answered(error)

    async def _keep_up(self) -> None:
        """Ask the server whatever there is to ask, one thing after the other."""
        while True:
            self._stir.clear()
            now = self._loop.time()
            self._save()
            if self._numbers.expire(now) or (
                self._server is not None and await self._ask(self._server, now)
            ):
                self._ready.set()
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._idle_for(now)):
                    await self._stir.wait()

    def _idle_for(self, now: float) -> float | None:
        moments = [self._numbers.wake_at()]
        if self._server is not None:
            moments.append(self._refresh.due)
            if self._numbers.log_id is None:
                moments.append(self._locating.not_before)
        if self._state is not None:
            moments.append(now + SAVE_INTERVAL_S)
        known = [moment for moment in moments if moment is not None]
        return max(0.0, min(known) - now) if known else None

    async def _ask(self, server: ServerApi, now: float) -> bool:
        """Send the request that is due. False: none is."""
        if now >= self._refresh.due:
            try:
                await self._look_who_announces(server)
            except HttpsError as error:
                self._not_answered(error)
            return True
        if self._numbers.log_id is None:
            if now < self._locating.not_before:
                return False
            try:
                await self._locate(server)
            except HttpsError as error:
                self._not_answered(error)
            return True
        wish = self._numbers.wish(now)
        if wish is None:
            return False
        self._numbers.asking(wish)
        try:
            await self._fetch(server, wish)
        except HttpsError as error:
            self._not_answered(error)
            retry_after_s = error.retry_after_s if isinstance(error, Unreachable) else None
            self._numbers.failed(self._loop.time(), retry_after_s)
        return True

    async def _look_who_announces(self, server: ServerApi) -> None:
        known = set(self._keys.known)
        try:
            log_id, certificates = await server.announcers()
        except HttpsError as error:
            retry_after_s = error.retry_after_s if isinstance(error, Unreachable) else None
            self._refresh.failed(self._loop.time(), retry_after_s)
            raise
        self._trouble = None
        for reason in self._keys.replace_published(certificates):
            self._complain("an announcer of the server", reason, f"refused: {reason}")
        moved = (
            self._numbers.log_id is not None
            and self._streams.allows(log_id)
            and self._follow_confirmed(log_id)
        )
        changed = moved or set(self._keys.known) != known
        self._refresh.answered(self._loop.time(), changed=changed)

    async def _locate(self, server: ServerApi) -> None:
        """Learn the stream and its head, and begin where the settings or the state say."""
        try:
            page = await server.users(None, 1)
        except HttpsError as error:
            retry_after_s = error.retry_after_s if isinstance(error, Unreachable) else None
            self._locating.failed(self._loop.time(), retry_after_s)
            raise
        self._trouble = None
        now = self._loop.time()
        if self._numbers.log_id is not None:
            return  # a datagram of the pinned stream was faster
        if not self._streams.allows(page.log_id):
            self._locating.failed(now)
            self._complain("the server", "log", f"its stream is {page.log_id}, not the pinned")
            return
        self._streams.follow(page.log_id)
        if self._resumed is not None:
            self._numbers.begin(self._resumed.log_id, self._resumed.seq, page.head, now)
            if self._resumed.log_id != page.log_id or self._resumed.seq > page.head:
                self._numbers.restart(page.log_id, 0, now)
            return
        match self._settings.start:
            case "snapshot":
                self._hints.clear()
                self._numbers.begin_with_snapshot(page.log_id)
                return
            case "now":
                after = min(page.head, self._hints.get(page.log_id, page.head + 1) - 1)
            case "start":
                after = 0
            case number:
                after = number - 1
        self._hints.clear()
        self._numbers.begin(page.log_id, after, page.head, now)

    async def _fetch(self, server: ServerApi, wish: Fetch) -> None:
        match wish:
            case FetchEvents(after, limit):
                try:
                    events = await server.events(after, limit)
                except Gone as error:
                    self._warn(f"{error}: updates are missing, a snapshot follows")
                    self._numbers.gone(wish)
                    return
                self._trouble = None
                if self._follow_confirmed(events.log_id):
                    return
                if not self._numbers.page(wish, events, self._loop.time()):
                    self._not_answered(
                        Unreachable(f"{server.where} does not have event {after + 1} yet")
                    )
            case FetchUsers(path):
                users = await server.users(path, PAGE)
                self._trouble = None
                if not self._follow_confirmed(users.log_id):
                    self._numbers.users(wish, users, users.following, self._loop.time())

    def _follow_confirmed(self, log_id: uuid.UUID) -> bool:
        """Follow the stream that the server names. True: it is another one than before."""
        if log_id == self._streams.followed:
            return False
        if not self._streams.allows(log_id):
            raise Unreachable(f"its stream is now {log_id}, not the pinned one")
        self._warn(f"a new stream begins: {log_id}")
        self._streams.follow(log_id)
        self._numbers.restart(log_id, 0, self._loop.time())
        return True

    def _not_answered(self, error: HttpsError) -> None:
        self._trouble = str(error)
        self._complain("the server", str(error), str(error))

    # ------------------------------------------------------------------------------- interfaces

    async def _rejoin(self, ears: Sockets) -> None:
        while True:
            await asyncio.sleep(REJOIN_S)
            for change in ears.rejoin():
                self._warn(change)


class _Endpoint(asyncio.DatagramProtocol):
    def __init__(self, take_in: Callable[[bytes, Sequence[object]], None]) -> None:
        self._take_in = take_in

    def datagram_received(self, payload: bytes, source: tuple[object, ...]) -> None:
        self._take_in(payload, source)
