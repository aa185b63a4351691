"""Servers that are forked from a process which has imported their modules: 0.25 s of CPU less each.

`python -W error -m tests.support.forked_server FD` forks a server for each request on socket FD,
until the other end closes it. The server is a process like any other: it has its own session,
arguments, environment and exit status.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.support.with_constants import replace_constants

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "tornado_status.cli",
    "tornado_status.server",
    "tornado_status.store",
    "tornado_status.observe.logging_setup",
)


class ForkedServer:
    """A server, with what the tests use of `subprocess.Popen`."""

    def __init__(
        self,
        forks: socket.socket,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        constants: Mapping[str, object],
    ) -> None:
        reading, writing = zip(*[os.pipe() for _ in range(3)], strict=True)
        request = [list(arguments), dict(environment), dict(constants)]
        socket.send_fds(forks, [json.dumps(request).encode()], writing)
        for descriptor in writing:
            os.close(descriptor)
        self.stdout = os.fdopen(reading[0])
        self.stderr = os.fdopen(reading[1])
        self._news = os.fdopen(reading[2], "rb", buffering=0)  # its pid, later its exit status
        self.pid = int(self._news.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            ended = select.poll()
            ended.register(self._news, select.POLLIN)
            if not ended.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired("a forked server", timeout or 0)
            self.returncode = int(self._news.readline())
            self._news.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def forking() -> Iterator[socket.socket]:
    """Run the process that forks servers; yield the socket for requests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        number = theirs.fileno()
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", __name__, str(number)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[number],
        )
        theirs.close()
        yield ours
        ours.close()
        process.wait(60)


def wait_for_request(requests: socket.socket) -> tuple[list[str], dict[str, object]] | None:
    """Fork at each request. Return in the child its arguments and constants; None at the end."""
    running: dict[int, tuple[int, int]] = {}  # by the pidfd: the pid, and where to tell its status
    with requests, selectors.DefaultSelector() as waiting:
        waiting.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fd in running:
                    waiting.unregister(key.fd)
                    pid, news = running.pop(key.fd)
                    os.close(key.fd)
                    _, status = os.waitpid(pid, 0)
                    with contextlib.suppress(BrokenPipeError):  # the test has ended
                        os.write(news, b"%d\n" % os.waitstatus_to_exitcode(status))
                    os.close(news)
                    continue
                message, (out, errors, news), _, _ = _receive(requests)
                if not message:
                    return None
                pid = os.fork()
                if pid == 0:
                    _become(out, errors)
                    for number in (out, errors, news, *running):
                        os.close(number)
                    for _, other in running.values():
                        os.close(other)
                    arguments, environment, constants = json.loads(message)
                    os.environ.clear()
                    os.environ.update(environment)
                    return arguments, constants
                os.close(out)
                os.close(errors)
                os.write(news, b"%d\n" % pid)
                descriptor = os.pidfd_open(pid)
                waiting.register(descriptor, selectors.EVENT_READ)
                running[descriptor] = (pid, news)


def _receive(requests: socket.socket) -> tuple[bytes, list[int], int, object]:
    message, descriptors, flags, address = socket.recv_fds(requests, 1 << 20, 3)
    return message, descriptors or [-1, -1, -1], flags, address


def _become(out: int, errors: int) -> None:
    os.setsid()
    os.dup2(out, 1)
    os.dup2(errors, 2)


if __name__ == "__main__":
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()
    found = wait_for_request(socket.socket(fileno=int(sys.argv[1])))
    if found is not None:
        from tornado_status.cli import main

        replace_constants(found[1])
        sys.argv = ["tornado-status", *found[0]]
        sys.exit(main(found[0]))
