"""A TLS handshake whose time-out comes while a thread works on it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any, cast

import pytest

from tornado_status.ingress.handshake import Handshake


class _Acceptor:
    """Notes how a handshake ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def failed(self, secure: object, address: object, error: OSError) -> None:
        self.ended.append(type(error).__name__)

    def dropped(self, secure: object, address: object) -> None:
        self.ended.append("dropped")


class _Threads:
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
                cast(Any, _Threads()),
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
