"""What one server, one database and many of each carry: `python -m benchmarks.scaling`.

Everything is measured in every round, in turn. It writes scaling.json, scaling.md and the marked
blocks of docs/scaling.md.
"""

from __future__ import annotations

import argparse
import datetime
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from benchmarks import cost_of_listening, counted, load, machine, ours, scaling_report, wire
from benchmarks.errors import BenchmarkError
from benchmarks.load import Load, Mode
from benchmarks.peers.this_server.peer import ThisServer
from benchmarks.places import BENCHMARKS, BUILD, ROOT
from benchmarks.processes import Meter, pss_kib
from benchmarks.results import Results
from benchmarks.rig import AtWork, Rig, rig
from benchmarks.watch import Watch
from benchmarks.workloads import BUSY, CONNECTIONS, HANDSHAKES, Numbers, warmup_s

CLIENTS = 128  # identities
RATES = (100, 1_000, 4_000)  # check-ins a second that are offered; then as many as are answered
SERVERS_CONNECTIONS = 128  # so that each of three has its share
STREAMS_IN_FLIGHT = 128  # in each
USERS = 20_000  # of each database that stores are driven on
FILLERS = 50_000  # rows of users, to see how large one is

FULL = "full"  # as many check-ins as are answered

BUDGET_S = 285.0  # no round begins that would end later, judged by those before it
CARRIED = 0.95  # of the offered rate: below, it was too much

RESULTS = BENCHMARKS / "results"
PAGE = ROOT / "docs" / "scaling.md"
EXIT_FAILED = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure; `seconds` is the measured time of each thing in each round."""

    rounds: int
    seconds: float
    idle_connections: int
    servers: Sequence[int]  # on one port and one database
    in_flight: Sequence[int]  # check-ins in the store at a time
    streams: Sequence[int]  # stores at once, on one database and on as many
    paces: Sequence[int]  # updates a second, to a listener
    listening_s: float
    budget_s: float = BUDGET_S


FULL_PLAN = Plan(
    rounds=3,
    seconds=1.5,
    idle_connections=1000,
    servers=(1, 2, 3),
    in_flight=(1, 8, 64, 512),
    streams=(1, 2, 3),
    paces=(5_000, 10_000, 20_000, 80_000),
    listening_s=1.0,
)
QUICK_PLAN = Plan(
    rounds=1,
    seconds=0.5,
    idle_connections=200,
    servers=(1, 2),
    in_flight=(1, 512),
    streams=(1, 2),
    paces=(5_000, 20_000),
    listening_s=0.5,
)


def run(plan: Plan) -> Results:
    """Measure all of it. Raises `BenchmarkError`."""
    begun = time.monotonic()
    with rig(CLIENTS) as surroundings:
        results = Results(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
            machine={
                **machine.describe(surroundings.postgres),
                "net.core.rmem_max": Path("/proc/sys/net/core/rmem_max").read_text().strip(),
            },
            settings={"seconds": plan.seconds, "idle_connections": plan.idle_connections},
            rows=[],
        )
        for name in databases(plan):
            ours.fill(surroundings.postgres, name, USERS)
        scaling = Scaling(plan, surroundings, results)
        longest_s = 0.0
        for number in range(plan.rounds):
            at = time.monotonic()
            if number and at - begun + longest_s > plan.budget_s:
                results.note(f"{number} of {plan.rounds} rounds: there was no time for more")
                break
            say(f"round {number + 1} of {plan.rounds}")
            for measure in scaling.everything():
                measure()
            results.settings["rounds"] = number + 1
            longest_s = max(longest_s, time.monotonic() - at)
    return results


def databases(plan: Plan) -> list[str]:
    """Return the names of the databases that stores are driven on; each has its own stream."""
    return [f"stream_{number}" for number in range(max(plan.streams))]


class Scaling:
    """One round after the other, into `results`."""

    def __init__(self, plan: Plan, surroundings: Rig, results: Results) -> None:
        self._plan = plan
        self._rig = surroundings
        self._results = results

    def everything(self) -> Sequence[Callable[[], None]]:
        return [self.one_server, self.servers, self.in_flight, self.streams, self.listening]

    def one_server(self) -> None:
        """One server: memory of connections, handshakes, offered rates, sizes."""
        peer = ThisServer()
        with self._rig.at_work(peer) as working:
            at = Working(self._rig, peer, working, self._plan, self._results)
            self._add("idle", "connection", at.idle())
            for rate in RATES:
                self._add("rates", str(rate), at.check_ins("keep-alive", CONNECTIONS, rate))
            self._add("rates", FULL, at.check_ins("keep-alive", CONNECTIONS))
            self._add("rates", "handshake", at.check_ins("handshake", HANDSHAKES))
            self._add("rates", "resumed", at.check_ins("resumed", HANDSHAKES))
            for name, traffic in wire.measure(working.site.port, self._rig.identities).items():
                numbers = {"bytes": traffic.bytes, "segments": traffic.segments}
                self._add("tcp", name, {**numbers, "on_ethernet": traffic.on_ethernet})
            self._add("disk", "row", at.sizes())

    def servers(self) -> None:
        """Several servers on one port and one database."""
        for count in self._plan.servers:
            peer = ThisServer(count)
            with self._rig.at_work(peer) as working:
                at = Working(self._rig, peer, working, self._plan, self._results)
                numbers = at.check_ins("keep-alive", SERVERS_CONNECTIONS)
            self._add("servers", str(count), numbers)

    def in_flight(self) -> None:
        """The store alone, with so many check-ins in it at a time."""
        for name in databases(self._plan):
            ours.touch(self._rig.postgres, name)
        for count in self._plan.in_flight:
            self._add("in_flight", str(count), self._stores(databases(self._plan)[:1], count))

    def streams(self) -> None:
        """Several stores, on one database, and each on its own: a stream each."""
        for count in self._plan.streams:
            one = self._stores(databases(self._plan)[:1] * count, STREAMS_IN_FLIGHT)
            self._add("one_stream", str(count), one)
            if count > 1:
                own = self._stores(databases(self._plan)[:count], STREAMS_IN_FLIGHT)
                self._add("own_streams", str(count), own)

    def listening(self) -> None:
        """A listener, at several paces."""
        cost_of_listening.measure(
            self._rig, self._results, self._plan.paces, self._plan.listening_s
        )
        say("  listening")

    def _stores(self, names: Sequence[str], in_flight: int) -> Numbers:
        watch = Watch(self._rig.postgres)
        numbers = ours.drive_stores(
            self._rig.postgres, names, USERS, self._plan.seconds, in_flight, watch
        )
        count = numbers["rate"] * self._plan.seconds
        return {
            **numbers,
            "database_cpu_ms": numbers["database_cpu_ms"] - watch.cpu_s / count * 1000,
            **_watched(watch, count),
        }

    def _add(self, workload: str, row: str, numbers: Numbers) -> None:
        self._results.add(workload, row, numbers)
        rate = f": {numbers['rate']:,.0f}/s" if "rate" in numbers else ""
        say(f"  {workload} {row}{rate}")


class Working:
    """Servers at work, and what is measured of them."""

    def __init__(
        self, surroundings: Rig, peer: ThisServer, working: AtWork, plan: Plan, results: Results
    ) -> None:
        self._rig = surroundings
        self._peer = peer
        self._working = working
        self._plan = plan
        self._results = results

    def check_ins(self, mode: Mode, connections: int, rate: float = 0.0) -> Numbers:
        """Check in for the measured time; count all that it moves."""
        meter = Meter(self._working.processes, [self._rig.postgres.pid])
        watch = Watch(self._rig.postgres)
        ear = wire.Ear(self._working.site.announce_port)
        with self._load(mode, connections, rate) as generator:
            generator.wait_event("measuring")
            with ear, watch:
                before = counted.read(self._peer.management_ports)
                meter.start()
                generator.wait_event("measured")
                meter.stop()
                happened = counted.read(self._peer.management_ports) - before
            result = generator.result()
        if not result.count or not happened.batches:
            raise BenchmarkError(f"{mode}: no check-in was answered ({result.first_error})")
        if result.errors:
            self._results.note(f"{mode}: {result.errors} errors ({result.first_error})")
        if result.cpu_s / result.seconds > BUSY:
            self._results.note(f"{mode}: the load generator was the bottleneck")
        if rate and result.rate < CARRIED * rate:
            self._results.note(f"{rate:,.0f} check-ins a second were offered, and not all carried")
        return {
            "rate": result.rate,
            "p50_ms": result.latency_us["p50"] / 1000,
            "p99_ms": result.latency_us["p99"] / 1000,
            "server_cpu_ms": meter.server_s / result.count * 1000,
            "database_cpu_ms": (meter.database_s - watch.cpu_s) / result.count * 1000,
            "batch": happened.check_ins / happened.batches,
            "commits_rate": result.rate * happened.batches / happened.check_ins,
            "commit_ms": happened.commit_s / happened.batches * 1000,
            **_watched(watch, happened.check_ins),
            "datagrams_rate": result.rate * happened.datagrams / happened.check_ins,
            "datagram_bytes": ear.bytes / max(1, ear.datagrams),
            "updates_per_datagram": happened.check_ins / max(1, happened.datagrams),
            "generator_busy": result.cpu_s / result.seconds,
        }

    def idle(self) -> Numbers:
        """Memory of connections that checked in once and stay."""
        before = pss_kib(self._working.processes)
        count = self._plan.idle_connections
        with self._load("idle", count) as holding:
            holding.wait_event("holding")
            after = pss_kib(self._working.processes)
            holding.release()
            holding.result()
        return {"kib": (after - before) / count, "kib_before": before}

    def sizes(self) -> Numbers:
        """Bytes on disk of one entry of the log, and of one user's status, indexes and all."""
        postgres, database = self._rig.postgres, self._working.site.database
        ((log, entries),) = postgres.execute(
            database, "SELECT pg_total_relation_size('check_in'), count(*) FROM check_in"
        )
        status = "SELECT pg_total_relation_size('user_status')"
        ((before,),) = postgres.execute(database, status)
        columns = "seq, last_seen, client_ip, client_port, issuer, serial, first_seen, devices"
        postgres.execute(
            database,
            f"INSERT INTO user_status (email, {columns})"  # noqa: S608 - our own names
            f" SELECT 'filler' || lpad(n::text, 7, '0') || '@example.com', {columns}"
            " FROM (SELECT * FROM user_status LIMIT 1) one, generate_series(1, %s) n",
            FILLERS,
        )
        ((after,),) = postgres.execute(database, status)
        return {
            "log_bytes": log / entries,
            "status_bytes": (after - before) / FILLERS,
            "entries": entries,
        }

    def _load(self, mode: Mode, connections: int, rate: float = 0.0) -> Load:
        return load.Load(
            self._rig.load_program,
            mode,
            self._working.site.port,
            self._rig.identities.listed,
            connections=connections,
            seconds=self._plan.seconds,
            warmup_s=warmup_s(self._plan.seconds),
            rate=rate,
        )


def _watched(watch: Watch, check_ins: float) -> Numbers:
    return {
        "wal_bytes": watch.wal_bytes / check_ins,
        **{f"share_{name}": share for name, share in watch.shares.items()},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description="Measure what one server, one database, and many of each carry.",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="in a minute, a first look, which goes to benchmarks/.build and to no page",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="where scaling.json and scaling.md go (default: benchmarks/results)",
    )
    parser.add_argument(
        "--page",
        type=Path,
        help="whose marked blocks are written (default: docs/scaling.md; but no page with --out)",
    )
    options = parser.parse_args(arguments)
    out: Path = options.out or (BUILD / "scaling" if options.quick else RESULTS)
    page: Path | None = options.page
    if page is None and out == RESULTS:
        page = PAGE
    signal.signal(signal.SIGTERM, _terminated)
    begun = time.monotonic()
    try:
        results = run(QUICK_PLAN if options.quick else FULL_PLAN)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return EXIT_FAILED
    results.settings["took_s"] = round(time.monotonic() - begun)
    text = scaling_report.markdown(results)
    out.mkdir(parents=True, exist_ok=True)
    (out / "scaling.json").write_text(results.to_json() + "\n")
    (out / "scaling.md").write_text(text)
    if page is not None:
        page.write_text(scaling_report.fill(page.read_text(), results))
    print(text)
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)  # so that everything that was started is ended


if __name__ == "__main__":
    sys.exit(main())
