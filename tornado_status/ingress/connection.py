"""The check-in connection: a small state machine between a TLS stream and the store.

Serves plain check-ins and nothing else. A connection that asks for anything else is handed over,
with what was read, to Tornado's ordinary HTTP, for good. Answers keep the order of the requests:
check-ins are committed in order, and any other request waits until those before it are answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from tornado.iostream import StreamClosedError

from tornado_status.errors import (
    IdentityError,
    Refusal,
    StoreError,
    StoreUnavailable,
    TooFrequent,
)
from tornado_status.ingress.fast_path import END_OF_HEAD, MAX_HEAD
from tornado_status.ingress.identity_shares import Share
from tornado_status.ingress.peer_stream import CheckInStream
from tornado_status.ingress.trust import AuthResult
from tornado_status.model.check_in_rate_limit import REFUSAL_DELAY_S
from tornado_status.model.records import CheckIn, Event
from tornado_status.runtime.base_acceptor import Address

if TYPE_CHECKING:
    from tornado_status.ingress.check_in_service import CheckInService

QUIET_S = 1.0  # before a connection of old CAs is closed: its next request may be on the way


class CheckInConnection:
    """One connection of one identity."""

    __slots__ = (
        "_address",
        "_auth",
        "_blocked",
        "_check_in",
        "_head_begun",
        "_held",
        "_is_kept",
        "_last_active",
        "_partial",
        "_service",
        "_share",
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
        auth: AuthResult,
        share: Share,
    ) -> None:
        self._service = service
        self._stream = stream
        self._address = address
        self._check_in = check_in
        self._auth = auth
        self._share = share
        self._partial = b""  # the beginning of a head, its end still on the way
        self._head_begun: float | None = None  # the loop's time, if the head came in pieces
        self._held = b""  # read, and waiting until the requests before it are answered
        self._unanswered = 0
        self._is_kept = False  # it has checked in
        # Back-pressure: the client does not read an answer, or has checked in too often.
        self._blocked = False
        self._last_active = service.now

    def start(self) -> None:
        self._service.connections.add(self)
        self._stream.serve(self._on_data, self._on_sent)

    def close(self) -> None:
        self._service.connections.discard(self)
        self._stream.close()

    def idle_since(self) -> float | None:
        """Return when the last check-in came, None if something is unanswered.

        Also None once the connection is closed or handed over. In the loop's time.
        """
        if self._unanswered or self._held or self._blocked:
            return None
        return self._last_active if self in self._service.connections else None

    def close_if_idle(self) -> None:
        """Close unless something is unanswered; then the last answer closes."""
        if self.idle_since() is not None:
            self.close()

    def close_if_overdue(self, now: float) -> None:
        """Close after a time-out, or once all is answered if the CAs have changed.

        `now` is the loop's time.
        """
        overdue = self._service.timeouts.overdue(self._last_active, self._head_begun, now)
        if overdue == "head":
            self._end_late()
        elif overdue == "idle":
            self.close()
        elif self._is_last() and now - self._last_active > QUIET_S:
            self.close_if_idle()

    def _end_late(self) -> None:
        if self._unanswered:
            return  # the commit's time-out bounds that, and the next sweep comes here again
        if not self._blocked:
            with contextlib.suppress(StreamClosedError, OSError):
                self._stream.reply(self._service.timeouts.late_answer())
        self.close()

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
                self._stream.receive()
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

        Return False if the check-in, with `rest`, waits for those before it.
        """
        self._head_begun = None
        share = self._share
        if self._blocked or share.is_full():
            self._held = head + rest
            if not self._unanswered and not self._blocked:
                share.waiting.append(self)  # for an answer over another connection
            return False
        service = self._service
        refusal = service.trust.check(self._auth, service.epoch)
        if refusal is not None:
            if self._unanswered:
                self._held = head + rest
            else:
                self._refuse(refusal)
            return False
        try:
            if service.limit is not None:
                service.limit.allow(self._check_in.email, time.monotonic())
            service.submit(self._check_in, self._answer)
        except (StoreUnavailable, TooFrequent) as error:
            if self._unanswered:
                self._held = head + rest
                return False
            if isinstance(error, TooFrequent):
                self._slow_down(error, rest)
                return False
            self._write(service.answers.of_error(error), last=self._is_last())
        else:
            self._unanswered += 1
            share.unanswered += 1
            if self._is_kept:
                service.kept_at = time.monotonic()
            else:
                self._is_kept = True
        self._last_active = service.now
        if not rest:
            self._stream.receive()
        return True

    def _slow_down(self, error: TooFrequent, rest: bytes) -> None:
        """Refuse after a while, and process nothing before: a client that ignores it waits too."""

        def refuse() -> None:
            self._blocked = False
            self._write(self._service.answers.of_error(error), last=self._is_last())

        self._blocked = True
        self._last_active = self._service.now
        asyncio.get_running_loop().call_later(REFUSAL_DELAY_S, refuse)
        if rest:
            self._held = rest
        else:
            self._stream.receive()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer with the reason, and close: the certificate is no longer accepted."""
        check_in = self._check_in
        self._service.refusals.on_an_open_connection(refusal, check_in.client_ip, check_in.email)
        with contextlib.suppress(StreamClosedError, OSError):
            # All of it is sent: the answers before it were.
            self._stream.reply(self._service.answers.of_error(IdentityError(*refusal)))
        self.close()

    def _answer(self, result: Event | StoreError) -> None:
        self._unanswered -= 1
        share = self._share
        last = not self._unanswered and not self._held and self._is_last()
        answers = self._service.answers
        if isinstance(result, Event):
            self._write(answers.no_content(last=last), last=last)
        else:
            self._write(answers.of_error(result), last=last)
        share.answered()

    def _write(self, answer: bytes, *, last: bool) -> None:
        try:
            sent = self._stream.reply(answer)
        except (StreamClosedError, OSError):
            self.close()
            return
        if not sent:
            self._blocked = True
        elif last:
            self.close()
        elif self._held and not self._unanswered:
            self.resume()

    def _on_sent(self) -> None:
        self._blocked = False
        if not self._unanswered:
            self.resume()

    def resume(self) -> None:
        """Go on with what was held, or close if the connection ends."""
        if self not in self._service.connections:
            return
        held, self._held = self._held, b""
        if held:
            self._process(held)
        elif self._is_last():
            self.close()

    def _is_last(self) -> bool:
        """Return whether the connection ends once it is answered."""
        service = self._service
        return service.draining or not service.trust.chain_holds(self._auth)

    def _hand_over(self, data: bytes) -> None:
        self._service.connections.discard(self)
        self._stream.unread(data)
        self._stream.head_begun = self._head_begun
        self._service.hand_over(self._stream, self._address)
