"""What every measurement stands in: PostgreSQL, certificates, the load generator, and scratch.

`Rig.at_work` starts a peer on a fresh database and lets it through the gate.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import gate, identities
from benchmarks.database import Postgres
from benchmarks.identities import Identities
from benchmarks.load import compile_load
from benchmarks.peers.base import Peer, Site, free_port, running
from benchmarks.places import BUILD

DESCRIPTORS = 65536  # two thousand idle connections, and as many again behind a proxy


@dataclass(frozen=True, slots=True)
class AtWork:
    """A peer at work: where it is, and the process numbers of its programs."""

    site: Site
    processes: list[int]


@dataclass(frozen=True, slots=True)
class Rig:
    """The parts. `directory` is scratch with a short path, for it holds Unix sockets."""

    postgres: Postgres
    load_program: Path
    identities: Identities
    directory: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @contextlib.contextmanager
    def at_work(self, peer: Peer) -> Iterator[AtWork]:
        """Start `peer` on a fresh database, checked by the gate. Raises `BenchmarkError`."""
        number = next(self._numbers)
        database = f"bench_{number}"
        directory = self.directory / str(number)
        directory.mkdir()
        site = Site(
            port=free_port(socket.SOCK_STREAM),
            announce_port=free_port(socket.SOCK_DGRAM),
            source_port=free_port(socket.SOCK_DGRAM),
            database_socket=self.postgres.socket_directory,
            database_user=self.postgres.user,
            database=database,
            identities=self.identities,
            directory=directory,
        )
        self.postgres.create(database, peer.schema)
        try:
            with running(peer, site) as processes:
                check = gate.check if peer.does_the_job else gate.check_answers
                check(
                    gate.Candidate(
                        port=site.port,
                        announce_port=site.announce_port,
                        identities=self.identities,
                        query=functools.partial(self.postgres.execute, database),
                        load_program=self.load_program,
                    )
                )
                yield AtWork(site, processes)
        finally:
            self.postgres.drop(database)


@contextlib.contextmanager
def rig(clients: int, build: Path = BUILD) -> Iterator[Rig]:
    """Build below `build` and start all of it, with certificates for so many clients.

    Raises `BenchmarkError`.
    """
    raise_descriptor_limit()
    build.mkdir(exist_ok=True)
    load_program = compile_load(build)
    # The data lies beside the build: /tmp may be memory, where fsync costs nothing.
    with (
        _scratch(build) as data,
        _scratch(None) as directory,
        Postgres(data / "postgresql") as postgres,
    ):
        made = identities.make(directory / "certs", clients)
        yield Rig(postgres, load_program, made, directory)


@contextlib.contextmanager
def _scratch(parent: Path | None) -> Iterator[Path]:
    # Below /tmp by name: paths of Unix sockets are short.
    directory = Path(tempfile.mkdtemp(prefix="run-", dir=parent or "/tmp"))  # noqa: S108
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
