"""An unread log, as after Ctrl-S or behind a stuck log driver, delays nothing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import socket
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.harness import LOOPBACK, PATIENCE_S, Server, StartServer, wait_until
from tests.support.metrics import metric
from tests.support.unread_log import fill_pipe, is_ready, pipe_at, start_logging_to
from tests.support.with_constants import MAX_WAITING_BYTES

DROPPED = "log_lines_dropped_total"


@dataclass
class Unread:
    """A pipe or a terminal that takes no byte until `resume`."""

    path: str
    reading: int
    resume: Callable[[], None]

    def read_until(self, text: str) -> list[str]:
        """Return the lines up to one with `text`."""
        found = b""
        while text.encode() not in found or not found.endswith(b"\n"):
            assert select.select([self.reading], [], [], PATIENCE_S)[0], found[-4000:]
            found += os.read(self.reading, 65536)
        return found.decode().splitlines()


@contextlib.contextmanager
def full_pipe(path: Path) -> Iterator[Unread]:
    with pipe_at(path) as (reading, writing):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        fill_pipe(writing)
        yield Unread(str(path), reading, lambda: None)


@contextlib.contextmanager
def stopped_terminal() -> Iterator[Unread]:
    reading, terminal = pty.openpty()
    try:
        termios.tcflow(terminal, termios.TCOOFF)  # as Ctrl-S does
        yield Unread(os.ttyname(terminal), reading, lambda: termios.tcflow(terminal, termios.TCOON))
    finally:
        os.close(reading)
        os.close(terminal)


@pytest.fixture(params=["pipe", "terminal"])
def unread(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Unread]:
    with full_pipe(tmp_path / "log") if request.param == "pipe" else stopped_terminal() as unread:
        yield unread


def cause_lines(server: Server, kinds: int) -> None:
    """Have the server log lines of different kinds, so that no rate limit joins them."""
    for number in range(kinds):
        assert server.request("GET", f"/nowhere/{number}").status == 404
        assert server.request(f"BREW{number}", "/api/client").status == 405
        with socket.create_connection((LOOPBACK, server.port), timeout=PATIENCE_S) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while stranger.recv(4096):
                pass


@pytest.mark.parametrize("format_", ["json", "console"])
def test_a_log_that_nobody_reads_holds_up_nothing(
    start_server: StartServer, unread: Unread, format_: str
) -> None:
    """The start, check-ins, probes and SIGTERM. Each of them logs, and so may any stranger."""
    server = start_logging_to(start_server, unread.path, logging={"format": format_})
    wait_until(lambda: is_ready(server), "readiness")
    cause_lines(server, 1)
    assert server.request("POST", "/api/client").status == 204
    assert server.management("/healthz").status == 200
    assert server.stop() == 0


def test_a_log_that_is_written_in_the_loop_holds_up_everything(
    start_server: StartServer, unread: Unread
) -> None:
    """The control: what the test above is there to find."""
    module = ("tests.support.faults.wrong_server", "log_in_the_loop")
    server = start_logging_to(start_server, unread.path, module=module)
    wait_until(lambda: is_writing(server.process.pid), "the event loop to write")
    server.process.send_signal(signal.SIGTERM)  # whose handler interrupts the call for a moment
    wait_until(lambda: is_writing(server.process.pid), "the event loop to write on")
    server.process.kill()


def is_writing(pid: int) -> bool:
    """Whether the main thread is in a call on standard output or error."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/syscall").read_text().split()[1:2] in (["0x1"], ["0x2"])
    return False


def test_dropped_lines_are_counted(start_server: StartServer, unread: Unread) -> None:
    """In a metric, and in the log once it is read again; the lines before are whole."""
    server = start_logging_to(start_server, unread.path, constants={MAX_WAITING_BYTES: 1000})
    wait_until(lambda: is_ready(server), "readiness")
    assert metric(server, DROPPED) == 0
    cause_lines(server, 3)
    dropped = metric(server, DROPPED)
    assert dropped > 0
    unread.resume()
    entries = [json.loads(line) for line in unread.read_until("log lines dropped") if line]
    assert [entry["lines"] for entry in entries if entry["event"] == "log lines dropped"] == [
        dropped
    ]
    assert server.stop() == 0
