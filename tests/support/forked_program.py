"""Programs that are forked from a process which has imported them: 0.25 s of CPU less each.

`python -W error -m tests.support.forked_program FD` forks a program for each request on socket FD,
until the other end closes it. The program is a process like any other: it has its own session,
arguments, environment, working directory and exit status.
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
SERVER = "tornado_status.cli"
LISTENER = "listeners.cli"
POSTGRES = "tests.support.postgres"
MODULES = (  # the programs, and what they import late
    SERVER,
    LISTENER,
    POSTGRES,
    "tornado_status.server",
    "tornado_status.store",
    "tornado_status.observe.logging_setup",
)


class ForkedProgram:
    """The function `main` of a module, with what the tests use of `subprocess.Popen`."""

    def __init__(
        self,
        forks: socket.socket,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        constants: Mapping[str, object] | None = None,
        cwd: Path = ROOT,
    ) -> None:
        stdin, given = os.pipe()
        reading, writing = zip(*[os.pipe() for _ in range(3)], strict=True)
        request = [module, list(arguments), dict(environment), constants or {}, str(cwd)]
        socket.send_fds(forks, [json.dumps(request).encode()], [stdin, *writing])
        for descriptor in (stdin, *writing):
            os.close(descriptor)
        self.stdin = os.fdopen(given, "w")
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
                raise subprocess.TimeoutExpired("a forked program", timeout or 0)
            self.returncode = int(self._news.readline())
            self._news.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def forking() -> Iterator[socket.socket]:
    """Run the process that forks programs; yield the socket for requests."""
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


def wait_for_request(requests: socket.socket) -> tuple[str, list[str], dict[str, object]] | None:
    """Fork at each request. Return in the child its module, arguments and constants.

    None at the end.
    """
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
                message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 4)
                if not message:
                    return None
                news = descriptors.pop()
                pid = os.fork()
                if pid == 0:
                    os.setsid()
                    for number, descriptor in enumerate(descriptors):
                        os.dup2(descriptor, number)
                    for number in (*descriptors, news, *running):
                        os.close(number)
                    for _, other in running.values():
                        os.close(other)
                    module, arguments, environment, constants, cwd = json.loads(message)
                    os.environ.clear()
                    os.environ.update(environment)
                    os.chdir(cwd)
                    return module, arguments, constants
                for number in descriptors:
                    os.close(number)
                os.write(news, b"%d\n" % pid)
                descriptor = os.pidfd_open(pid)
                waiting.register(descriptor, selectors.EVENT_READ)
                running[descriptor] = (pid, news)


if __name__ == "__main__":
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()
    found = wait_for_request(socket.socket(fileno=int(sys.argv[1])))
    if found is not None:
        module, arguments, constants = found
        replace_constants(constants)
        sys.argv = [module, *arguments]
        sys.exit(sys.modules[module].main(arguments))
