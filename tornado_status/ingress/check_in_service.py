"""All check-in connections together: what they share, their time-outs and their shutdown."""

from __future__ import annotations

import asyncio
import email.utils
import heapq
import operator
import time
import weakref
from collections import deque
from collections.abc import Callable

from tornado_status.errors import StatusError, StoreError
from tornado_status.ingress.connection import CheckInConnection
from tornado_status.ingress.fast_path import PlainHeads
from tornado_status.ingress.peer_stream import CheckInStream, PeerStream
from tornado_status.ingress.refusals import Refusals
from tornado_status.ingress.trust import Trust
from tornado_status.model.check_in_rate_limit import CheckInRateLimit
from tornado_status.model.records import CheckIn, Event
from tornado_status.runtime.base_acceptor import Address
from tornado_status.runtime.http_timeouts import HttpTimeouts

KEPT_S = 0.05  # after a check-in over a kept connection, the next one is expected for so long
CANDIDATES = 64  # connections that are found at once as those that are idle longest


class Answers:
    """The bytes of answers. `of_error` makes a whole HTTP answer of an error."""

    def __init__(self, of_error: Callable[[StatusError], bytes]) -> None:
        self.of_error = of_error
        self._second = 0
        self._no_content = b""

    def no_content(self, *, last: bool = False) -> bytes:
        """Return the 204, with the Date of this second; `last` says that the connection ends."""
        now = int(time.time())
        if now != self._second:
            self._second = now
            date = email.utils.formatdate(now, usegmt=True)
            self._no_content = f"HTTP/1.1 204 No Content\r\nDate: {date}\r\n\r\n".encode()
        if last:
            return self._no_content[:-2] + b"Connection: close\r\n\r\n"
        return self._no_content


class CheckInService:
    """Holds the check-in connections and what they share.

    `submit` gives a check-in to the store, which calls back once. `hand_over` passes a stream, with
    what was read from it, to ordinary HTTP.
    """

    def __init__(
        self,
        submit: Callable[[CheckIn, Callable[[Event | StoreError], None]], None],
        answers: Answers,
        hand_over: Callable[[CheckInStream, Address], None],
        timeouts: HttpTimeouts,
        trust: Trust,
        limit: CheckInRateLimit | None,
        refusals: Refusals,
    ) -> None:
        self.trust = trust
        self.refusals = refusals
        self.limit = limit
        self.submit = submit
        self.answers = answers
        self._hand_over = hand_over
        self.heads = PlainHeads()
        self.draining = False
        self.connections: set[CheckInConnection] = set()
        self._ordinary: weakref.WeakSet[CheckInStream] = weakref.WeakSet()  # handed over
        self._candidates: deque[tuple[float, CheckInConnection | CheckInStream]] = deque()
        self.timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time()  # both are up to a second old: see _sweep
        self.epoch = time.time()
        self.kept_at = 0.0  # the last check-in that was not its connection's first: time.monotonic
        self._sweeping = self._loop.call_soon(self._sweep)

    def serve(self, stream: PeerStream, address: Address) -> None:
        """Take a connection whose handshake is done."""
        check_in, auth = stream.peer.check_in, stream.auth
        if check_in is None or auth is None:
            self.hand_over(stream, address)  # ordinary HTTP answers with the reason
        else:
            CheckInConnection(self, stream, address, check_in, auth, stream.share).start()

    def has_kept_clients(self) -> bool:
        """Return whether a kept connection has just checked in, and may do so again soon."""
        return time.monotonic() - self.kept_at < KEPT_S

    def hand_over(self, stream: CheckInStream, address: Address) -> None:
        """Pass a connection to ordinary HTTP, for good."""
        self._ordinary.add(stream)
        stream.timeouts = self.timeouts
        self._hand_over(stream, address)

    def drain(self) -> None:
        """Close idle connections now, and all others once they are answered."""
        self.draining = True
        for connection in list(self.connections):
            connection.close_if_idle()
        for stream in list(self._ordinary):
            if not stream.requests and not stream.writing():
                stream.close()  # a request that was read but not begun ends: `InFlightCounting`

    def close_longest_idle(self) -> bool:
        """Close the connection that has been idle longest; return False if none is idle."""
        return self._close_a_candidate() or (self._find_candidates() and self._close_a_candidate())

    def _close_a_candidate(self) -> bool:
        while self._candidates:
            since, connection = self._candidates.popleft()
            if connection.idle_since() == since:
                connection.close()
                return True
        return False

    def _find_candidates(self) -> bool:
        # Several at once: one search among thousands of connections takes milliseconds.
        every: list[CheckInConnection | CheckInStream] = [*self.connections, *self._ordinary]
        idle = [
            (since, connection)
            for connection in every
            if (since := connection.idle_since()) is not None
        ]
        self._candidates.extend(heapq.nsmallest(CANDIDATES, idle, key=operator.itemgetter(0)))
        return bool(idle)

    def close(self) -> None:
        """Close all connections."""
        self._sweeping.cancel()
        for connection in list(self.connections):
            connection.close()

    def _sweep(self) -> None:
        # One timer for all connections: a timer each would cost more than the check-in's parsing.
        self.now, self.epoch = self._loop.time(), time.time()
        for connection in list(self.connections):
            connection.close_if_overdue(self.now)
        for stream in list(self._ordinary):
            stream.close_if_overdue(self.now)
            if stream.closed():
                self._ordinary.discard(stream)
            elif isinstance(stream, PeerStream) and stream.auth is not None:
                if not self.trust.chain_holds(stream.auth) and stream.is_quiet():
                    stream.close()  # accepted under CAs that were replaced
        self._sweeping = self._loop.call_later(self.timeouts.sweep_every_s, self._sweep)
