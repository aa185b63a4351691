"""A server that is compared: where one start of it runs, how it is started, awaited and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.identities import Identities
from benchmarks.postgresql import PostgreSql
from benchmarks.programs import ROOT, BenchmarkError, tail

GROUP = "239.255.66.66"
BROADCAST = "127.255.255.255"
LOOPBACK = "127.0.0.1"

START_TIMEOUT_S = 60.0  # a machine under load, a cold disk
MANAGEMENT_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 20.0  # a drain of ten seconds, and as much again

# These would change a contender's settings.
UNWANTED = ("TORNADO_STATUS_", "DATABASE_URL", "PORT", "PG", "NODE_", "GO", "PYTHON")


@dataclass(frozen=True, slots=True)
class Site:
    """One start of a contender: its ports, its database, its certificates.

    `directory` is scratch, with a path that is short enough for a Unix socket in it.
    """

    port: int
    announce_port: int
    source_port: int
    management_ports: tuple[int, ...]
    postgres: PostgreSql
    database: str
    identities: Identities
    directory: Path

    def settings(self) -> dict[str, str]:
        """Return the settings that a contender finds in its environment, after `PEER_`."""
        return {
            "PORT": str(self.port),
            "DIRECTORY": str(self.directory),
            "CERTIFICATE": str(self.identities.certificate("server")),
            "KEY": str(self.identities.key("server")),
            "CA": str(self.identities.certificate("ca")),
            "ANNOUNCER_KEY": str(self.identities.key("announcer")),
            "GROUP": GROUP,
            "BROADCAST": BROADCAST,
            "ANNOUNCE_PORT": str(self.announce_port),
            "DATABASE_SOCKET": self.postgres.socket_directory,
            "DATABASE_USER": self.postgres.user,
            "DATABASE": self.database,
        }


def accepts(address: tuple[str, int] | str) -> bool:
    """Return whether a program listens on a TCP address, or on the path of a Unix socket."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        return sock.connect_ex(address) == 0


def management(port: int, page: str) -> str:
    """Return a page of a management port. Raises `BenchmarkError` if it is not answered 200."""
    url = f"http://{LOOPBACK}:{port}/{page}"
    try:
        with urllib.request.urlopen(url, timeout=MANAGEMENT_TIMEOUT_S) as answer:
            text: str = answer.read().decode()
    except OSError as error:
        raise BenchmarkError(f"{url} cannot be read: {error}") from error
    return text


@dataclass(frozen=True, slots=True)
class Contender:
    """A server that is measured. `title` stands in the table, `writes` in its notes."""

    name: str
    title: str
    # The programs to start, in order. It builds what is missing, or raises `BenchmarkError`.
    commands: Callable[[Site], Sequence[Sequence[object]]]
    writes: str = "status row"
    does_the_job: bool = True  # False for a ceiling, which only answers
    make_tables: Callable[[PostgreSql, str], None] = PostgreSql.make_status_table
    is_ready: Callable[[Site], bool] = lambda site: accepts((LOOPBACK, site.port))
    servers: int = 1  # on one port, each with a management port


def free_port(kind: socket.SocketKind) -> int:
    """Return a port of 127.0.0.1 that is not used just now."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind((LOOPBACK, 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def running(contender: Contender, site: Site) -> Iterator[list[int]]:
    """Run `contender` for the block; yield its process ids. Raises `BenchmarkError`."""
    log_path = site.directory / "log"
    environment = {name: v for name, v in os.environ.items() if not name.startswith(UNWANTED)}
    environment |= {f"PEER_{name}": value for name, value in site.settings().items()}
    with log_path.open("wb") as log, contextlib.ExitStack() as ending:
        processes = []
        for command in contender.commands(site):
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            ending.callback(_end, process)
            processes.append(process)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not contender.is_ready(site):
            ended = any(process.poll() is not None for process in processes)
            if ended or time.monotonic() > deadline:
                text = log_path.read_text(errors="replace")
                raise BenchmarkError(f"it does not start:\n{tail(text)}")
            time.sleep(0.05)
        yield [process.pid for process in processes]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started: its process group, which is its own."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
