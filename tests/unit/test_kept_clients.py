"""A check-in over a kept connection leaves handshakes to threads for a while."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import pytest

from tests.support.raw_http import PLAIN
from tornado_status.ingress import check_in_service
from tornado_status.ingress.check_in_service import Answers, CheckInService
from tornado_status.ingress.connection import CheckInConnection
from tornado_status.ingress.identity_shares import Share
from tornado_status.ingress.peer_stream import CheckInStream
from tornado_status.ingress.refusals import Refusals
from tornado_status.model.records import CheckIn
from tornado_status.runtime.http_timeouts import HttpTimeouts

PATIENCE_S = 10
LONG_S = 10.0  # the machine runs for longer


class _Trust:
    """Accepts every certificate."""

    def check(self, auth: object, now: float) -> None:
        return None

    def chain_holds(self, auth: object) -> bool:
        return True


@pytest.mark.parametrize("kept_s", [LONG_S, 0])
def test_only_a_second_check_in_is_of_a_kept_client(
    kept_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no time to keep it in mind it is forgotten at once."""
    monkeypatch.setattr(check_in_service, "KEPT_S", kept_s)

    async def run() -> list[bool]:
        submitted = asyncio.Semaphore(0)
        ours, theirs = socket.socketpair()
        service = CheckInService(
            lambda check_in, done: submitted.release(),
            Answers(lambda error: b""),
            cast(Any, None),
            HttpTimeouts(60, 60, lambda: b""),
            cast(Any, _Trust()),
            None,
            Refusals(),
        )
        check_in = CheckIn("ada@example.com", "127.0.0.1", 1, "CN=ca", "01")
        connection = CheckInConnection(
            service, CheckInStream(ours), ("127.0.0.1", 1), check_in, cast(Any, None), Share()
        )
        connection.start()
        seen = [service.has_kept_clients()]
        for _ in range(2):
            theirs.send(PLAIN)
            await asyncio.wait_for(submitted.acquire(), PATIENCE_S)
            seen.append(service.has_kept_clients())
        service.close()
        theirs.close()
        return seen

    assert asyncio.run(run()) == [False, False, kept_s > 0]
