"""Clients with a certificate who take connections, check-ins and the log for themselves."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.attackers import attacking, pipeline
from tests.support.harness import StartServer, wait_until
from tests.support.metrics import metric, refused
from tests.support.population import StartPopulation, as_shipped
from tests.support.raw_http import PLAIN
from tests.support.with_constants import MAX_UNANSWERED
from tornado_status.model.check_in_rate_limit import BURST_S

pytestmark = pytest.mark.once

OFF = 0
FEW = {"max_connections": 1000, "max_connections_per_address": 0}  # that an attacker can fill


@pytest.mark.parametrize("limits", [{}, {"max_connections_per_identity": OFF}])
def test_an_identity_that_opens_all_the_connections_it_can(
    start_server: StartServer,
    start_population: StartPopulation,
    certs: Path,
    attackers: tuple[str, ...],
    limits: dict[str, int],
) -> None:
    """All of them are busy, so that none of them would make room."""
    server = start_server(**as_shipped(**FEW, **limits))
    honest = start_population(server)
    with attacking(pipeline, server.port, certs, attackers[:1], 1000, PLAIN * 20):
        complaints = honest.complaints()
    if limits:
        assert complaints
    else:
        assert complaints == []
        assert refused(server, "too-many-connections-of-identity") > 0


@pytest.mark.parametrize("is_limited", [True, False])
def test_an_identity_that_pipelines_on_many_connections(
    start_server: StartServer,
    start_population: StartPopulation,
    certs: Path,
    attackers: tuple[str, ...],
    is_limited: bool,
) -> None:
    """Without limits its check-ins fill the queue, and others are refused."""
    off = {"max_connections_per_identity": OFF, "check_ins_per_second": OFF}
    server = start_server(
        **as_shipped(**({} if is_limited else off)),
        constants={} if is_limited else {MAX_UNANSWERED: 1_000_000},
    )
    honest = start_population(server)
    with attacking(pipeline, server.port, certs, attackers[:1], 170, PLAIN * 100):
        complaints = honest.complaints()
    if is_limited:
        assert complaints == []
        assert metric(server, 'check_ins_total{result="too_frequent"}') > 0
    else:
        assert complaints


@pytest.mark.parametrize("limits", [{}, {"check_ins_per_second": OFF}])
def test_an_identity_that_checks_in_as_fast_as_it_can(
    start_server: StartServer,
    start_population: StartPopulation,
    certs: Path,
    attackers: tuple[str, ...],
    limits: dict[str, int],
) -> None:
    """Its rows in the log are bounded by the rate and the burst."""
    rate = as_shipped()["server"]["check_ins_per_second"]
    server = start_server(**as_shipped(**limits))
    honest = start_population(server)
    email = f"{attackers[0]}@example.com"
    begun = time.monotonic()

    def excess() -> float:
        """Return the rows beyond what the limit allows."""
        [(rows,)] = server.rows("SELECT count(*) FROM check_in WHERE email = %s", email)
        return float(rows - rate * (BURST_S + time.monotonic() - begun) - 1)

    with attacking(pipeline, server.port, certs, attackers[:1], 10, PLAIN * 100):
        if limits:
            wait_until(lambda: excess() > 0, "too many rows")
        else:
            assert honest.complaints() == []
            assert excess() <= 0
            assert metric(server, 'check_ins_total{result="too_frequent"}') > 0


def test_a_crowd_of_identities_each_at_its_limits(
    start_server: StartServer,
    start_population: StartPopulation,
    certs: Path,
    attackers: tuple[str, ...],
) -> None:
    """Together they are still not all of the server."""
    server = start_server(**as_shipped())
    honest = start_population(server)
    with attacking(pipeline, server.port, certs, attackers, 20, PLAIN * 100):
        assert honest.complaints() == []
