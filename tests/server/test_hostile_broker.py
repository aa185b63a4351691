"""A NATS broker that sends what it likes takes neither the memory of a listener nor of a server."""

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc
from collections.abc import Callable

import pytest

from listeners.events import Source
from listeners.receive.nats_source import NatsSource
from tests.support.harness import PATIENCE_S, StartServer, wait_until
from tests.support.hostile_broker import (
    ENOUGH,
    KERNEL,
    Attack,
    HostileBroker,
    endless_line,
    huge_headers,
    huge_message,
    other_brokers,
)
from tests.support.listening import Listening
from tornado_status.wire import nats_client
from tornado_status.wire.nats_broker import Broker
from tornado_status.wire.nats_connection import connected

UNLIMITED = 1 << 60
REASONS: dict[Attack, str] = {
    huge_message: "the broker sent a message of more than 1048576 bytes",
    endless_line: "the broker sent a line of more than 65536 bytes",
}
closed_at_a_limit = pytest.mark.parametrize("attack", REASONS)


def receive(broker: HostileBroker, until: Callable[[list[str]], bool]) -> list[str]:
    """Subscribe until that is so, and return what is warned of. No message is ever worked off."""
    warnings: list[str] = []

    async def hold(payload: bytes, source: Source) -> None:
        await asyncio.Event().wait()

    async def run() -> None:
        source = NatsSource(Broker((broker.url,)), hold, warnings.append, None)
        task = asyncio.create_task(source.run())
        async with asyncio.timeout(PATIENCE_S):
            while not until(warnings):  # noqa: ASYNC110 - a thread ends it
                await asyncio.sleep(0.01)
        source.stop()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())
    return warnings


@closed_at_a_limit
def test_a_listener_closes_at_the_limit(attack: Attack) -> None:
    with HostileBroker(attack) as broker:
        warnings = receive(broker, lambda warnings: bool(warnings and broker.sent))
    assert warnings == [f"{broker.url}: {REASONS[attack]}; trying again"]
    assert max(broker.sent) < KERNEL


def test_without_the_limit_it_takes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_client, "MAX_MESSAGE_BYTES", UNLIMITED)
    with HostileBroker(huge_message) as broker:
        receive(broker, lambda warnings: bool(broker.sent))
    assert max(broker.sent) >= ENOUGH


@pytest.mark.parametrize("limited", [True, False], ids=["limited", "unlimited"])
def test_headers_of_messages_that_wait_are_not_kept(
    limited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not limited:
        monkeypatch.setattr(nats_client, "MAX_BESIDE_PAYLOAD_BYTES", UNLIMITED)
    kept = 0

    def complete(warnings: list[str]) -> bool:
        nonlocal kept
        kept = max(kept, tracemalloc.get_traced_memory()[0])
        return bool(broker.sent)

    tracemalloc.start()
    try:
        with HostileBroker(huge_headers, subject=b"status") as broker:
            receive(broker, complete)
    finally:
        tracemalloc.stop()
    assert max(broker.sent) >= ENOUGH
    assert (kept < KERNEL) == limited, kept


@pytest.mark.parametrize("limited", [True, False], ids=["limited", "unlimited"])
def test_a_broker_names_no_other_broker(limited: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not limited:
        monkeypatch.delattr(nats_client.BoundedClient, "_process_info")

    async def discovered(broker: HostileBroker) -> int:
        async with connected(Broker((broker.url,)), "test") as connection:
            subscription = await connection.client.subscribe("status")
            await subscription.next_msg(PATIENCE_S)
            return len(connection.client.discovered_servers)

    with HostileBroker(other_brokers) as broker:
        assert asyncio.run(discovered(broker)) == (0 if limited else 1)


@closed_at_a_limit
def test_a_server_closes_at_the_limit(attack: Attack, start_server: StartServer) -> None:
    with HostileBroker(attack) as broker:
        server = start_server(announce={"targets": [{"kind": "nats", "address": broker.url}]})
        event = server.wait_event("cannot announce, trying again")
        assert event["reason"] == f"{broker.url}: {REASONS[attack]}"
        assert server.request("POST", "/api/client").status == 204
        assert server.stop() == 0
    assert max(broker.sent) < KERNEL


def test_the_program_says_why(start_server: StartServer) -> None:
    with HostileBroker(huge_message) as broker:
        with Listening("--nats", broker.url, "--insecure", "--cert", "", "--announcer", "") as it:
            it.says(REASONS[huge_message])
            wait_until(lambda: bool(broker.sent), "the broker to be cut off")
        assert max(broker.sent) < KERNEL
