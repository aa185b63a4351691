"""Three servers behind HAProxy over one PostgreSQL, as they are killed, drained and replaced."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import SERVERS, Fleet, fleet_certs, fleet_hosts
from tests.support.harness import PATIENCE_S, StartServer

pytestmark = [pytest.mark.network, pytest.mark.once]


@pytest.fixture
def certs(certs: Path, tmp_path: Path) -> Path:
    return fleet_certs(certs, tmp_path / "certs")


@pytest.fixture
def fleet(
    certs: Path, database_url: str, start_server: StartServer, tmp_path: Path
) -> Iterator[Fleet]:
    with fleet_hosts() as hosts:
        yield Fleet(hosts, certs, database_url, start_server, tmp_path)


def test_servers_come_and_go_and_nothing_acknowledged_is_lost(fleet: Fleet) -> None:
    """One killed, one drained, one replaced under load: one gapless order, listeners complete."""
    one, two, three = (fleet.start(address) for address in SERVERS)
    with fleet.under_load():
        fleet.go_on("with all three")
        one.process.kill()
        one.process.wait(PATIENCE_S)
        fleet.go_on("with one killed")
        one = fleet.start(SERVERS[0])
        fleet.go_on("with it back")
        assert two.stop(signal.SIGTERM) == 0
        fleet.go_on("with one drained")
        assert three.stop(signal.SIGTERM) == 0
        three = fleet.start(SERVERS[2])
        fleet.go_on("with one replaced")
        assert one.stop(signal.SIGTERM) == 0
        fleet.go_on("with the replaced one alone")
        fleet.judge()
