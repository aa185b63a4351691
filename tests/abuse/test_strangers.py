"""Strangers without a certificate, or with one that is refused, who take all that they can."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.attackers import ADDRESSES, attacking, client_hello, crowd_in
from tests.support.faults.samples import peak_memory_kb
from tests.support.harness import LOOPBACK, StartServer, client_context, wait_until
from tests.support.metrics import refused
from tests.support.population import StartPopulation, as_shipped
from tests.support.raw_http import PLAIN
from tests.support.with_constants import STALLED_S

pytestmark = pytest.mark.once

WRONG = "tests.support.faults.wrong_server"
GROWTH_KB = 16 * 1024  # of a server with twenty newcomers a second anyway
REFUSED = {
    "bad_client": "cn-invalid",
    "revoked": "revoked",
    "expired": "certificate-has-expired",
}


@pytest.mark.parametrize("wrong", [None, "count_mute_handshakes"])
def test_strangers_who_send_a_byte(
    start_server: StartServer, start_population: StartPopulation, wrong: str | None
) -> None:
    """Thousands of connections, new ones all the time, from many addresses."""
    module = {} if wrong is None else {"module": (WRONG, wrong)}
    server = start_server(**as_shipped(), **module)
    honest = start_population(server)
    with attacking(crowd_in, server.port, b"\x16", 9000, ADDRESSES):
        complaints = honest.complaints()
    if wrong is None:
        assert complaints == []
        assert refused(server, "timeout") > 0
    else:
        assert complaints


@pytest.mark.parametrize("constants", [{}, {STALLED_S: 3600}])
def test_strangers_who_stall_their_handshakes(
    start_server: StartServer, start_population: StartPopulation, constants: dict[str, float]
) -> None:
    """They send a whole ClientHello, and nothing after it."""
    server = start_server(**as_shipped(), constants=constants)
    honest = start_population(server)
    with attacking(crowd_in, server.port, client_hello(), 9000, ADDRESSES):
        complaints = honest.complaints()
    if constants:
        assert complaints
    else:
        assert complaints == []
        assert refused(server, "timeout") > 0


@pytest.mark.parametrize("wrong", [None, "keep_mute_connections"])
def test_a_stranger_whose_connections_are_idle(
    start_server: StartServer, start_population: StartPopulation, wrong: str | None
) -> None:
    """As many connections as the server takes, all from one address."""
    limits = {"max_connections": 1000}
    module = {}
    if wrong is not None:
        limits["max_connections_per_address"] = 0
        module = {"module": (WRONG, wrong)}
    server = start_server(**as_shipped(**limits), **module)
    honest = start_population(server)
    with attacking(crowd_in, server.port, b"", 3000, ADDRESSES[:1]):
        complaints = honest.complaints()
    if wrong is None:
        assert complaints == []
        assert refused(server, "too-many-connections") > 0
    else:
        assert complaints


def come_again(port: int, certs: Path, names: Sequence[str]) -> None:
    """Connect with certificates that are refused, and check in all the same."""
    for name in itertools.cycle(names):
        with (
            contextlib.suppress(OSError),
            socket.create_connection((LOOPBACK, port), timeout=5) as raw,
            client_context(certs, name).wrap_socket(raw, server_hostname="localhost") as secure,
        ):
            secure.sendall(PLAIN)
            secure.recv(4096)


@pytest.mark.parametrize("wrong", [None, "keep_refusals"])
def test_clients_who_are_refused_and_come_again(
    start_server: StartServer, start_population: StartPopulation, certs: Path, wrong: str | None
) -> None:
    """The others notice nothing, and nothing of a refusal is kept."""
    module = {} if wrong is None else {"module": (WRONG, wrong)}
    server = start_server(**as_shipped(), **module)
    honest = start_population(server)
    before = peak_memory_kb(server.process.pid)

    def grown_kb() -> int:
        return peak_memory_kb(server.process.pid) - before

    with attacking(come_again, server.port, certs, tuple(REFUSED)):
        if wrong is None:
            assert honest.complaints() == []
            assert grown_kb() < GROWTH_KB
            assert all(refused(server, reason) > 0 for reason in REFUSED.values())
        else:
            wait_until(lambda: grown_kb() > GROWTH_KB, "too much memory")
