"""DNS lookups: their results, and a silent name server that delays nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness import LOOPBACK, PATIENCE_S, Server, StartServer
from tests.support.namespaces import check_in_from, environment_for_python, names_without_an_answer
from tornado_status.runtime import resolver
from tornado_status.runtime.daemon_executor import MAX_THREADS, DaemonExecutor
from tornado_status.runtime.resolver import NameNotFound, look_up

NAME = "database.example.com"


@pytest.fixture
def nameless(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """The command that enters a network without answers."""
    with names_without_an_answer(tmp_path) as enter:
        yield enter


def test_an_address_needs_no_name_server() -> None:
    """Nor a thread."""

    async def look() -> list[resolver.SocketAddress]:
        threads = threading.active_count()
        found = await look_up("127.0.0.2", 5432, timeout_s=PATIENCE_S)
        assert threading.active_count() == threads
        return found + await look_up("::1", 1, timeout_s=PATIENCE_S)

    assert asyncio.run(look()) == [
        (socket.AF_INET, ("127.0.0.2", 5432)),
        (socket.AF_INET6, ("::1", 1, 0, 0)),
    ]


def test_a_name_has_addresses() -> None:
    """Each once, with the port, and of the family that is asked for."""

    async def look() -> list[resolver.SocketAddress]:
        return await look_up("localhost", 7, timeout_s=PATIENCE_S, family=socket.AF_INET)

    assert asyncio.run(look()) == [(socket.AF_INET, (LOOPBACK, 7))]


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b", "\udcff", "x" * 64 + ".example", ""])
def test_a_name_that_is_none_is_said_to_be_none(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence, whatever is wrong with it."""

    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    if host == "nowhere.invalid":  # no test asks the real name server
        monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(NameNotFound):
        asyncio.run(look_up(host, 1, timeout_s=PATIENCE_S))


def in_there(enter: tuple[str, ...], code: str) -> str:
    """Run Python where names have no answer; return what it prints."""
    done = subprocess.run(
        [*enter, sys.executable, "-W", "error", "-c", code],
        env=environment_for_python(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_a_silent_name_server_holds_up_neither_the_loop_nor_the_end(
    nameless: tuple[str, ...],
) -> None:
    """Others go on meanwhile, the wait is bounded, and the program ends, its threads or not."""
    code = """
import asyncio, threading
from tornado_status.runtime.resolver import NameNotFound, look_up

async def main():
    ticks = 0
    looking = [asyncio.create_task(look_up("a.example", 1, timeout_s=1)) for _ in range(50)]
    given_up = asyncio.create_task(look_up("b.example", 1, timeout_s=3600))
    while not all(task.done() for task in looking):
        await asyncio.sleep(0.001)
        ticks += 1
    assert ticks > 20, ticks
    for task in looking:
        assert isinstance(task.exception(), NameNotFound), task
    given_up.cancel()
    await asyncio.wait({given_up})
    assert given_up.cancelled()
    assert threading.active_count() == 3, threading.enumerate()  # one a name
    print(looking[0].exception())

asyncio.run(main())
"""
    assert in_there(nameless, code) == "a.example: no answer from the name server\n"


def test_look_ups_are_bounded(nameless: tuple[str, ...]) -> None:
    """For ever new names, or the same again and again."""
    code = """
import asyncio, threading
from tornado_status.runtime.resolver import MAX_UNDER_WAY, NameNotFound, look_up

async def look(name):
    try:
        await look_up(name, 1, timeout_s=0.5)
    except NameNotFound as error:
        return str(error)

async def main():
    said = await asyncio.gather(*(look(f"{n}.example") for n in range(MAX_UNDER_WAY + 8)))
    assert sum("too many" in text for text in said) == 8
    for _ in range(3):
        assert "no answer" in await look("0.example")
    assert threading.active_count() == 1 + MAX_UNDER_WAY

asyncio.run(main())
"""
    in_there(nameless, code)


def test_the_loops_own_threads_hold_up_no_end(nameless: tuple[str, ...]) -> None:
    """Of libraries that look names up by themselves. The control: asyncio's own do."""
    code = """
import asyncio
from tornado_status.runtime.daemon_executor import DaemonExecutor

async def main():
    loop = asyncio.get_running_loop()
    {executor}
    looking = asyncio.create_task(loop.getaddrinfo("a.example", 1))
    await asyncio.sleep(0.1)
    assert not looking.done()
    print("ending", flush=True)

asyncio.run(main())
"""
    assert in_there(nameless, code.format(executor="loop.set_default_executor(DaemonExecutor())"))
    control = subprocess.Popen(
        [*nameless, sys.executable, "-c", code.format(executor="pass")],
        env=environment_for_python(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with control:
        assert control.stdout is not None
        assert control.stdout.readline() == "ending\n"
        with pytest.raises(subprocess.TimeoutExpired):
            control.wait(3)
        control.kill()


def test_blocking_calls_are_bounded() -> None:
    """They queue; what is given up before its turn is never begun, and errors come back."""
    executor = DaemonExecutor()
    release = threading.Event()
    begun = [executor.submit(release.wait, PATIENCE_S) for _ in range(MAX_THREADS)]
    queued = executor.submit(int, "7")
    given_up = executor.submit(pytest.fail, "begun")
    failing = executor.submit(int, "seven")
    assert given_up.cancel()
    assert not queued.running()
    release.set()
    assert queued.result(PATIENCE_S) == 7
    with pytest.raises(ValueError, match="seven"):
        failing.result(PATIENCE_S)
    assert all(future.result(PATIENCE_S) for future in begun)


@contextlib.contextmanager
def no_threads() -> Iterator[None]:
    """As where a limit on processes is reached."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


def test_a_name_resolves_again_once_there_are_threads() -> None:
    """Without one the look-up fails at once, and no caller waits for its answer later."""

    async def look() -> list[resolver.SocketAddress]:
        return await look_up("localhost", 7, timeout_s=PATIENCE_S, family=socket.AF_INET)

    with no_threads(), pytest.raises(NameNotFound, match="no thread"):
        asyncio.run(look())
    assert asyncio.run(look()) == [(socket.AF_INET, (LOOPBACK, 7))]


def test_a_call_without_a_thread_fails_and_those_that_run_come_to_it() -> None:
    """Nothing waits for a thread that was never begun, and the room for it is free again."""
    executor = DaemonExecutor()
    with no_threads():
        failed = [executor.submit(int, "7") for _ in range(MAX_THREADS + 1)]
    for future in failed:
        with pytest.raises(RuntimeError, match="new thread"):
            future.result(0)
    release = threading.Event()
    begun = executor.submit(release.wait, PATIENCE_S)
    with no_threads():
        queued = executor.submit(int, "7")
    assert not queued.done()
    release.set()
    assert begun.result(PATIENCE_S)
    assert queued.result(PATIENCE_S) == 7


def curl(enter: tuple[str, ...], server: Server, path: str) -> str:
    url = f"http://{LOOPBACK}:{server.management_port}{path}"
    command = [*enter, "curl", "--silent", "--max-time", str(PATIENCE_S), url]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, check=True
    ).stdout


def test_a_server_whose_database_has_no_address_says_so_and_ends(
    nameless: tuple[str, ...], start_server: StartServer
) -> None:
    """From the start on: it answers others, and SIGTERM ends it at once."""
    url = f"postgresql://postgres@{NAME}/postgres"
    server = start_server(url=url, prefix=nameless, wait=False, database={"connect_timeout_s": 1})
    event = server.wait_event("database away, trying again")
    assert event["reason"] == (
        f"the database's name does not resolve: {NAME}: no answer from the name server"
    )
    ready = json.loads(curl(nameless, server, "/readyz"))
    assert "does not resolve" in "".join(ready["problems"])
    assert server.stop() == 0


def test_a_silent_name_server_holds_up_no_server(
    nameless: tuple[str, ...], start_server: StartServer, database_url: str
) -> None:
    """Of the database's first host, of an alert's receiver and of a broker: it serves, and ends."""
    broker = {"kind": "nats", "address": "nats://broker.example.com:4222"}
    alert = {
        "name": "silent",
        "url": "http://receiver.example.com/",
        "secret": "whsec_" + "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
        "events": ["new"],
        "timeout_s": 1,
    }
    server = start_server(
        url=database_url.replace("host=", f"host={NAME},"),
        prefix=nameless,
        database={"connect_timeout_s": 3600},
        announce={"targets": [broker]},
        alerts=[alert],
    )
    assert check_in_from(nameless, server) == "204"
    server.wait_event("cannot announce, trying again")
    server.wait_event("alert not delivered, trying again")
    assert check_in_from(nameless, server) == "204"
    assert server.stop() == 0
