"""The servers' API over HTTPS: events, the records of all users, and announcer certificates.

The servers share one log, so any of them will do. One daemon thread for all requests, so that a
blocking call never stops the loop. For the errors see `clients.https`; `Gone` is added here.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import queue
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from clients.https import (
    NOT_NOW,
    Answer,
    HttpsClient,
    HttpsError,
    Refused,
    SetUpError,
    Unreachable,
    parse_url,
)
from listeners.repair import api_responses
from tornado_status.errors import ConfigError
from tornado_status.model.records import EventPage, LogSpan, UserPage
from tornado_status.wire.sealed_datagram import EpochSecret

T = TypeVar("T")

TIMEOUT_S = 10.0  # for a connection, a handshake, the next part of an answer
ANSWER_TIMEOUT_S = 60.0  # for a whole answer, however slowly it arrives
MAX_BODY = 2 * 1024 * 1024  # four times the largest page that is asked for

_HEADERS = {"Accept": "application/json"}


class Gone(HttpsError):
    """The server does not keep the events that were asked for (410)."""


class _Server:
    """One server. `https` keeps a connection to it."""

    def __init__(self, url: str, certificate: Path, private_key: Path, ca: Path) -> None:
        try:
            target = parse_url(url)
        except SetUpError as error:
            raise _wrong_url(url) from error
        if "?" in target.path:
            raise _wrong_url(url)
        self.where = str(target)
        self._prefix = target.path.rstrip("/")
        self.https = HttpsClient(
            target,
            certificate=certificate,
            private_key=private_key,
            ca=ca,
            timeout_s=TIMEOUT_S,
            max_body=MAX_BODY,
        )
        try:
            self.https.load_context()
        except SetUpError as error:
            raise ConfigError(str(error)) from error

    def get(self, path: str, parse: Callable[[bytes], T]) -> T:
        """Return the parsed answer. Raises `HttpsError`."""
        try:
            return parse(self._fetch(path))
        except api_responses.AnswerError as wrong:
            raise Unreachable(f"{self.where} gave a wrong answer: {wrong}") from wrong
        except SetUpError as wrong:  # a file that is being renewed right now
            raise Unreachable(str(wrong)) from wrong

    def _fetch(self, path: str) -> bytes:
        answer = self.https.request("GET", self._prefix + path, _HEADERS)
        if not answer.whole:
            raise Unreachable(f"{self.where} gave an answer of more than {MAX_BODY} bytes")
        if answer.status == http.HTTPStatus.OK:
            return answer.body
        raise _failure(answer, self.where)


class ServerApi:
    """Sends one request at a time, to the server that answered last. Close it.

    A server that gives no answer, or refuses, gives its place to the next one. `certificate` and
    `private_key` are a reader's, `ca` is what a server's certificate must chain to, all PEM files.
    Each new connection reads them, so they can be renewed. Raises `ConfigError` for a URL or a file
    that cannot be right.
    """

    def __init__(self, urls: Sequence[str], certificate: Path, private_key: Path, ca: Path) -> None:
        self._servers = [_Server(url, certificate, private_key, ca) for url in urls]
        self._first = 0  # the one to ask first
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def where(self) -> str:
        """The server that is asked first."""
        return self._servers[self._first].where

    def ask_next(self) -> None:
        """Ask another server from now on, if there is one. Call it between two requests."""
        self._first = (self._first + 1) % len(self._servers)

    async def announcers(self) -> tuple[uuid.UUID, list[str]]:
        """Return the log id and the announcers' certificates (PEM)."""
        return await self._get("/api/announcers", api_responses.announcers)

    async def group_keys(self) -> list[EpochSecret]:
        """Return the keys of sealed announcements."""
        return await self._get("/api/group-keys", api_responses.group_keys)

    async def log(self) -> LogSpan:
        """Return the log, with the logs that it goes on from."""
        return await self._get("/api/log", api_responses.log)

    async def events(self, after: int, limit: int) -> EventPage:
        """Return a page of the log. Raises `Gone` if the server does not keep it."""
        path = f"/api/events?after={after}&limit={limit}"
        return await self._get(path, lambda body: api_responses.events(body, after))

    async def users(self, path: str | None, limit: int) -> UserPage:
        """Return a page of records: the one at `path`, or the first."""
        return await self._get(path or f"/api/users?limit={limit}", api_responses.users)

    def close(self) -> None:
        """Close the connections; a request under way fails."""
        self._jobs.put(None)
        self._interrupt()

    # ------------------------------------------------------------------------- on the event loop

    async def _get(self, path: str, parse: Callable[[bytes], T]) -> T:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type] # a result if there is no error

        def job() -> None:
            result, error = None, None
            try:
                result = self._ask(lambda server: server.get(path, parse), answer.done)
            except Exception as problem:  # raised again on the loop's side
                error = problem
            with contextlib.suppress(RuntimeError):  # the loop has ended in the meantime
                loop.call_soon_threadsafe(settle, result, error)

        if self._thread is None:
            # A daemon: nothing can interrupt a name lookup, and the process must end without it.
            self._thread = threading.Thread(target=self._work, name="repair", daemon=True)
            self._thread.start()
        self._jobs.put(job)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await answer
        except TimeoutError:
            self._interrupt()
            raise Unreachable(
                f"No whole answer from {self.where} within {ANSWER_TIMEOUT_S:g} seconds"
            ) from None

    # ------------------------------------------------------------------------------ in the thread

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
        for server in self._servers:
            server.https.close()

    def _ask(self, get: Callable[[_Server], T], given_up: Callable[[], bool]) -> T:
        """Return the first answer of a server. Raises the reasons of all."""
        failed: list[Refused | Unreachable] = []
        for _ in self._servers:
            try:
                return get(self._servers[self._first])
            except (Refused, Unreachable) as error:
                failed.append(error)
            self.ask_next()
            if given_up():
                break
        reasons = dict.fromkeys(str(error) for error in failed)
        if len(reasons) == 1 or all(isinstance(error, Refused) for error in failed):
            raise failed[0]
        waits = (error.retry_after_s for error in failed if isinstance(error, Unreachable))
        raise Unreachable("; ".join(reasons), max((wait for wait in waits if wait), default=None))

    def _interrupt(self) -> None:
        for server in self._servers:
            server.https.interrupt()


def _wrong_url(url: str) -> ConfigError:
    return ConfigError(f"--url: expected https://HOST[:PORT], got {url!a}")


def _failure(answer: Answer, where: str) -> HttpsError:
    """Return what an answer other than 200 means."""
    status = answer.status
    sentence = f"{where} answered {status}{f': {answer.detail}' if answer.detail else ''}"
    if status == http.HTTPStatus.GONE:
        return Gone(sentence)
    if status in NOT_NOW or not 400 <= status < 500:
        return Unreachable(sentence, answer.retry_after_s)
    return Refused(sentence, status)
