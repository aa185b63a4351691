"""Clients that read, and clients that do not read what they have asked for."""

from __future__ import annotations

import pytest

from tests.support.attackers import attacking
from tests.support.harness import StartServer, wait_until
from tests.support.hostile_clients import flood, get, memory, read_nothing
from tests.support.log_events import fill, fill_history
from tests.support.metrics import refused
from tests.support.population import StartPopulation, as_shipped
from tests.support.with_constants import (
    MAX_READS,
    MAX_READS_EACH,
    MAX_REQUESTS_EACH,
    MAX_UNSENT_BYTES,
    PIECE,
)

pytestmark = pytest.mark.once

VALID = "valid_user@example.com"
HISTORY = f"/api/users/{VALID}/history"
EVENTS = 100_000
MEMORY_ALLOWED = 64_000_000  # bytes: of the process and of the kernel together
UNSHARED = {MAX_READS: 1000, MAX_READS_EACH: 1000, MAX_REQUESTS_EACH: 1000}
WRONG = "tests.support.faults.wrong_server"


@pytest.mark.parametrize("wrong", [None, "share_connections"])
def test_a_client_that_reads_its_history(
    start_server: StartServer, start_population: StartPopulation, wrong: str | None
) -> None:
    """On 40 connections. Without its share, it takes the connections of the presence sweep."""
    module = ("tornado_status",) if wrong is None else (WRONG, wrong)
    server = start_server(module=module, **as_shipped())
    fill_history(server, VALID, EVENTS // 4)
    honest = start_population(server)
    with attacking(flood, server.port, server.certs, "client", get(f"{HISTORY}.csv"), 40):
        complaints = honest.complaints()
    assert (complaints == []) == (wrong is None), complaints


@pytest.mark.parametrize("limited", [True, False], ids=["in pieces", "as a whole"])
def test_a_reader_of_the_largest_pages(
    start_server: StartServer, start_population: StartPopulation, limited: bool
) -> None:
    """Asked for again and again, on 40 connections."""
    constants = {} if limited else {PIECE: EVENTS, **UNSHARED}
    server = start_server(constants=constants, **as_shipped())
    fill(server, EVENTS)
    honest = start_population(server)
    before = memory(server)
    request = get(f"/api/events?after=0&limit={EVENTS}")
    with attacking(flood, server.port, server.certs, "operator", request, 40):
        if not limited:
            wait_until(lambda: memory(server) - before > MEMORY_ALLOWED, "too much memory")
            return
        assert honest.complaints() == []
        assert memory(server) - before < MEMORY_ALLOWED


@pytest.mark.parametrize("limited", [True, False], ids=["limited", "unlimited"])
def test_a_client_that_does_not_read(
    start_server: StartServer, start_population: StartPopulation, limited: bool
) -> None:
    """It asks for its history on 500 connections."""
    without = {PIECE: EVENTS, MAX_UNSENT_BYTES: 0, **UNSHARED}
    constants, more = ({}, {}) if limited else (without, {"max_connections_per_identity": 0})
    server = start_server(constants=constants, **as_shipped(**more))
    fill_history(server, VALID, EVENTS // 25)
    honest = start_population(server)
    before = memory(server)
    requests = [get(f"{HISTORY}.csv")] * 500
    with attacking(read_nothing, server.port, server.certs, "client", requests):
        if not limited:
            wait_until(lambda: memory(server) - before > MEMORY_ALLOWED, "too much memory")
            return
        wait_until(lambda: refused(server, "too-many-connections-of-identity"), "the limit")
        assert honest.complaints() == []
        assert memory(server) - before < MEMORY_ALLOWED
