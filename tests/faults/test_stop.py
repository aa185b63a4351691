"""The stop, whatever hangs: it ends within its time, and nothing that the server began is left."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.faults.ledger import REQUEST
from tests.support.faults.postgres_processes import postmaster, processes_in
from tests.support.faults.tcp_relay import Relay
from tests.support.harness import LOOPBACK, PATIENCE_S, ROOT, Server, StartServer, rows, wait_until
from tornado_status.store.embedded.postgres import EmbeddedPostgres

pytestmark = pytest.mark.once

OVERDUE = "shutdown overdue, ending the process"
SECRET = "whsec_" + "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="


@contextlib.contextmanager
def mute_server() -> Any:
    """A port that accepts connections and never answers."""
    with socket.create_server((LOOPBACK, 0), backlog=100) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("wrong", [None, "give_each_part_all_the_time"])
def test_a_stop_ends_in_its_time_whatever_hangs(
    start_server: StartServer, database_url: str, wrong: str | None
) -> None:
    """The database, an alert's receiver, a broker, clients and followers, all at once: exit 0."""
    module = ("tornado_status",) if wrong is None else ("tests.support.faults.wrong_server", wrong)
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
            server.management("/metrics")
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
        server.management("/metrics")
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
    """All of it is killed, whatever else runs; what was acknowledged is there at the next start."""
    data_dir = tmp_path_factory.mktemp("s") / "data"
    settings: dict[str, Any] = {"url": "embedded", "database": {"data_dir": str(data_dir)}}
    module = ("tornado_status",) if wrong is None else ("tests.support.faults.wrong_server", wrong)
    server = start_server(server={"drain_timeout_s": 2}, module=module, **settings)
    assert server.request("POST", "/api/client").status == 204
    pause(data_dir)
    with oddly_named():
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
    module = ("tests.support.faults.wrong_server", "hang_in_the_stop")
    server = start_server(server={"drain_timeout_s": 0.5}, module=module)
    assert server.stop() == 1
    server.log.wait_end()
    assert server.events(OVERDUE)


def test_a_signal_while_it_starts_is_enough(start_server: StartServer) -> None:
    """Also where the database accepts and never answers."""
    with mute_server() as database:
        url = f"postgresql://postgres@{LOOPBACK}:{database}/postgres"
        server = start_server(url=url, wait=False, database={"connect_timeout_s": 3600})
        wait_until(lambda: is_listening(server), "the management port")
        assert server.stop() == 0
        assert not server.events(OVERDUE)


def test_a_part_that_cannot_be_canceled_is_left_behind(start_server: StartServer) -> None:
    """The log names it, and the server no longer waits for it: exit 0."""
    module = ("tests.support.faults.wrong_server", "swallow_the_cancellation")
    server = start_server(server={"drain_timeout_s": 1}, module=module)
    assert server.stop() == 0
    server.log.wait_end()
    [left] = server.events("part did not stop in time")
    assert left["part"] == "announcer"
    assert not server.events(OVERDUE)


def run_child(code: str, stderr: int | None = None) -> subprocess.Popen[bytes]:
    """Run Python; return once it has said that it is up."""
    child = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr
    )
    assert child.stdout is not None
    said = child.stdout.readline()
    if said != b"up\n":
        with child:
            child.kill()
        raise AssertionError(f"the child said {said!r}")
    return child


def test_a_log_that_nobody_reads_holds_up_no_end() -> None:
    """Not even the overdue end of a loop that logs without a pause."""
    code = """
import asyncio, signal, structlog
from tornado_status.config.settings import LoggingSettings
from tornado_status.observe import logging_setup
from tornado_status.runtime import background_output
from tornado_status.runtime.shutdown import ShutdownSignals

async def main():
    ending = ShutdownSignals(0.1, lambda: None)
    # As the server does, for SIGHUP: from then on any signal wakes the loop.
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, print)
    print("up", flush=True)
    await ending.received.wait()
    while True:
        structlog.get_logger().info("x" * 4000)
        await asyncio.sleep(0)

background_output.start()
logging_setup.configure(LoggingSettings())
asyncio.run(main())
"""
    with run_child(code, subprocess.PIPE) as child:
        child.send_signal(signal.SIGTERM)
        try:
            assert child.wait(PATIENCE_S) == 1
        finally:
            child.kill()


def test_a_signal_that_comes_twice_never_meets_the_default_action() -> None:
    """At whatever moment: here whenever a handler is changed, at the end of the loop too."""
    code = """
import asyncio, os, signal
from tornado_status.runtime.shutdown import ShutdownSignals

def change(*arguments):
    before = real(*arguments)
    os.kill(os.getpid(), signal.SIGINT)
    return before

async def main():
    ending = ShutdownSignals(3600, lambda: None)
    print("up", flush=True)
    signal.signal = change
    os.kill(os.getpid(), signal.SIGINT)
    await ending.received.wait()

real = signal.signal
asyncio.run(main())
print("ended")
"""
    with run_child(code) as child:
        assert child.wait(PATIENCE_S) == 0
        assert child.stdout is not None
        assert child.stdout.read() == b"ended\n"


def test_what_not_even_sigkill_ends_is_not_waited_for() -> None:
    """As a process that waits for a dead disk; this one is held by who traces it."""
    tracer_code = """
import ctypes, sys
seize = ctypes.CDLL(None).ptrace
seize.argtypes = [ctypes.c_long] * 4
assert seize(0x4206, int(sys.argv[1]), 0, 0) == 0  # PTRACE_SEIZE
print("up", flush=True)
sys.stdin.read(1)
"""
    postgres = EmbeddedPostgres(Path("nowhere"))
    postgres._process = held = subprocess.Popen(["sleep", "3600"])
    tracer = subprocess.Popen(
        [sys.executable, "-c", tracer_code, str(held.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    let_go = threading.Timer(PATIENCE_S / 3, tracer.kill)
    let_go.start()
    try:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == b"up\n"
        postgres.kill()
        assert held.poll() is None  # killed, and there
    finally:
        let_go.cancel()
        tracer.kill()
        tracer.communicate()
        assert held.wait(PATIENCE_S) == -signal.SIGKILL


@contextlib.contextmanager
def oddly_named() -> Iterator[None]:
    """A process whose name is no UTF-8; any user of the machine may have one."""
    code = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, b"caf\\xe9 ) (", 0, 0, 0)  # PR_SET_NAME
print("up", flush=True)
sys.stdin.read(1)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as odd:
        assert odd.stdout is not None
        assert odd.stdout.readline() == b"up\n"
        try:
            yield
        finally:
            odd.kill()


def is_listening(server: Server) -> bool:
    with contextlib.suppress(OSError):
        return server.management("/readyz").status == 503
    return False


def pause(data_dir: Path) -> None:
    """SIGSTOP for every process of a PostgreSQL, the first one first: it forks no more."""
    first = postmaster(data_dir)
    os.kill(first, signal.SIGSTOP)
    for pid in processes_in(data_dir):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
