"""The rig of every measurement: PostgreSQL, certificates, the load generator, a server at work."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import re
import resource
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import gate, identities
from benchmarks.contender import Contender, Site, free_port, running
from benchmarks.identities import Identities
from benchmarks.instruments import Meter
from benchmarks.load import Load, LoadResult, Mode, compile_load, percentiles_ms, run
from benchmarks.postgresql import PostgreSql
from benchmarks.programs import BUILD, BenchmarkError
from benchmarks.results import Numbers, Results

BUSY = 0.9  # a load generator that computes for more of its time than this was the bottleneck
DESCRIPTORS = 65536  # two thousand idle connections, and as many again behind a proxy

_VERSIONS = {
    "nginx": ("nginx -v", r"nginx/(\S+)"),
    "Node.js": ("node --version", r"v(\S+)"),
    "Go": ("go version", r"go(\d\S*)"),
    "C compiler": ("cc --version", r"^(.+)"),
}


@dataclass(frozen=True, slots=True)
class Rig:
    """The parts, and `results`. `directory` is scratch with a short path, for Unix sockets.

    `seconds` is the measured time of each workload in each round.
    """

    postgres: PostgreSql
    load_program: Path
    identities: Identities
    directory: Path
    results: Results
    seconds: float
    idle_connections: int
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @contextlib.contextmanager
    def at_work(self, contender: Contender) -> Iterator[Bench]:
        """Start `contender` on a fresh database, checked by the gate. Raises `BenchmarkError`."""
        number = next(self._numbers)
        site = Site(
            port=free_port(socket.SOCK_STREAM),
            announce_port=free_port(socket.SOCK_DGRAM),
            source_port=free_port(socket.SOCK_DGRAM),
            management_ports=tuple(free_port(socket.SOCK_STREAM) for _ in range(contender.servers)),
            postgres=self.postgres,
            database=f"bench_{number}",
            identities=self.identities,
            directory=self.directory / str(number),
        )
        site.directory.mkdir()
        self.postgres.create(site.database)
        try:
            contender.make_tables(self.postgres, site.database)
            with running(contender, site) as processes:
                (gate.check if contender.does_the_job else gate.check_answers)(site)
                yield Bench(self, contender, site, processes)
        finally:
            self.postgres.drop(site.database)


@dataclass(frozen=True, slots=True)
class Bench:
    """A server at work, ready to be measured. `server` holds its process ids."""

    rig: Rig
    contender: Contender
    site: Site
    server: list[int]

    def load(
        self, mode: Mode, connections: int, *, seconds: float | None = None, rate: float = 0.0
    ) -> Load:
        return Load(
            self.rig.load_program,
            mode,
            self.site.port,
            self.site.identities.bundle,
            connections=connections,
            seconds=self.rig.seconds if seconds is None else seconds,
            warmup_s=warmup_s(self.rig.seconds),
            rate=rate,
        )

    def note(self, text: str) -> None:
        """Add a note about this contender below the table."""
        self.rig.results.note(f"{self.contender.title}: {text}")

    def meter(self) -> Meter:
        return Meter(self.server, [self.rig.postgres.pid])

    def check_ins(
        self,
        mode: Mode,
        connections: int,
        *beside: AbstractContextManager[object],
        rate: float = 0.0,
    ) -> tuple[LoadResult, Numbers]:
        """Check in for the measured time, with instruments `beside`."""
        meter = self.meter()
        result = run(self.load(mode, connections, rate=rate), *beside, meter)
        self.check(result)
        return result, {
            "rate": result.rate,
            **percentiles_ms(result.latencies_us),
            "server_cpu_ms": meter.server_s / result.count * 1000,
            "database_cpu_ms": meter.database_s / result.count * 1000,
            "generator_busy": result.cpu_s / result.seconds,
        }

    def check(self, result: LoadResult) -> None:
        """Note errors and a saturated generator. Raises `BenchmarkError` without any answer."""
        if result.count == 0:
            raise BenchmarkError(f"{result.mode}: no check-in was answered ({result.first_error})")
        if result.errors:
            self.note(
                f"{result.mode}: {result.errors} errors beside {result.count} answers"
                f" ({result.first_error})"
            )
        if result.seconds and result.cpu_s / result.seconds > BUSY and result.mode != "idle":
            self.note(f"{result.mode}: the load generator was the bottleneck")


def warmup_s(seconds: float) -> float:
    """Return how long to go on before a measured time of `seconds`."""
    return min(1.0, seconds / 4)


@contextlib.contextmanager
def rig(
    clients: int, *, seconds: float, idle_connections: int = 0, build: Path = BUILD
) -> Iterator[Rig]:
    """Build below `build` and start all of it, with certificates for `clients` clients.

    Raises `BenchmarkError`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    build.mkdir(exist_ok=True)
    load_program = compile_load(build)
    # The data lies beside the build: /tmp may be memory, where fsync costs nothing. The rest lies
    # below /tmp by name: paths of Unix sockets are short.
    with (
        _scratch(build) as data,
        _scratch(Path("/tmp")) as directory,  # noqa: S108
        PostgreSql(data / "postgresql") as postgres,
    ):
        results = Results(machine=machine(postgres))
        results.settings.update(seconds=seconds, idle_connections=idle_connections)
        made = identities.make(directory / "certs", clients)
        yield Rig(postgres, load_program, made, directory, results, seconds, idle_connections)


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(
        prefix="run-", dir=parent, ignore_cleanup_errors=True
    ) as directory:
        yield Path(directory)


def machine(postgres: PostgreSql) -> dict[str, str]:
    """Return the hardware, the kernel and the versions: two machines' numbers do not compare."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = re.search(r"(?m)^(?:model name|Model)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text())
    found = {
        "CPU": cpu[1].strip() if cpu else platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory_gib:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "OpenSSL": ssl.OPENSSL_VERSION.split()[1],
        "PostgreSQL": postgres.version().split()[0],
        "one commit": f"{postgres.commit_ms():.2f} ms (median, one client)",
    }
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    for name, (command, pattern) in _VERSIONS.items():
        with contextlib.suppress(FileNotFoundError):
            done = subprocess.run(
                command.split(), env={"PATH": path}, capture_output=True, text=True, timeout=10
            )  # its status says nothing
            if match := re.search(pattern, done.stdout + done.stderr, re.MULTILINE):
                found[name] = match[1]
    return found
