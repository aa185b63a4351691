"""Programs that follow the log over failovers, and what is wrong with what they were told.

There are two listeners, one of which hears datagrams only, and a reader of /api/socket. Of two
readers of /api/stream, one stays, and one comes back with its last id, by turns to each server.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import functools
import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from tests.support.faults.judge import LOG, Row, as_announced
from tests.support.harness import PATIENCE_S, Server, rows, wait_until
from tests.support.listening import Listening, reading, verifying
from tests.support.subscriber import Subscriber

# The members of an event and a rollback; listeners add others.
KNOWN = {"seq", "event", "email", "last_seen", "client_ip", "client_port", "from", "to", "log"}
COME_BACK_AFTER = 50  # messages

Message = dict[str, Any]


class Follower(Protocol):
    """One of them, with all that it was told, in order."""

    name: str

    @property
    def messages(self) -> list[Message]: ...


class Reading(abc.ABC):
    """A thread that collects messages up to the number `last`, once that is known."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.messages: list[Message] = []
        self.last: int | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @abc.abstractmethod
    def _run(self) -> None: ...

    def _add(self, message: Message) -> bool:
        """Return whether to go on."""
        self.messages.append(message)
        return self.last is None or message.get("seq", 0) < self.last

    def end(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), f"{self.name} ends with {self.messages[-1:]}"


class StreamReader(Reading):
    """Reads /api/stream of the first server; with several, comes back to the next one."""

    def __init__(self, name: str, servers: Sequence[Server]) -> None:
        super().__init__(name)
        self._servers = servers
        self._subscriber = Subscriber(servers[0])

    def _run(self) -> None:
        turn = 0
        while True:
            turn += 1
            with self._subscriber as subscriber:
                for number, message in enumerate(iter(subscriber.next_message, None)):
                    if not self._add(message.data):
                        return
                    if len(self._servers) > 1 and number >= COME_BACK_AFTER:
                        break
                else:
                    return  # the server ended it: `end` finds that it is incomplete
            server = self._servers[turn % len(self._servers)]
            self._subscriber = wait_until(
                functools.partial(_come_back, server, subscriber.last_id), "the stream again"
            )


def _come_back(server: Server, last: str) -> Subscriber | None:
    """Return a subscriber; None while the server answers 503."""
    subscriber = Subscriber(server, last=last)
    if subscriber.status == 200:
        return subscriber
    status, _ = subscriber.answer()
    assert status == 503
    return None


class SocketReader(Reading):
    """Reads /api/socket."""

    def __init__(self, name: str, server: Server) -> None:
        super().__init__(name)
        self._server = server

    def _run(self) -> None:
        asyncio.run(self._read())

    async def _read(self) -> None:
        request = HTTPRequest(
            f"wss://localhost:{self._server.port}/api/socket",
            ssl_options=self._server.client_context("operator"),
        )
        connection = await websocket_connect(request)
        while isinstance(message := await connection.read_message(), str):
            if not self._add(json.loads(message)):
                break
        connection.close()


class Listener:
    """A listener, a process of its own."""

    def __init__(self, name: str, listening: Listening) -> None:
        self.name = name
        self._listening = listening

    @property
    def messages(self) -> list[Message]:
        return self._listening.shown


class Followers:
    """All of them, from the log as it is now."""

    def __init__(self, servers: Sequence[Server], port: int) -> None:
        self._servers = servers
        self._port = port
        self._readings: list[Reading] = []
        self._listeners: list[Listener] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[Followers]:
        first = self._servers[0]
        with (
            Listening(*reading(first, port=self._port)) as repairing,
            Listening(*verifying(first.certs, self._port)) as hearing,
        ):
            self._listeners = [
                Listener("listener with repair", repairing),
                Listener("listener by datagrams only", hearing),
            ]
            self._readings = [
                StreamReader("stream", self._servers[:1]),
                StreamReader("stream that comes back", self._servers),
                SocketReader("socket", first),
            ]
            for each in self._readings:
                each.start()
            wait_until(lambda: all(each.messages for each in self._readings), "open streams")
            yield self

    @property
    def all(self) -> list[Follower]:
        return [*self._listeners, *self._readings]

    def wait_for(self, seq: int) -> None:
        """Wait until all have the event `seq`."""
        for each in self.all:
            try:
                wait_until(functools.partial(_has, each, seq), f"event {seq}")
            except AssertionError as error:
                raise AssertionError(f"{error}: the {each.name} has {each.messages[-3:]}") from None

    def end(self, head: int) -> None:
        """Let one more check-in be the last, after `head`."""
        for each in self._readings:
            each.last = head + 1
        assert self._servers[0].request("POST", "/api/client").status == 204
        for each in self._readings:
            each.end()
        self.wait_for(head + 1)


def _has(follower: Follower, seq: int) -> bool:
    return any(message.get("seq") == seq for message in follower.messages[-100:])


def differences(follower: Follower, expected: Sequence[Message]) -> list[str]:
    """Return, in a sentence, at what a follower was first told another thing than `expected`."""
    told = [
        {name: value for name, value in message.items() if name in KNOWN}
        for message in follower.messages
        if message["event"] not in ("position", "snapshot")
    ]
    for number, pair in enumerate(itertools.zip_longest(told, expected)):
        if pair[0] != pair[1]:
            return [
                f"{follower.name}: message {number} of {len(expected)} is {pair[0]}, not {pair[1]}"
            ]
    return []


def log_at(url: str) -> list[Message]:
    """Return the log of a database, from its table, in the form that followers are told."""
    return [as_announced(Row(*row)) for row in rows(url, LOG)]
