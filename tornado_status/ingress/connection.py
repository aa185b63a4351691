"""The check-in connection: a small state machine between a TLS stream and the store.

Serves plain check-ins and nothing else. The moment a connection asks for anything else it is
handed, with what was read, to Tornado's ordinary HTTP, for good. Answers keep the order of the
requests: check-ins are committed in order, and whatever is no check-in waits until those before it
are answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from tornado.iostream import StreamClosedError

from tornado_status.errors import (
    IdentityError,
    StatusError,
    StoreError,
    StoreUnavailable,
    TooFrequent,
)
from tornado_status.ingress.fast_path import END_OF_HEAD, MAX_HEAD, PlainHeads
from tornado_status.ingress.handshake import Address
from tornado_status.ingress.iostream import PeerStream, PlainStream
from tornado_status.ingress.refusals import Refusals
from tornado_status.ingress.trust import AuthResult, Trust
from tornado_status.model.records import CheckIn, Event
from tornado_status.runtime.http_timeouts import HttpTimeouts

QUIET_S = 1.0  # before a connection of an old CA bundle is closed: its request may be on the way
MAX_PIPELINED = 64  # unanswered check-ins of one connection; the next ones wait in the socket


CheckInStream = PeerStream | PlainStream


class Recorder(Protocol):
    """The part of the store that a connection needs."""

    def submit(self, check_in: CheckIn, done: Callable[[Event | StoreError], None]) -> None: ...


class Limit(Protocol):
    """How often one identity may check in: `limits.CheckInRateLimit`."""

    def allow(self, email: str, now: float) -> None: ...


class Answers:
    """The bytes of answers. `of_error` makes a whole HTTP answer of an error."""

    def __init__(self, of_error: Callable[[StatusError], bytes]) -> None:
        self.of_error = of_error
        self._second = 0
        self._no_content = b""

    def no_content(self, *, last: bool = False) -> bytes:
        """Return the 204, with the Date of this second; `last` says that we close behind it."""
        now = int(time.time())
        if now != self._second:
            self._second = now
            date = email.utils.formatdate(now, usegmt=True)
            self._no_content = f"HTTP/1.1 204 No Content\r\nDate: {date}\r\n\r\n".encode()
        if last:
            return self._no_content[:-2] + b"Connection: close\r\n\r\n"
        return self._no_content


class CheckInService:
    """What all check-in connections share, and the connections themselves.

    `hand_over` takes a stream, from which nothing seems to have been read, to ordinary HTTP.
    """

    def __init__(
        self,
        recorder: Recorder,
        answers: Answers,
        hand_over: Callable[[CheckInStream, Address], None],
        deadlines: HttpTimeouts,
        trust: Trust,
        limit: Limit | None,
        refusals: Refusals,
    ) -> None:
        self.trust = trust
        self.refusals = refusals
        self.limit = limit
        self.recorder = recorder
        self.answers = answers
        self._hand_over = hand_over
        self.heads = PlainHeads()
        self.draining = False
        self.connections: set[CheckInConnection] = set()
        self._ordinary: weakref.WeakSet[CheckInStream] = weakref.WeakSet()  # handed over
        self.deadlines = deadlines
        self._sweep_every_s = min(deadlines.idle_s / 4, deadlines.head_s / 4, 1.0)
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time()  # both to a second: see _sweep
        self.epoch = time.time()
        self._sweeping = self._loop.call_soon(self._sweep)

    def serve(self, stream: PeerStream, address: Address) -> None:
        """Take a connection whose handshake is done."""
        check_in, standing = stream.peer.check_in, stream.standing
        if check_in is None or standing is None:
            self.hand_over(stream, address)  # it will be told why
        else:
            CheckInConnection(self, stream, address, check_in, standing).start()

    def hand_over(self, stream: CheckInStream, address: Address) -> None:
        """Take a connection to ordinary HTTP, for good."""
        self._ordinary.add(stream)
        stream.deadlines = self.deadlines
        self._hand_over(stream, address)

    def drain(self) -> None:
        """Close what is idle now, and everything else once it is answered."""
        self.draining = True
        for connection in list(self.connections):
            connection.close_if_idle()
        for stream in list(self._ordinary):
            if not stream.requests and not stream.writing():
                stream.close()  # what was read but not begun ends here: see `InFlightCounting`

    def close(self) -> None:
        """Close all connections."""
        self._sweeping.cancel()
        for connection in list(self.connections):
            connection.close()

    def _sweep(self) -> None:
        # One timer for all connections: a timer each would cost more than the check-in's parsing.
        self.now, self.epoch = self._loop.time(), time.time()
        for connection in list(self.connections):
            connection.close_if_over(self.now, self.deadlines)
        for stream in list(self._ordinary):
            if stream.closed():
                self._ordinary.discard(stream)
            elif stream.is_stalled(self.now):
                stream.close()
            elif isinstance(stream, PeerStream) and stream.standing is not None:
                if stream.standing.bundle != self.trust.bundle and stream.is_quiet():
                    stream.close()  # let in by CAs that are not in force any more
        self._sweeping = self._loop.call_later(self._sweep_every_s, self._sweep)


class CheckInConnection:
    """One connection of one identity."""

    __slots__ = (
        "_address",
        "_blocked",
        "_check_in",
        "_head_begun",
        "_held",
        "_last_active",
        "_partial",
        "_service",
        "_standing",
        "_stream",
        "_unanswered",
    )

    max_head = MAX_HEAD

    def __init__(
        self,
        service: CheckInService,
        stream: CheckInStream,
        address: Address,
        check_in: CheckIn,
        standing: AuthResult,
    ) -> None:
        self._service = service
        self._stream = stream
        self._address = address
        self._check_in = check_in
        self._standing = standing
        self._partial = b""  # the beginning of a head, its end still on the way
        self._head_begun: float | None = None  # the loop's time, where the head came in pieces
        self._held = b""  # read, and waiting until what came before it is answered
        self._unanswered = 0
        self._blocked = False  # an answer is on its way, and its reader does not take it
        self._last_active = service.now

    def start(self) -> None:
        self._service.connections.add(self)
        self._read()

    def close(self) -> None:
        self._service.connections.discard(self)
        self._stream.close()

    def close_if_idle(self) -> None:
        """Close unless something is unanswered; then the last answer closes."""
        if not self._unanswered and not self._held and not self._blocked:
            self.close()

    def close_if_over(self, now: float, deadlines: HttpTimeouts) -> None:
        """Close where nothing has happened for too long, a head takes too long, or the CAs have
        changed and all is said.

        `now` is the loop's time.
        """
        if self._head_begun is not None and now - self._head_begun > deadlines.head_s:
            self._end_late(deadlines)
        elif self._head_begun is None and now - self._last_active > deadlines.idle_s:
            self.close()
        elif self._is_last() and now - self._last_active > QUIET_S:
            self.close_if_idle()

    def _end_late(self, deadlines: HttpTimeouts) -> None:
        if self._unanswered:
            return  # until they are: the commit's timeout bounds it, and then we come again
        if not self._blocked:
            with contextlib.suppress(StreamClosedError, OSError):
                self._stream.reply(deadlines.late())
        self.close()

    def _read(self) -> None:
        self._stream.receive(self._on_data)

    def _on_data(self, data: bytes) -> None:
        if not data:
            self.close()
            return
        if self._partial:
            data, self._partial = self._partial + data, b""
        if data in self._service.heads.known:
            self._take(data, b"")
        else:
            self._process(data)

    def _process(self, data: bytes) -> None:
        """Take the plain check-ins at the front of `data`, hold or hand over the rest."""
        while data:
            end = END_OF_HEAD.search(data)
            if not end and len(data) < self.max_head:
                self._partial = data
                # Empty lines before a head are no part of it (RFC 9112, 2.2).
                if self._head_begun is None and data.strip(b"\r\n"):
                    self._head_begun = asyncio.get_running_loop().time()
                self._read()
                return
            head = data[: end.end()] if end else b""
            if not end or not self._is_plain(head):
                if end:
                    self._head_begun = None
                if self._unanswered or self._blocked:
                    self._held = data
                else:
                    self._hand_over(data)
                return
            rest = data[end.end() :]
            if not self._take(head, rest):
                return
            data = rest

    def _is_plain(self, head: bytes) -> bool:
        return self._service.heads.is_plain(head)

    def _take(self, head: bytes, rest: bytes) -> bool:
        """Submit one check-in; then read on, unless `rest` is to be processed first.

        False where the check-in, with `rest`, waits for those before it.
        """
        self._head_begun = None
        if self._unanswered >= MAX_PIPELINED or self._blocked:
            # Pipelined without end, or the answers are not read: so do not read either.
            self._held = head + rest
            return False
        service, standing = self._service, self._standing
        if standing.generation != service.trust.generation or service.epoch > standing.valid_until:
            refusal = service.trust.renew(standing)
            if refusal is not None:
                if self._unanswered:
                    self._held = head + rest
                else:
                    self._refuse(refusal)
                return False
        try:
            if service.limit is not None:
                service.limit.allow(self._check_in.email, time.monotonic())
            service.recorder.submit(self._check_in, self._answer)
        except (StoreUnavailable, TooFrequent) as error:
            if self._unanswered:
                self._held = head + rest
                return False
            self._write(self._service.answers.of_error(error))
        else:
            self._unanswered += 1
        self._last_active = self._service.now
        if not rest:
            self._read()
        return True

    def _refuse(self, refusal: IdentityError) -> None:
        """Say why, and close: what was a good certificate is none any more."""
        check_in = self._check_in
        self._service.refusals.on_an_open_connection(refusal, check_in.client_ip, check_in.email)
        try:
            writing = self._stream.reply(self._service.answers.of_error(refusal))
        except (StreamClosedError, OSError):
            self.close()
            return
        if writing is None:
            self.close()
        else:
            writing.add_done_callback(lambda _: self.close())

    def _answer(self, result: Event | StoreError) -> None:
        self._unanswered -= 1
        if isinstance(result, Event):
            last = not self._unanswered and not self._held and self._is_last()
            self._write(self._service.answers.no_content(last=last))
        else:
            self._write(self._service.answers.of_error(result))

    def _write(self, answer: bytes) -> None:
        try:
            writing = self._stream.reply(answer)
        except (StreamClosedError, OSError):
            self.close()
            return
        if writing is not None and not writing.done():
            self._blocked = True
            writing.add_done_callback(self._on_written)
        elif not self._unanswered and (self._held or self._is_last()):
            self._resume()

    def _on_written(self, writing: asyncio.Future[None]) -> None:
        self._blocked = self._stream.writing()
        if writing.cancelled() or writing.exception() is not None:
            self.close()
        elif not self._unanswered and not self._blocked:
            self._resume()

    def _resume(self) -> None:
        held, self._held = self._held, b""
        if held:
            self._process(held)
        elif self._is_last():
            self.close()

    def _is_last(self) -> bool:
        """Say whether the connection ends once it is answered."""
        service = self._service
        return service.draining or self._standing.bundle != service.trust.bundle

    def _hand_over(self, data: bytes) -> None:
        self._service.connections.discard(self)
        self._stream.unread(data)
        self._stream.head_begun = self._head_begun
        self._service.hand_over(self._stream, self._address)
