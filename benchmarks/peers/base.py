"""What every peer is: a name, what it needs, and how it is started, awaited and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.database import STATUS_SCHEMA
from benchmarks.errors import BenchmarkError, Unavailable
from benchmarks.identities import Identities
from benchmarks.places import ROOT

GROUP = "239.255.66.66"
BROADCAST = "127.255.255.255"
LOOPBACK = "127.0.0.1"

START_TIMEOUT_S = 60.0  # a machine under load, a cold disk
STOP_TIMEOUT_S = 20.0  # a drain of ten seconds, and as much again
LOG_LINES = 15  # of a peer that did not start, shown to whoever runs the benchmark


@dataclass(frozen=True, slots=True)
class Site:
    """Where one start of a peer listens, what it writes to, whom it tells.

    `directory` is scratch, with a path that is short enough for a Unix socket in it.
    """

    port: int
    announce_port: int
    source_port: int
    database_socket: str
    database_user: str
    database: str
    identities: Identities
    directory: Path

    def environment(self) -> dict[str, str]:
        """Return what the peers read their settings from."""
        return {
            "PEER_PORT": str(self.port),
            "PEER_CERTIFICATE": str(self.identities.server_certificate),
            "PEER_KEY": str(self.identities.server_key),
            "PEER_CA": str(self.identities.ca),
            "PEER_ANNOUNCER_KEY": str(self.identities.announcer_key),
            "PEER_GROUP": GROUP,
            "PEER_BROADCAST": BROADCAST,
            "PEER_ANNOUNCE_PORT": str(self.announce_port),
            "PEER_DATABASE_SOCKET": self.database_socket,
            "PEER_DATABASE_USER": self.database_user,
            "PEER_DATABASE": self.database,
        }


@dataclass(frozen=True, slots=True)
class Command:
    """One program of a peer, and what it wants in its environment besides the `Site`'s."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class Peer(ABC):
    """A server that is measured. `title` stands in the table, `writes` in its notes."""

    name: str
    title: str
    writes: str
    does_the_job = True  # False for a ceiling, which only answers
    schema = STATUS_SCHEMA

    def prepare(self, build: Path) -> None:  # noqa: B027 - some need nothing
        """Build what has to be built below `build`. Raises `Unavailable`, `BenchmarkError`."""

    @abstractmethod
    def commands(self, site: Site) -> list[Command]:
        """Return the programs to start, in order."""

    def is_ready(self, site: Site) -> bool:
        """Return whether what `commands` started can be asked by now."""
        return accepts((LOOPBACK, site.port))


@contextlib.contextmanager
def running(peer: Peer, site: Site) -> Iterator[list[int]]:
    """Run `peer` for the block; give its process numbers. Raises `BenchmarkError`."""
    log_path = site.directory / "log"
    processes: list[subprocess.Popen[bytes]] = []
    with log_path.open("wb") as log:
        try:
            for command in peer.commands(site):
                processes.append(
                    subprocess.Popen(
                        list(command.arguments),
                        cwd=ROOT,
                        env={**_plain_environment(), **site.environment(), **command.environment},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            _wait_ready(peer, site, processes, log_path)
            yield [process.pid for process in processes]
        finally:
            for process in reversed(processes):
                _end(process)


def run_tool(command: Sequence[str | Path], what: str, **environment: str) -> None:
    """Run one step of a build. Raises `BenchmarkError` with the end of its output."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchmarkError(f"{what} failed:\n{_tail(done.stdout)}")


def find_program(name: str, package: str, *directories: str) -> Path:
    """Return a program on PATH or in `directories`. Raises `Unavailable` naming the package."""
    for directory in [*os.get_exec_path(), *directories]:
        path = Path(directory) / name
        if os.access(path, os.X_OK) and path.is_file():
            return path
    raise Unavailable(f"{name} is not installed (Debian: {package})")


def free_port(kind: socket.SocketKind) -> int:
    """Return a port of 127.0.0.1 that nobody uses just now."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind((LOOPBACK, 0))
        port: int = sock.getsockname()[1]
        return port


def accepts(address: tuple[str, int] | str) -> bool:
    """Return whether somebody listens on a TCP address, or on the path of a Unix socket."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        return True


def _wait_ready(
    peer: Peer, site: Site, processes: Sequence[subprocess.Popen[bytes]], log_path: Path
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not peer.is_ready(site):
        ended = any(process.poll() is not None for process in processes)
        if ended or time.monotonic() > deadline:
            text = log_path.read_text(errors="replace")
            raise BenchmarkError(f"it does not start:\n{_tail(text)}")
        time.sleep(0.05)  # another process: there is nothing to wait on


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started: its process group, which is its own."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _plain_environment() -> dict[str, str]:
    """The environment without what would change a peer's settings."""
    unwanted = ("TORNADO_STATUS_", "DATABASE_URL", "PORT", "PG", "NODE_", "GO", "PYTHON")
    return {name: v for name, v in os.environ.items() if not name.startswith(unwanted)}


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-LOG_LINES:])
