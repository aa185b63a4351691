"""What every measurement stands in: PostgreSQL, certificates, the load generator, and scratch."""

from __future__ import annotations

import contextlib
import itertools
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import gate, identities, machine
from benchmarks.contender import Contender, Site, free_port, running
from benchmarks.identities import Identities
from benchmarks.load import compile_load
from benchmarks.postgresql import PostgreSql
from benchmarks.programs import BUILD
from benchmarks.results import Results
from benchmarks.workloads import Bench

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
                yield Bench(
                    load_program=self.load_program,
                    site=site,
                    server=processes,
                    database=self.postgres.pid,
                    seconds=self.seconds,
                    idle_connections=self.idle_connections,
                    note=lambda text: self.results.note(f"{contender.title}: {text}"),
                )
        finally:
            self.postgres.drop(site.database)


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
