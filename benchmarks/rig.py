"""What every measurement needs: PostgreSQL, certificates, the load generator, a server at work."""

from __future__ import annotations

import contextlib
import itertools
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import gate, identities, machine
from benchmarks.contender import Contender, Site, free_port, running
from benchmarks.identities import Identities
from benchmarks.instruments import Meter
from benchmarks.load import Load, LoadResult, Mode, compile_load, percentiles_ms, run
from benchmarks.postgresql import PostgreSql
from benchmarks.programs import BUILD, BenchmarkError
from benchmarks.results import Numbers, Results

BUSY = 0.9  # a load generator that computes for more of its time than this was the bottleneck
DESCRIPTORS = 65536  # two thousand idle connections, and as many again behind a proxy


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
                check = gate.check if contender.does_the_job else gate.check_answers
                check(site, self.load_program)
                yield Bench(self, contender, site, processes)
        finally:
            self.postgres.drop(site.database)


@dataclass(frozen=True, slots=True)
class Bench:
    """A server at work, that can be measured. `server` are its process numbers."""

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
            self.site.identities.listed,
            connections=connections,
            seconds=self.rig.seconds if seconds is None else seconds,
            warmup_s=warmup_s(self.rig.seconds),
            rate=rate,
        )

    def note(self, text: str) -> None:
        """Keep what a reader of the table must know."""
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
        """Note what was wrong. Raises `BenchmarkError` if nothing was right."""
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
    """Build below `build` and start all of it, with certificates for so many clients.

    Raises `BenchmarkError`.
    """
    raise_descriptor_limit()
    build.mkdir(exist_ok=True)
    load_program = compile_load(build)
    # The data lies beside the build: /tmp may be memory, where fsync costs nothing. The rest lies
    # below /tmp by name: paths of Unix sockets are short.
    with (
        _scratch(build) as data,
        _scratch(Path("/tmp")) as directory,  # noqa: S108
        PostgreSql(data / "postgresql") as postgres,
    ):
        results = Results(machine=machine.describe(postgres))
        results.settings.update(seconds=seconds, idle_connections=idle_connections)
        made = identities.make(directory / "certs", clients)
        yield Rig(postgres, load_program, made, directory, results, seconds, idle_connections)


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def raise_descriptor_limit() -> None:
    """Allow as many open files as the measurements need, or as many as this user may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
