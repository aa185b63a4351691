"""A stranger causes log lines while the reader of the log has stopped."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness import LOOPBACK, StartServer, free_port, wait_until
from tests.support.population import ATTACK_S, StartPopulation

pytestmark = pytest.mark.once


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """The path of an unread pipe, and its writing end."""
    path = tmp_path / "log"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        yield str(path), writing
    finally:
        os.close(reading)
        os.close(writing)


def cause_lines(port: int, seconds: float) -> None:
    """Speak plain HTTP to the TLS port, as fast as it goes."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
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
    pipe: tuple[str, int],
    wrong: str | None,
) -> None:
    """One line is enough where the event loop writes it."""
    path, writing = pipe
    module = ("tornado_status",) if wrong is None else ("tests.support.faults.wrong_server", wrong)
    server = start_server(
        prefix=("sh", "-c", 'exec "$@" >"$0" 2>&1', path),
        module=module,
        wait=False,
        server={"port": free_port()},
    )

    def is_ready() -> bool:
        with contextlib.suppress(OSError):
            return server.management("/readyz").status == 200
        return False

    wait_until(is_ready, "readiness")
    honest = start_population(server)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"\n")  # one by one: until not a byte of room is left
    cause_lines(server.port, ATTACK_S)
    complaints = honest.complaints()
    if wrong is None:
        assert complaints == []
    else:
        assert any("answered None" in each for each in complaints), complaints
        server.process.kill()
