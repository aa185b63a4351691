"""Requests to the server: its announcers, its log, and the events that are missing."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable

from clients.https import HttpsError, Refused, Unreachable
from listeners.operator_warnings import OperatorWarnings
from listeners.order.log_follower import LogFollower
from listeners.order.retry_timer import RetryTimer
from listeners.order.sequence import PAGE, Fetch, FetchEvents, FetchUsers
from listeners.repair.key_refresh import KeyRefresh
from listeners.repair.server_api import Gone, ServerApi
from listeners.verify.known_announcers import KnownAnnouncers
from tornado_status.model.presence import PresenceTimes
from tornado_status.wire.sealed_datagram import Opener

FIRST_ANSWER_S = 5.0  # how long a server may delay the first datagram


class Repair:
    """Keeps `keys`, those of `opener` and the log of `follower` complete. Close it.

    It sends one request at a time.

    `clock` is the event loop's. `failure` is why the last request got no answer, else None.
    `presence` is as the server last said, None before its first answer.
    """

    def __init__(
        self,
        server: ServerApi,
        keys: KnownAnnouncers,
        opener: Opener,
        on_new_group_key: Callable[[], None],
        follower: LogFollower,
        warnings: OperatorWarnings,
        clock: Callable[[], float],
    ) -> None:
        self.failure: str | None = None
        self.presence: PresenceTimes | None = None
        self._server = server
        self._keys = keys
        self._opener = opener
        self._on_new_group_key = on_new_group_key
        self._follower = follower
        self._warnings = warnings
        self._clock = clock
        self._log_unknown = False
        self._refresh = KeyRefresh(random.random)
        self._locating = RetryTimer(random.random)

    def close(self) -> None:
        """Close the connection to the server."""
        self._server.close()

    def want_log(self) -> None:
        """Ask soon which log is right: a verified datagram is of one that is not confirmed."""
        self._log_unknown = True
        self.want_keys()

    def want_keys(self) -> None:
        """Ask soon who announces, and with which keys: a datagram's key or log is unknown."""
        self._refresh.want(self._clock())

    async def start(self) -> None:
        """Learn keys and log before the first datagram, if the server answers soon.

        Raises `Refused`. A server that does not answer is asked again later.
        """
        try:
            async with asyncio.timeout(FIRST_ANSWER_S):
                await self._fetch_keys()
                await self._locate_log()
        except TimeoutError:
            self._failed(Unreachable(f"No answer from {self._server.where} yet"))
        except Refused:
            raise
        except HttpsError as error:
            self._failed(error)

    def wake_at(self) -> float:
        """Return when a request may be due that missing events did not cause."""
        if self._follower.sequence.log_id is None:
            return min(self._refresh.due, self._locating.not_before)
        return self._refresh.due

    async def request(self) -> bool:
        """Send the request that is due, and return whether there was one."""
        now = self._clock()
        try:
            if now >= self._refresh.due:
                await self._fetch_keys()
            elif self._follower.sequence.log_id is None:
                if now < self._locating.not_before:
                    return False
                await self._locate_log()
            else:
                return await self._fetch_missing(now)
        except HttpsError as error:
            self._failed(error)
        return True

    async def _fetch_keys(self) -> None:
        known = set(self._keys.known)
        try:
            log_id, certificates = await self._server.announcers()
            group_keys = await self._server.group_keys()
        except HttpsError as error:
            self._refresh.failed(self._clock(), _retry_after_s(error))
            raise
        self._answered()
        for reason in self._keys.replace_published(certificates):
            self._warnings.warn_limited("an announcer of the server", reason, f"refused: {reason}")
        new_key = self._opener.use(group_keys)
        if new_key:
            self._on_new_group_key()
        try:
            moved = (
                self._follower.sequence.log_id is not None
                and self._follower.allows(log_id)
                and await self._is_another_log(log_id)
            )
        except HttpsError as error:
            self._refresh.failed(self._clock(), _retry_after_s(error))
            raise
        changed = new_key or moved or set(self._keys.known) != known
        if self._log_unknown and not moved:
            self._server.ask_next()  # this one may be cut off with an old primary
        self._log_unknown = False
        self._refresh.answered(self._clock(), changed=changed)

    async def _locate_log(self) -> None:
        """Learn the log and its head, and begin to follow it."""
        try:
            page = await self._server.users(None, 1)
        except HttpsError as error:
            self._locating.failed(self._clock(), _retry_after_s(error))
            raise
        self._answered()
        self.presence = page.presence
        if self._follower.sequence.log_id is not None:
            return  # a datagram of the pinned log was faster
        if self._follower.allows(page.log_id):
            try:
                log = await self._server.log()
            except HttpsError as error:
                self._locating.failed(self._clock(), _retry_after_s(error))
                raise
            if log.log_id == page.log_id and self._follower.sequence.log_id is None:
                self._follower.begin_confirmed(log, self._clock())
            return
        self._locating.failed(self._clock())
        self._warnings.warn_limited(
            "the server", "log", f"its log is {page.log_id}, not the pinned one"
        )

    async def _fetch_missing(self, now: float) -> bool:
        sequence = self._follower.sequence
        fetch = sequence.due_fetch(now)
        if fetch is None:
            return False
        sequence.fetch_started(fetch)
        try:
            await self._fetch(fetch)
        except HttpsError as error:
            sequence.fetch_failed(self._clock(), _retry_after_s(error))
            raise
        return True

    async def _fetch(self, fetch: Fetch) -> None:
        sequence = self._follower.sequence
        match fetch:
            case FetchEvents(after, limit):
                try:
                    events = await self._server.events(after, limit)
                except Gone as error:
                    self._warnings.warn(f"{error}: updates are missing, a snapshot follows")
                    sequence.events_gone(fetch)
                    return
                self._answered()
                if not await self._is_another_log(events.log_id) and not sequence.receive_page(
                    fetch, events, self._clock()
                ):
                    self._failed(
                        Unreachable(f"{self._server.where} does not have event {after + 1} yet")
                    )
            case FetchUsers(path):
                users = await self._server.users(path, PAGE)
                self._answered()
                self.presence = users.presence
                if not await self._is_another_log(users.log_id):
                    sequence.receive_users(fetch, users, users.following, self._clock())

    async def _is_another_log(self, log_id: uuid.UUID) -> bool:
        """Follow the log of an answer, and return whether it is another one than before."""
        if self._follower.follows(log_id):
            return False
        log = await self._server.log()
        if self._follower.follows(log.log_id):
            return True  # the answer was of a log that has gone on since
        if not self._follower.allows(log.log_id):
            raise Unreachable(f"its log is now {log.log_id}, not the pinned one")
        if self._follower.is_behind(log.log_id, self._clock()):
            self._server.ask_next()
            raise Unreachable(f"{self._server.where} does not know yet that its log has gone on")
        self._follower.follow_confirmed(log, self._clock())
        return True

    def _answered(self) -> None:
        self.failure = None
        self._follower.take_up_repairs()

    def _failed(self, error: HttpsError) -> None:
        self.failure = str(error)
        self._warnings.warn_limited("the server", str(error), str(error))


def _retry_after_s(error: HttpsError) -> float | None:
    return error.retry_after_s if isinstance(error, Unreachable) else None
