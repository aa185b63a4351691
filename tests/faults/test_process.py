"""The server's own process: told to stop, killed, and given a wrong time."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.faults.judge import Listener, judge
from tests.support.faults.ledger import REQUEST, Load
from tests.support.faults.postgres_processes import postmaster, processes_in
from tests.support.faults.tcp_relay import Relay
from tests.support.faults.trial import NAMES, MakePostgres, StartTrial
from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    StartServer,
    free_port,
    require,
    rows,
    targets,
    wait_until,
)

pytestmark = pytest.mark.once

ROUNDS = 20
ORDINARY = REQUEST.replace(b"\r\n\r\n", b"\r\nX-Whatever: 1\r\n\r\n")  # for Tornado's own HTTP


@pytest.mark.parametrize(
    ("pipeline", "request_bytes"),
    [(1, REQUEST), (16, REQUEST), (1, ORDINARY)],
    ids=["plain", "pipelined", "ordinary"],
)
def test_a_drain_answers_all_that_was_read(
    make_postgres: MakePostgres,
    start_server: StartServer,
    certs: Path,
    pipeline: int,
    request_bytes: bytes,
) -> None:
    """SIGTERM under load: what is recorded was answered 204, and announced; exit 0."""
    postgres = make_postgres()
    server = start_server(url=postgres.url, server={"port": free_port()})
    running = server.process
    with (
        Listener(server.announce_port) as listener,
        Load(
            certs,
            server.port,
            NAMES * 4,
            pipeline=pipeline,
            request=request_bytes,
            while_up=lambda: running.poll() is None,
        ) as load,
    ):
        load.ledger.wait_more(204, 200)
        assert server.stop() == 0
        load.stop()
        assert judge(load.ledger, postgres.url, listener) == []
    # No request that was read went without its answer.
    assert rows(postgres.url, "SELECT count(*) FROM check_in") == [(load.ledger.acknowledged,)]
    assert not server.events("drain timed out")


def test_a_server_that_hangs_up_before_it_has_answered_is_found_out(
    make_postgres: MakePostgres, start_trial: StartTrial
) -> None:
    """The control of the test above: recorded, and no answer."""
    postgres = make_postgres()
    with Relay(lambda: postgres.url) as relay:
        trial = start_trial(relay.url, wrong="hang_up", patience_s=PATIENCE_S)
        trial.wait_acknowledged()
        relay.slow(0.2)
        trial.wait_acknowledged(4)
        assert trial.server.stop() == 0
        trial.load.stop()
    recorded = rows(postgres.url, "SELECT count(*) FROM check_in")[0][0]
    assert recorded > trial.load.ledger.acknowledged


def refuses(port: int) -> bool:
    """Return whether no program listens there any more."""
    try:
        socket.create_connection((LOOPBACK, port), PATIENCE_S).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("wrong", [None, "drop_at_the_end"])
def test_a_drain_commits_what_waits(
    make_postgres: MakePostgres, start_server: StartServer, wrong: str | None
) -> None:
    """SIGTERM while a commit is under way: those behind it are committed and answered, too."""
    module = ("tornado_status",) if wrong is None else ("tests.support.faults.wrong_server", wrong)
    postgres = make_postgres()
    with Relay(lambda: postgres.url) as relay, contextlib.ExitStack() as stack:
        patient = {
            "server": {"drain_timeout_s": 10},
            "database": {"commit_timeout_s": PATIENCE_S},
        }
        server = start_server(url=relay.url, module=module, **patient)
        relay.freeze()
        waiting = []
        for _ in range(8):  # the first one's commit is under way, and the others are behind it
            waiting.append(stack.enter_context(server.connect_raw()))
            waiting[-1].sendall(REQUEST)
            server.management("/metrics")
        server.process.send_signal(signal.SIGTERM)
        server.wait_event("stopping")
        wait_until(lambda: refuses(server.port), "the drain to begin")
        relay.thaw()
        answers = []
        for secure in waiting:
            with contextlib.suppress(OSError):  # hung up on
                answers.append(secure.recv(65536)[:12])
        assert server.process.wait(PATIENCE_S) == 0
        assert (answers == [b"HTTP/1.1 204"] * len(waiting)) == (wrong is None)
    recorded = rows(postgres.url, "SELECT count(*) FROM check_in")[0][0]
    assert (recorded == len(waiting)) == (wrong is None)


def test_a_drain_ends_before_a_frozen_database_too(
    make_postgres: MakePostgres, start_trial: StartTrial
) -> None:
    """SIGTERM while nothing can be committed: 503 for each of those who wait, exit 0."""
    postgres = make_postgres()
    with Relay(lambda: postgres.url) as relay:
        trial = start_trial(relay.url, patience_s=PATIENCE_S, server={"drain_timeout_s": 1})
        trial.wait_acknowledged()
        relay.freeze()
        ledger = trial.load.ledger
        wait_until(lambda: ledger.outstanding == len(NAMES), "everybody to wait")
        for _ in range(2):  # by then the loop has seen what was sent before
            trial.server.management("/metrics")
        assert ledger.statuses[503] == 0
        assert trial.server.stop() == 0
        trial.load.stop()
        assert ledger.statuses[503] == len(NAMES)
        relay.thaw()
        assert trial.verdict(postgres.url) == []


def test_twenty_times_kill_dash_nine(
    start_server: StartServer, certs: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of PostgreSQL and of the server, in turn, under load: nothing acknowledged is missing."""
    data_dir = tmp_path_factory.mktemp("k") / "data"  # short: it holds a socket
    url = f"postgresql://postgres@/tornado_status?host={data_dir}"
    announce_port = free_port(socket.SOCK_DGRAM)
    settings: dict[str, Any] = {
        "server": {"port": free_port()},
        "database": {"data_dir": str(data_dir)},
        "announce": {
            "source_port": free_port(socket.SOCK_DGRAM),
            "targets": targets(announce_port),
        },
    }
    server = start_server(url="embedded", **settings)
    with (
        Listener(announce_port) as listener,
        Load(certs, server.port, NAMES) as load,
    ):
        for _ in range(ROUNDS):
            load.ledger.wait_more(204, 20)
            os.kill(postmaster(data_dir), signal.SIGKILL)
            server.wait_event("embedded PostgreSQL died, restarting")
            load.ledger.wait_more(204, 20)
            assert server.stop(signal.SIGKILL) == -signal.SIGKILL
            server = start_server(url="embedded", **settings)
        load.ledger.wait_more(204, 20)
        load.stop()
        assert judge(load.ledger, url, listener) == []
    assert processes_in(data_dir)
    assert server.stop() == 0
    wait_until(lambda: not processes_in(data_dir), "the last process of PostgreSQL to end")
    shutil.rmtree(data_dir)


@pytest.fixture
def readable() -> Iterator[Path]:
    """A directory that PostgreSQL's user can read, too."""
    with tempfile.TemporaryDirectory(prefix="status-tests-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.mark.parametrize("wrong", [None, "follow_the_clock"])
def test_the_clock_is_set_back(
    make_postgres: MakePostgres,
    start_trial: StartTrial,
    readable: Path,
    wrong: str | None,
) -> None:
    """Of the server and of its database, twice, under load: last_seen stands still at worst."""
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    require("libfaketime", bool(libraries), "Debian: faketime")
    clock = readable / "clock"

    def set_clock(offset: str) -> None:
        fresh = readable / "clock.new"
        fresh.write_text(offset)
        fresh.replace(clock)

    set_clock("+0")
    environment = {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    postgres = make_postgres(environment=environment)
    trial = start_trial(postgres.url, wrong=wrong, environment=environment)
    for offset in ("-90s", "-180s"):
        trial.wait_acknowledged()
        went_back = functools.partial(is_before, postgres.url, clock_of(postgres.url))
        set_clock(offset)
        wait_until(went_back, "the clock to go back")
        trial.wait_acknowledged()
    verdict = trial.verdict(postgres.url)
    assert any(each.startswith("the time falls ") for each in verdict) == (wrong is not None)
    assert wrong is not None or verdict == []
    assert trial.load.ledger.statuses.keys() == {204}
    assert trial.server.management("/readyz").status == 200


def clock_of(url: str) -> Any:
    return rows(url, "SELECT clock_timestamp()")[0][0]


def is_before(url: str, moment: Any) -> bool:
    return bool(clock_of(url) < moment)


@pytest.mark.parametrize("wrong", ["lose_the_heartbeats", "lose_the_watcher"])
def test_a_part_that_fails_unexpectedly_ends_the_server(
    start_server: StartServer, wrong: str
) -> None:
    """Loudly, and in order: not half of a service that looks whole."""
    module = ("tests.support.faults.wrong_server", wrong)
    server = start_server(wait=False, module=module, announce={"heartbeat_s": 5})
    assert server.process.wait(PATIENCE_S) != 0
    server.log.wait_end()
    assert "RuntimeError: a part has stumbled" in server.log.lines
    server.log.lines.clear()  # its traceback is expected
