"""The threads that make the steps of a TLS handshake, and a time-out that comes during one."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from tests.support.harness import PATIENCE_S
from tornado_status.ingress import handshake
from tornado_status.ingress.handshake import MAX_STEP_BYTES, Handshake, HandshakeSteps

MANY = 50


class _Acceptor:
    """Notes how a handshake ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def failed(self, secure: object, address: object, error: OSError) -> None:
        self.ended.append(type(error).__name__)

    def dropped(self, secure: object, address: object) -> None:
        self.ended.append("dropped")


class _Steps:
    """Takes steps and finishes none: the test does."""

    def step(self, handshake: Handshake) -> None:
        pass


@pytest.mark.parametrize(("end", "expected"), [("expire", "TimeoutError"), ("abandon", "dropped")])
def test_an_end_during_a_step_is_reported_after_it(end: str, expected: str) -> None:
    """A time-out is counted as one, and the socket is left alone until the thread returns it."""

    async def run() -> tuple[list[str], list[str]]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            secure = context.wrap_socket(ours, server_side=True, do_handshake_on_connect=False)
            acceptor = _Acceptor()
            handshake = Handshake(
                cast(Any, acceptor),
                cast(Any, _Steps()),
                asyncio.get_running_loop(),
                secure,
                ("127.0.0.1", 1),
                timeout_s=60,
                bundle=1,
            )
            handshake.abandon() if end == "abandon" else handshake.expire()
            during = list(acceptor.ended)
            handshake.stepped(ssl.SSLWantReadError())
            secure.close()
            return during, acceptor.ended

    assert asyncio.run(run()) == ([], [expected])


class _Secure(socket.socket):
    """Notes which thread makes its steps. Each step fails."""

    made_in: int | None = None

    def do_handshake(self) -> None:
        self.made_in = threading.get_ident()
        raise ssl.SSLWantReadError


class _Handshake:
    """Notes the errors of its steps, and in which thread it was told."""

    def __init__(self, unread: int = 0) -> None:
        ours, self._theirs = socket.socketpair()
        self._theirs.sendall(bytes(unread))
        self.secure = _Secure(fileno=ours.detach())
        self.told: list[tuple[type[BaseException] | None, int]] = []
        self.on_stepped: Callable[[], None] = lambda: None

    def stepped(self, error: BaseException | None) -> None:
        self.told.append((None if error is None else type(error), threading.get_ident()))
        self.on_stepped()

    def close(self) -> None:
        self.secure.close()
        self._theirs.close()


def make_steps(
    handshakes: list[_Handshake], *, busy: bool = False, close_first: bool = False
) -> list[bool]:
    """Make a step of each; return which of them the loop has made.

    With `close_first` the end comes before the loop makes one.
    """

    async def run() -> None:
        steps = HandshakeSteps(asyncio.get_running_loop(), 2, lambda: busy)
        left, all_told = set(handshakes), asyncio.Event()

        def stepped(each: _Handshake) -> None:
            left.discard(each)
            if not left:
                all_told.set()

        for each in handshakes:
            each.on_stepped = functools.partial(stepped, each)
            steps.step(cast(Any, each))
        if close_first:
            steps.close()
        await asyncio.wait_for(all_told.wait(), PATIENCE_S)
        if not close_first:
            steps.close()

    try:
        asyncio.run(run())
        for each in handshakes:
            assert each.told == [(ssl.SSLWantReadError, threading.get_ident())]
        return [each.secure.made_in == threading.get_ident() for each in handshakes]
    finally:
        for each in handshakes:
            each.close()


@pytest.mark.parametrize("busy", [False, True])
def test_the_loop_makes_steps_unless_it_is_busy(busy: bool) -> None:
    assert make_steps([_Handshake() for _ in range(MANY)], busy=busy)[0] is not busy


def test_a_thread_makes_a_step_of_many_bytes() -> None:
    """They may be thousands of records, which OpenSSL reads in one step."""
    handshakes = [_Handshake(MAX_STEP_BYTES + 1), _Handshake(MAX_STEP_BYTES)]
    assert make_steps(handshakes) == [False, True]


@pytest.mark.parametrize("seconds", [0, 3600])
def test_threads_make_the_steps_that_a_turn_has_no_time_for(
    seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "TURN_S", seconds)
    assert make_steps([_Handshake() for _ in range(MANY)]) == [bool(seconds)] * MANY


def test_a_step_that_follows_one_waits_for_no_other_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a handshake makes room for the next one, which begins at once."""
    monkeypatch.setattr(handshake, "TURN_S", 3600)

    async def run() -> list[int]:
        loop = asyncio.get_running_loop()
        steps = HandshakeSteps(loop, 1, lambda: False)
        first, second = _Handshake(), _Handshake()
        first.on_stepped = lambda: steps.step(cast(Any, second))
        steps.step(cast(Any, first))
        await asyncio.sleep(0)
        told = [len(first.told), len(second.told)]
        steps.close()
        first.close()
        second.close()
        return told

    assert asyncio.run(run()) == [1, 1]


def test_steps_that_wait_at_the_end_are_made() -> None:
    """By the threads before they end, so each handshake is told and closes its socket."""
    handshakes = [_Handshake() for _ in range(MANY)]
    assert make_steps(handshakes, close_first=True) == [False] * MANY
