"""One run: every peer in every round, in turn, so that what the machine does meets all alike."""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import gate, identities, machine, ours, streams
from benchmarks.database import Postgres
from benchmarks.errors import BenchmarkError, Refused, Unavailable
from benchmarks.identities import Identities
from benchmarks.load import compile_load
from benchmarks.peers.base import Peer, Site, free_port, running
from benchmarks.peers.this_server.peer import ThisServer
from benchmarks.places import BUILD
from benchmarks.results import Results, Row
from benchmarks.workloads import CONNECTIONS, WORKLOADS, Bench, Numbers

OWN_WORKLOADS = ("users", "reuse_port", "streams")
DESCRIPTORS = 65536  # two thousand idle connections, and as many again behind a proxy


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. `seconds` is the measured time of each workload in each round."""

    peers: Sequence[Peer]
    workloads: Sequence[str]
    rounds: int
    seconds: float
    idle_connections: int


def run(plan: Plan) -> Results:
    """Build, measure, and return the numbers. Raises `BenchmarkError` where nothing is possible."""
    _raise_descriptor_limit()
    BUILD.mkdir(exist_ok=True)
    load_program = compile_load(BUILD)
    prepared, left_out = _prepare(plan.peers)
    # The data lies beside the build: /tmp may be memory, where fsync costs nothing.
    with (
        _scratch(BUILD) as data,
        _scratch(None) as scratch,
        Postgres(data / "postgresql") as postgres,
    ):
        results = Results(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
            machine=machine.describe(postgres),
            settings={
                "rounds": plan.rounds,
                "seconds": plan.seconds,
                "idle_connections": plan.idle_connections,
            },
            rows=[Row(p.name, p.title, p.writes, p.does_the_job) for p in prepared],
            left_out=left_out,
        )
        campaign = _Campaign(
            plan,
            prepared,
            results,
            postgres,
            load_program,
            scratch,
            identities.make(scratch / "certs", CONNECTIONS),
        )
        campaign.run()
    return results


class _Campaign:
    def __init__(
        self,
        plan: Plan,
        peers: list[Peer],
        results: Results,
        postgres: Postgres,
        load_program: Path,
        scratch: Path,
        certificates: Identities,
    ) -> None:
        self._plan = plan
        self._peers = peers
        self._results = results
        self._postgres = postgres
        self._load_program = load_program
        self._scratch = scratch
        self._identities = certificates
        self._numbers = itertools.count()

    def run(self) -> None:
        workloads = [name for name in WORKLOADS if name in self._plan.workloads]
        if "users" in self._plan.workloads:
            for users in ours.USERS:
                _say(f"filling a database with {users:,} users")
                ours.fill(self._postgres, f"users_{users}", users)
        for number in range(self._plan.rounds):
            _say(f"round {number + 1} of {self._plan.rounds}")
            # Each is first and last in turn.
            turn = number % len(self._peers) if self._peers else 0
            if workloads:
                for peer in [*self._peers[turn:], *self._peers[:turn]]:
                    self._measure(peer, workloads)
            own = {"users": self._users, "reuse_port": self._reuse_port, "streams": self._streams}
            for name, measure in own.items():
                if name in self._plan.workloads:
                    self._measure_own(name, measure)

    def _measure(self, peer: Peer, workloads: Sequence[str]) -> None:
        try:
            with self._at_work(peer) as bench:
                for workload in workloads:
                    numbers = WORKLOADS[workload](bench)
                    self._results.add(workload, peer.name, numbers)
                    _say(f"  {peer.name}: {workload}: {_brief(numbers)}")
        except BenchmarkError as error:
            what = "refused by the gate: " if isinstance(error, Refused) else ""
            _say(f"  {peer.name}: left out: {what}{error}")
            self._peers = [other for other in self._peers if other is not peer]
            (row,) = [row for row in self._results.rows if row.name == peer.name]
            self._results.leave_out(row, f"{what}{error}")

    def _measure_own(self, name: str, measure: Callable[[], None]) -> None:
        try:
            measure()
        except BenchmarkError as error:
            _say(f"  {name}: {error}")
            self._results.note(f"{name}: a round failed: {error}")

    def _users(self) -> None:
        for users in ours.USERS:
            numbers = ours.drive_store(self._postgres, f"users_{users}", users, self._plan.seconds)
            self._results.add("users", str(users), numbers)
            _say(f"  users: {users:,}: {_brief(numbers)}")

    def _reuse_port(self) -> None:
        for servers in ours.SERVERS:
            with self._at_work(ThisServer(servers)) as bench:
                numbers = WORKLOADS["keep-alive"](bench)
            self._results.add("reuse_port", str(servers), numbers)
            _say(f"  reuse_port: {servers}: {_brief(numbers)}")

    def _streams(self) -> None:
        for count in streams.STREAMS:
            with self._at_work(ThisServer()) as bench:
                numbers = streams.measure(bench, count)
            self._results.add("streams", str(count), numbers)
            _say(f"  streams: {count}: {_brief(numbers)}")

    @contextlib.contextmanager
    def _at_work(self, peer: Peer) -> Iterator[Bench]:
        """Start a peer on a fresh database and let it through the gate."""
        number = next(self._numbers)
        database = f"bench_{number}"
        directory = self._scratch / str(number)
        directory.mkdir()
        site = Site(
            port=free_port(socket.SOCK_STREAM),
            announce_port=free_port(socket.SOCK_DGRAM),
            source_port=free_port(socket.SOCK_DGRAM),
            database_socket=self._postgres.socket_directory,
            database_user=self._postgres.user,
            database=database,
            identities=self._identities,
            directory=directory,
        )
        self._postgres.create(database, peer.schema)
        try:
            with running(peer, site) as processes:
                check = gate.check if peer.does_the_job else gate.check_answers
                check(
                    gate.Candidate(
                        port=site.port,
                        announce_port=site.announce_port,
                        identities=self._identities,
                        query=functools.partial(self._postgres.execute, database),
                        load_program=self._load_program,
                    )
                )
                yield Bench(
                    load_program=self._load_program,
                    port=site.port,
                    identities=self._identities,
                    server=processes,
                    database=[self._postgres.pid],
                    seconds=self._plan.seconds,
                    idle_connections=self._plan.idle_connections,
                    notes=lambda text: self._results.note(f"{peer.title}: {text}"),
                )
        finally:
            self._postgres.drop(database)


def _prepare(peers: Sequence[Peer]) -> tuple[list[Peer], dict[str, str]]:
    prepared, left_out = [], {}
    for peer in peers:
        try:
            peer.prepare(BUILD)
        except (Unavailable, BenchmarkError) as error:
            _say(f"left out: {peer.title}: {error}")
            left_out[peer.title] = str(error)
        else:
            prepared.append(peer)
    return prepared, left_out


@contextlib.contextmanager
def _scratch(parent: Path | None) -> Iterator[Path]:
    # Below /tmp by name: paths of Unix sockets are short.
    directory = Path(tempfile.mkdtemp(prefix="run-", dir=parent or "/tmp"))  # noqa: S108
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _brief(numbers: Numbers) -> str:
    shown = (
        *("rate", "p50_ms", "p99_ms", "server_cpu_ms", "database_cpu_ms"),
        *("kib_per_connection", "kib_per_stream", "cpu_us_per_message"),
    )
    return ", ".join(f"{name} {numbers[name]:.4g}" for name in shown if name in numbers)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
