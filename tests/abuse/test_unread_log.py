"""A stranger causes log lines while the reader of the log has stopped."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from tests.support.attackers import attacking
from tests.support.harness import LOOPBACK, StartServer, free_port, wait_until
from tests.support.population import StartPopulation, as_shipped
from tests.support.unread_log import fill_pipe, is_ready, pipe_at, start_logging_to

pytestmark = pytest.mark.once


def cause_lines(port: int) -> None:
    """Speak plain HTTP to the TLS port, as fast as it goes."""
    while True:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((LOOPBACK, port), timeout=1) as stranger,
        ):
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            stranger.recv(4096)


@pytest.mark.parametrize("wrong", [None, "log_in_the_loop"])
def test_a_stranger_who_causes_log_lines(
    start_server: StartServer,
    start_population: StartPopulation,
    tmp_path: Path,
    wrong: str | None,
) -> None:
    """One line is enough if the event loop writes it."""
    path = tmp_path / "log"
    module = ("tornado_status",) if wrong is None else ("tests.support.faults.wrong_server", wrong)
    with pipe_at(path) as (_, writing):
        shipped = as_shipped(port=free_port())
        server = start_logging_to(start_server, str(path), module=module, **shipped)
        wait_until(lambda: is_ready(server), "readiness")
        honest = start_population(server)
        fill_pipe(writing)
        with attacking(cause_lines, server.port):
            complaints = honest.complaints()
        if wrong is None:
            assert complaints == []
        else:
            assert any("answered None" in each for each in complaints), complaints
            server.process.kill()
