"""Readers with too many live streams, and readers that do not read theirs."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.support.attackers import attacking
from tests.support.harness import StartServer, wait_until
from tests.support.hostile_clients import get, memory, read_nothing, subscribe
from tests.support.log_events import fill
from tests.support.metrics import metric
from tests.support.population import StartPopulation, as_shipped
from tests.support.with_constants import MAX_PER_READER, MAX_UNREAD_BYTES, REST_FACTOR, SLICE_S
from tornado_status.api.live import subscription_limit

pytestmark = pytest.mark.once

STREAMS = 600
COSTLY = "&".join(f"email={quote(f'*[ -~]*[ -~]*{n}')}" for n in range(19))
BURST = 10_000  # events, on another server, of as many users
LONG = "a" * 60 + ".a" * 90  # the beginning of their addresses
SILENT = 40  # streams that are not read
EVENTS = 60_000
MEMORY_ALLOWED = 100_000_000  # bytes: of the process and of the kernel together
UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


@pytest.mark.parametrize("limited", [True, False], ids=["limited", "unlimited"])
def test_a_reader_with_costly_streams(
    start_server: StartServer, start_population: StartPopulation, limited: bool
) -> None:
    """It asks for 600, with 20 terms each that are slow to match.

    Without the limit all are open. A fast machine serves the honest even then.
    """
    streams = subscription_limit.MAX_PER_READER if limited else STREAMS
    constants = {} if limited else {MAX_PER_READER: STREAMS, SLICE_S: 3600, REST_FACTOR: 0}
    more = {} if limited else {"max_connections_per_identity": 0}
    server = start_server(constants=constants, **as_shipped(**more))
    honest = start_population(server)
    requests = [get(f"/api/stream?{COSTLY}&email=user{n}@example.com") for n in range(STREAMS)]
    with attacking(subscribe, server.port, server.certs, "operator", requests):
        wait_until(lambda: metric(server, "streams") == streams, "the streams")
        fill(server, BURST, LONG)
        complaints = honest.complaints()
    if limited:
        assert complaints == []


@pytest.mark.parametrize("limited", [True, False], ids=["limited", "unlimited"])
def test_a_reader_that_does_not_read_its_streams(
    start_server: StartServer, start_population: StartPopulation, limited: bool
) -> None:
    """Half of them over WebSocket. Each selects something else: they share no bytes."""
    constants = {} if limited else {MAX_UNREAD_BYTES: 1_000_000_000}
    server = start_server(constants=constants, **as_shipped())
    honest = start_population(server)
    before = memory(server)
    requests = [
        get(f"/api/{kind}?email=user*&email={n}@example.com", *headers)
        for n in range(SILENT // 2)
        for kind, headers in (("stream", ()), ("socket", UPGRADE))
    ]
    with attacking(read_nothing, server.port, server.certs, "operator", requests):
        wait_until(lambda: metric(server, "streams") == SILENT, "the streams")
        fill(server, EVENTS)
        complaints = honest.complaints()
        grown = memory(server) - before
    assert complaints == []
    assert (grown < MEMORY_ALLOWED) == limited, grown
