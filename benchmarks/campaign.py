"""One run: every peer in every round, in turn, so that what the machine does meets all alike."""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks import machine, ours, streams
from benchmarks.errors import BenchmarkError, Refused, Unavailable
from benchmarks.load import compile_load
from benchmarks.peers.base import Peer
from benchmarks.peers.this_server.peer import ThisServer
from benchmarks.places import BUILD
from benchmarks.results import Results, Row
from benchmarks.rig import Rig, rig
from benchmarks.workloads import CONNECTIONS, WORKLOADS, Bench, Numbers

OWN_WORKLOADS = ("users", "reuse_port", "streams")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. `seconds` is the measured time of each workload in each round."""

    peers: Sequence[Peer]
    workloads: Sequence[str]
    rounds: int
    seconds: float
    idle_connections: int
    budget_s: float = float("inf")  # no round but the first begins that would end later


def run(plan: Plan) -> Results:
    """Build, measure, and return the numbers. Raises `BenchmarkError` where nothing is possible."""
    BUILD.mkdir(exist_ok=True)
    compile_load(BUILD)  # first: without it nothing is possible
    prepared, left_out = _prepare(plan.peers)
    with rig(CONNECTIONS) as surroundings:
        results = Results(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
            machine=machine.describe(surroundings.postgres),
            settings={
                "rounds": plan.rounds,
                "seconds": plan.seconds,
                "idle_connections": plan.idle_connections,
            },
            rows=[Row(p.name, p.title, p.writes, p.does_the_job) for p in prepared],
            left_out=left_out,
        )
        _Campaign(plan, prepared, results, surroundings).run()
    return results


class _Campaign:
    def __init__(self, plan: Plan, peers: list[Peer], results: Results, surroundings: Rig) -> None:
        self._plan = plan
        self._peers = peers
        self._results = results
        self._rig = surroundings

    def run(self) -> None:
        workloads = [name for name in WORKLOADS if name in self._plan.workloads]
        if "users" in self._plan.workloads:
            for users in ours.USERS:
                _say(f"filling a database with {users:,} users")
                ours.fill(self._rig.postgres, f"users_{users}", users)
        begun, longest_s = time.monotonic(), 0.0
        for number in range(self._plan.rounds):
            at = time.monotonic()
            if number and at - begun + longest_s > self._plan.budget_s:
                self._results.note(f"{number} of {self._plan.rounds} rounds: no time for more")
                break
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
            self._results.settings["rounds"] = number + 1
            longest_s = max(longest_s, time.monotonic() - at)

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
            ours.touch(self._rig.postgres, f"users_{users}")
            self._drive(users, str(users))
        self._rig.postgres.execute("postgres", "CHECKPOINT")
        most = max(ours.USERS)
        self._drive(most, f"{most} {ours.AFTER_CHECKPOINT}")

    def _drive(self, users: int, row: str) -> None:
        numbers = ours.drive_store(self._rig.postgres, f"users_{users}", users, self._plan.seconds)
        self._results.add("users", row, numbers)
        _say(f"  users: {row}: {_brief(numbers)}")

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
        with self._rig.at_work(peer) as working:
            yield Bench(
                load_program=self._rig.load_program,
                port=working.site.port,
                identities=self._rig.identities,
                server=working.processes,
                database=[self._rig.postgres.pid],
                seconds=self._plan.seconds,
                idle_connections=self._plan.idle_connections,
                notes=lambda text: self._results.note(f"{peer.title}: {text}"),
            )


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


def _brief(numbers: Numbers) -> str:
    shown = (
        *("rate", "p50_ms", "p99_ms", "server_cpu_ms", "database_cpu_ms"),
        *("kib_per_connection", "kib_per_stream", "cpu_us_per_message"),
    )
    return ", ".join(f"{name} {numbers[name]:.4g}" for name in shown if name in numbers)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
