"""The stop, whatever hangs: it ends within its time, and nothing that the server began is left."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartServer
from tests.faults.ledger import REQUEST
from tests.faults.relay import Relay
from tests.faults.test_process import postmaster, processes_in
from tests.support import LOOPBACK, Server, rows, wait_until

pytestmark = pytest.mark.once

OVERDUE = "the stop is overdue, ending at once"
SECRET = "whsec_" + "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="


@contextlib.contextmanager
def mute_server() -> Any:
    """A port that connections are taken on, and where nobody ever answers."""
    with socket.create_server((LOOPBACK, 0), backlog=100) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("wrong", [None, "give_each_part_all_the_time"])
def test_a_stop_ends_in_its_time_whatever_hangs(
    start_server: StartServer, database_url: str, wrong: str | None
) -> None:
    """The database, an alert's receiver, a broker, clients and followers, all at once: exit 0."""
    module = ("tornado_status",) if wrong is None else ("tests.faults.wrong_server", wrong)
    with (
        Relay(lambda: database_url) as relay,
        mute_server() as receiver,
        mute_server() as broker,
        contextlib.ExitStack() as stack,
    ):
        server = start_server(
            url=relay.url,
            module=module,
            server={"drain_timeout_s": 3},
            database={"commit_timeout_s": 3600},
            announce={"targets": [{"kind": "nats", "address": f"nats://{LOOPBACK}:{broker}"}]},
            alerts=[
                {
                    "name": "mute",
                    "url": f"http://{LOOPBACK}:{receiver}/",
                    "secret": SECRET,
                    "events": ["new"],
                    "timeout_s": 60,
                }
            ],
        )
        follower = stack.enter_context(server.connect_raw("operator"))
        follower.sendall(b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert follower.recv(65536)
        assert server.request("POST", "/api/client").status == 204
        waiting = stack.enter_context(server.connect_raw())
        mute = stack.enter_context(server.connect_raw())
        mute.sendall(REQUEST[:-10])
        relay.freeze()
        waiting.sendall(REQUEST)
        for _ in range(2):  # by then the loop has seen what was sent before
            server.admin("/metrics")
        assert server.stop() == (0 if wrong is None else 1)
        server.log.wait_end()
        assert bool(server.events(OVERDUE)) == (wrong is not None)
        if wrong is None:
            assert waiting.recv(65536).startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory, signum: signal.Signals
) -> None:
    """By that signal, as the exit status says; no process of the embedded PostgreSQL is left."""
    data_dir = tmp_path_factory.mktemp("s") / "data"
    server = start_server(
        url="embedded", server={"drain_timeout_s": 3600}, database={"data_dir": str(data_dir)}
    )
    mute = server.connect_raw()
    with mute:
        mute.sendall(REQUEST)
        assert mute.recv(65536)
        mute.sendall(b"POST /api/client HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
        server.admin("/metrics")
        pause(data_dir)
        for _ in range(2):  # as one: a wrapper forwards what the terminal has sent already
            server.process.send_signal(signal.SIGTERM)
        server.wait_event("stopping")

        def ended() -> bool:
            server.process.send_signal(signum)
            return server.process.poll() is not None

        wait_until(ended, "the server to end")
        assert server.process.returncode == -signum
    wait_until(lambda: not processes_in(data_dir), "the last process of PostgreSQL to end")


@pytest.mark.parametrize("wrong", [None, "leave_orphans"])
def test_a_paused_embedded_postgresql_holds_up_no_end(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory, wrong: str | None
) -> None:
    """It is killed, all of it; what was acknowledged is there at the next start."""
    data_dir = tmp_path_factory.mktemp("s") / "data"
    settings: dict[str, Any] = {"url": "embedded", "database": {"data_dir": str(data_dir)}}
    module = ("tornado_status",) if wrong is None else ("tests.faults.wrong_server", wrong)
    server = start_server(server={"drain_timeout_s": 2}, module=module, **settings)
    assert server.request("POST", "/api/client").status == 204
    pause(data_dir)
    assert server.stop() == 0
    server.log.wait_end()
    assert server.events("embedded PostgreSQL does not stop, killed")
    assert not server.events(OVERDUE)
    left = processes_in(data_dir)
    assert bool(left) == (wrong is not None)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    if wrong is None:
        start_server(**settings)
        url = f"postgresql://postgres@/tornado_status?host={data_dir}"
        assert rows(url, "SELECT count(*) FROM check_in") == [(1,)]


def test_a_stop_that_hangs_for_another_reason_is_overdue(start_server: StartServer) -> None:
    """Even the event loop itself: the process ends, with status 1, and says so."""
    module = ("tests.faults.wrong_server", "hang_in_the_stop")
    server = start_server(server={"drain_timeout_s": 0.5}, module=module)
    assert server.stop() == 1
    server.log.wait_end()
    assert server.events(OVERDUE)


def test_a_signal_while_it_starts_is_enough(start_server: StartServer) -> None:
    """Also where the database accepts and never answers."""
    with mute_server() as database:
        url = f"postgresql://postgres@{LOOPBACK}:{database}/postgres"
        server = start_server(url=url, wait=False, database={"connect_timeout_s": 3600})
        wait_until(lambda: is_listening(server), "the admin port")
        assert server.stop() == 0
        assert not server.events(OVERDUE)


def is_listening(server: Server) -> bool:
    with contextlib.suppress(OSError):
        return server.admin("/readyz").status == 503
    return False


def pause(data_dir: Path) -> None:
    """SIGSTOP for every process of a PostgreSQL, the first one first: it forks no more."""
    first = postmaster(data_dir)
    os.kill(first, signal.SIGSTOP)
    for pid in processes_in(data_dir):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
