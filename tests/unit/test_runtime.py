"""The small parts of runtime: back-off, bounded caches, waiting, accepting connections."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from tornado_status.runtime.backoff import Backoff
from tornado_status.runtime.base_acceptor import Acceptor
from tornado_status.runtime.bounded_dict import BoundedDict
from tornado_status.runtime.waiting import wait_set


@pytest.mark.parametrize(
    ("share", "expected"), [(1.0, [1, 2, 4, 5, 5]), (0.0, [0.5, 1, 2, 2.5, 2.5])]
)
def test_pauses_double_up_to_the_limit_with_jitter(share: float, expected: list[float]) -> None:
    """Half of a pause is fixed and half is random; after a success they start again."""
    backoff = Backoff(1.0, 5.0, rng=lambda: share)
    assert [backoff.next_s() for _ in expected] == expected
    backoff.reset()
    assert backoff.next_s() == expected[0]


def test_a_bounded_dict_evicts_the_oldest_key() -> None:
    """A new value of a known key evicts nothing."""
    cache: BoundedDict[str, int] = BoundedDict(2)
    for number, key in enumerate("abab"):
        cache[key] = number
    assert cache == {"a": 2, "b": 3}
    cache["c"] = 4
    assert cache == {"b": 3, "c": 4}


def test_waiting_ends_with_the_event_or_the_time_out() -> None:
    async def run() -> tuple[bool, bool]:
        event = asyncio.Event()
        late = await wait_set(event, 0.01)
        asyncio.get_running_loop().call_soon(event.set)
        return late, await wait_set(event, 60)

    assert asyncio.run(run()) == (False, True)


def test_a_full_acceptor_has_one_retry_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is full anew; and none once it has stopped accepting."""
    monkeypatch.setattr("tornado_status.runtime.base_acceptor.RETRY_S", 3600)
    times = 10

    async def run() -> list[int]:
        loop = asyncio.get_running_loop()
        call_later = loop.call_later
        timers: list[asyncio.TimerHandle] = []
        full = asyncio.Event()

        def note(*arguments: Any) -> asyncio.TimerHandle:
            timers.append(call_later(*arguments))
            full.set()
            return timers[-1]

        def pending() -> int:
            return sum(not timer.cancelled() for timer in timers)

        def take(connection: socket.socket, _: object) -> None:
            acceptor.count_open(1)
            connection.close()

        acceptor = Acceptor(1, take, lambda: False)
        monkeypatch.setattr(loop, "call_later", note)
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        address = listening.getsockname()
        clients = [socket.create_connection(address) for _ in range(times + 1)]
        acceptor.listen([listening])
        found = []
        for _ in range(times):
            await full.wait()
            full.clear()
            found.append(pending())
            if len(found) < times:
                acceptor.count_open(-1)
        acceptor.stop_accepting()
        for client in clients:
            client.close()
        return [*found, pending()]

    assert asyncio.run(run()) == [1] * times + [0]
