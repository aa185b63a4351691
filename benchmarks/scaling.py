"""What one server, one database and many of each carry: `python -m benchmarks.scaling`.

Everything is measured in every round, in turn. It writes scaling.json, scaling.md and the marked
blocks of docs/scaling.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import cost_of_listening, scaling_tables, store_driver, wire
from benchmarks.instruments import CommitSampler, DatagramSampler, OwnCounts
from benchmarks.load import Mode
from benchmarks.peers.registry import THIS_SERVER
from benchmarks.programs import BENCHMARKS, BUILD, ROOT, BenchmarkError, exit_status
from benchmarks.results import Numbers, Results
from benchmarks.rig import Bench, Rig, rig
from benchmarks.workloads import CONNECTIONS, HANDSHAKES, idle

CLIENTS = 128  # identities
RATES = (100, 1_000, 4_000)  # check-ins a second that are offered; then as many as are answered
SERVERS_CONNECTIONS = 128  # so that each of three has its share
STORES_IN_FLIGHT = 128  # in each
USERS = 20_000  # of each database that stores are driven on
FILLERS = 50_000  # rows of users, to see how large one is

CARRIED = 0.95  # of the offered rate: below, it was too much

RESULTS = BENCHMARKS / "results"
PAGE = ROOT / "docs" / "scaling.md"


@dataclass(frozen=True, slots=True)
class ScalingPlan:
    """What to measure; `seconds` is the measured time of each thing in each round."""

    rounds: int = 3
    seconds: float = 1.5
    idle_connections: int = 1000
    servers: Sequence[int] = (1, 2, 3)  # on one port and one database
    in_flight: Sequence[int] = (1, 8, 64, 512)  # check-ins in the store at a time
    stores: Sequence[int] = (1, 2, 3)  # at once, on one database and on as many
    paces: Sequence[int] = (5_000, 10_000, 20_000, 80_000)  # updates a second, to a listener
    listening_s: float = 1.0
    budget_s: float = 285.0  # no round begins that would end later, judged by those before it


QUICK_PLAN = ScalingPlan(1, 0.5, 200, (1, 2), (1, 512), (1, 2), (5_000, 20_000), 0.5)


def run(plan: ScalingPlan) -> Results:
    """Measure all of it. Raises `BenchmarkError`."""
    begun = time.monotonic()
    with rig(CLIENTS, seconds=plan.seconds, idle_connections=plan.idle_connections) as surroundings:
        results = surroundings.results
        rmem_max = Path("/proc/sys/net/core/rmem_max").read_text().strip()
        results.machine["net.core.rmem_max"] = rmem_max
        scaling = Scaling(plan, surroundings)
        for name in scaling.databases:
            store_driver.fill(surroundings.postgres, name, USERS)
        for _ in results.in_rounds(plan.rounds, plan.budget_s - (time.monotonic() - begun)):
            for measure in scaling.everything():
                measure()
    results.settings["took_s"] = round(time.monotonic() - begun)
    return results


class Scaling:
    """One round after the other, into the results of the rig."""

    def __init__(self, plan: ScalingPlan, surroundings: Rig) -> None:
        self._plan = plan
        self._rig = surroundings
        self._add = surroundings.results.add
        # Stores are driven on them; each has a log of its own.
        self.databases = [f"log_{number}" for number in range(max(plan.stores))]

    def everything(self) -> Sequence[Callable[[], None]]:
        return [self.one_server, self.servers, self.in_flight, self.stores, self.listening]

    def one_server(self) -> None:
        """One server: memory of connections, handshakes, offered rates, sizes."""
        with self._rig.at_work(THIS_SERVER) as bench:
            memory = idle(bench)
            self._add(
                "idle",
                "connection",
                {"kib": memory["kib_per_connection"], "kib_before": memory["kib_before"]},
            )
            for rate in RATES:
                self._add("rates", str(rate), check_ins(bench, "keep-alive", CONNECTIONS, rate))
            full = check_ins(bench, "keep-alive", CONNECTIONS)
            self._add("rates", scaling_tables.FULL, full)
            self._add("rates", "handshake", check_ins(bench, "handshake", HANDSHAKES))
            self._add("rates", "resumed", check_ins(bench, "resumed", HANDSHAKES))
            for name, traffic in wire.measure(bench.site.port, self._rig.identities).items():
                numbers = {**traffic._asdict(), "on_ethernet": traffic.on_ethernet}
                self._add("tcp", name, numbers)
            self._add("disk", "row", sizes(bench))

    def servers(self) -> None:
        """Several servers on one port and one database."""
        for count in self._plan.servers:
            with self._rig.at_work(dataclasses.replace(THIS_SERVER, servers=count)) as bench:
                numbers = check_ins(bench, "keep-alive", SERVERS_CONNECTIONS)
            self._add("servers", str(count), numbers)

    def in_flight(self) -> None:
        """The store alone, with so many check-ins in it at a time."""
        for name in self.databases:
            store_driver.touch(self._rig.postgres, name)
        for count in self._plan.in_flight:
            self._add("in_flight", str(count), self._drive(self.databases[:1], count))

    def stores(self) -> None:
        """Several stores, on one database, and each on its own: a log each."""
        for count in self._plan.stores:
            one = self._drive(self.databases[:1] * count, STORES_IN_FLIGHT)
            self._add("one_log", str(count), one)
            if count > 1:
                own = self._drive(self.databases[:count], STORES_IN_FLIGHT)
                self._add("own_logs", str(count), own)

    def listening(self) -> None:
        """A listener, at several paces."""
        plan = self._plan
        cost_of_listening.measure(self._rig, self._rig.results, plan.paces, plan.listening_s)

    def _drive(self, names: Sequence[str], in_flight: int) -> Numbers:
        return store_driver.drive_stores(
            self._rig.postgres, names, USERS, self._plan.seconds, in_flight
        )


def check_ins(bench: Bench, mode: Mode, connections: int, rate: float = 0.0) -> Numbers:
    """Check in for the measured time; count all that it moves."""
    commits = CommitSampler(bench.site.postgres)
    datagrams = DatagramSampler(bench.site.announce_port)
    counts = OwnCounts(bench.site.management_ports)
    result, numbers = bench.check_ins(mode, connections, datagrams, commits, counts, rate=rate)
    recorded, batches = counts["check_ins"], counts["batches"]
    if not batches:
        raise BenchmarkError(f"{mode}: no batch was committed")
    if rate and result.rate < CARRIED * rate:
        bench.note(f"{rate:,.0f} check-ins a second were offered, and not all carried")
    numbers["database_cpu_ms"] -= commits.cpu_s / result.count * 1000
    return {
        **numbers,
        "batch": recorded / batches,
        "commits_rate": result.rate * batches / recorded,
        "commit_ms": counts["commit_s"] / batches * 1000,
        **commits.numbers(recorded),
        "datagrams_rate": result.rate * counts["datagrams"] / recorded,
        "datagram_bytes": datagrams.mean_bytes,
        "updates_per_datagram": recorded / max(1, counts["datagrams"]),
    }


def sizes(bench: Bench) -> Numbers:
    """Bytes on disk of one entry of the log, and of one user's status, indexes and all."""

    def execute(sql: str, *parameters: object) -> list[tuple[int, ...]]:
        return bench.site.postgres.execute(bench.site.database, sql, *parameters)

    ((log, entries),) = execute("SELECT pg_total_relation_size('check_in'), count(*) FROM check_in")
    status = "SELECT pg_total_relation_size('user_status')"
    ((before,),) = execute(status)
    columns = "seq, last_seen, client_ip, client_port, issuer, serial, first_seen, devices"
    execute(
        f"INSERT INTO user_status (email, {columns})"  # noqa: S608 - our own names
        f" SELECT 'filler' || lpad(n::text, 7, '0') || '@example.com', {columns}"
        " FROM (SELECT * FROM user_status LIMIT 1) one, generate_series(1, %s) n",
        FILLERS,
    )
    ((after,),) = execute(status)
    return {
        "log_bytes": log / entries,
        "status_bytes": (after - before) / FILLERS,
        "entries": entries,
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
    page: Path | None = options.page or (PAGE if out == RESULTS else None)

    def work() -> None:
        results = run(QUICK_PLAN if options.quick else ScalingPlan())
        text = scaling_tables.markdown(results)
        out.mkdir(parents=True, exist_ok=True)
        (out / "scaling.json").write_text(results.to_json() + "\n")
        (out / "scaling.md").write_text(text)
        if page is not None:
            page.write_text(scaling_tables.fill(page.read_text(), results))
        print(text)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
