"""The limits of one server, one database and many of each: `python -m benchmarks.scaling`.

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

from benchmarks import listener_load, scaling_tables, store_driver, wire
from benchmarks.instruments import CommitSampler, DatagramSampler, OwnCounts
from benchmarks.load import Mode
from benchmarks.peers.registry import THIS_SERVER
from benchmarks.programs import BENCHMARKS, BUILD, ROOT, BenchmarkError, exit_status
from benchmarks.results import Numbers, Results
from benchmarks.rig import Bench, Rig, rig
from benchmarks.tables import fill
from benchmarks.workloads import CONNECTIONS, HANDSHAKES, idle

CLIENTS = 128  # identities
RATES = (100, 1_000, 4_000)  # check-ins a second that are offered; then as many as are answered
SERVERS_CONNECTIONS = 128  # each of three servers has its share
STORES_IN_FLIGHT = 128  # in each
USERS = 20_000  # of each database that stores are driven on
FILLERS = 50_000  # rows of users, to see how large one is

CARRIED = 0.95  # of the offered rate: below, it was too much

RESULTS = BENCHMARKS / "results"
PAGE = ROOT / "docs" / "scaling.md"


@dataclass(frozen=True, slots=True)
class ScalingPlan:
    """A run of it; `seconds` is the measured time of each thing in each round."""

    rounds: int = 3
    seconds: float = 1.5
    idle_connections: int = 1000
    servers: Sequence[int] = (1, 2, 3)  # on one port and one database
    in_flight: Sequence[int] = (1, 8, 64, 512)  # check-ins in the store at a time
    stores: Sequence[int] = (1, 2, 3)  # at once, on one database and on as many
    paces: Sequence[int] = (5_000, 10_000, 20_000, 80_000)  # updates a second, to a listener
    listening_s: float = 1.0
    budget_s: float = 285.0  # no round begins that would end later, judged by those before it

    @property
    def databases(self) -> Sequence[str]:
        """The databases that stores are driven on; each has a log of its own."""
        return [f"log_{number}" for number in range(max(self.stores))]


QUICK_PLAN = ScalingPlan(1, 0.5, 200, (1, 2), (1, 512), (1, 2), (5_000, 20_000), 0.5)


def run(plan: ScalingPlan) -> Results:
    """Measure all of it. Raises `BenchmarkError`."""
    begun = time.monotonic()
    with rig(CLIENTS, seconds=plan.seconds, idle_connections=plan.idle_connections) as surroundings:
        results = surroundings.results
        rmem_max = Path("/proc/sys/net/core/rmem_max").read_text().strip()
        results.machine["net.core.rmem_max"] = rmem_max
        for name in plan.databases:
            store_driver.fill(surroundings.postgres, name, USERS)
        for _ in results.in_rounds(plan.rounds, plan.budget_s - (time.monotonic() - begun)):
            for measure in MEASURED:
                measure(surroundings, plan)
    results.settings["took_s"] = round(time.monotonic() - begun)
    return results


def one_server(surroundings: Rig, plan: ScalingPlan) -> None:
    """One server: memory of connections, handshakes, offered rates, sizes, a listener."""
    add = surroundings.results.add
    with surroundings.at_work(THIS_SERVER) as bench:
        memory = idle(bench)
        numbers = {"kib": memory["kib_per_connection"], "kib_before": memory["kib_before"]}
        add("idle", "connection", numbers)
        for rate in RATES:
            add("rates", str(rate), check_ins(bench, "keep-alive", CONNECTIONS, rate))
        add("rates", scaling_tables.FULL, check_ins(bench, "keep-alive", CONNECTIONS))
        add("rates", "handshake", check_ins(bench, "handshake", HANDSHAKES))
        add("rates", "resumed", check_ins(bench, "resumed", HANDSHAKES))
        for name, traffic in wire.measure(bench.site.port, surroundings.identities).items():
            add("tcp", name, {**traffic._asdict(), "on_ethernet": traffic.on_ethernet})
        add("disk", "row", sizes(bench))


def servers(surroundings: Rig, plan: ScalingPlan) -> None:
    """Several servers on one port and one database."""
    for count in plan.servers:
        with surroundings.at_work(dataclasses.replace(THIS_SERVER, servers=count)) as bench:
            numbers = check_ins(bench, "keep-alive", SERVERS_CONNECTIONS)
        surroundings.results.add("servers", str(count), numbers)


def stores(surroundings: Rig, plan: ScalingPlan) -> None:
    """Stores alone: one with more and more in flight; several on one log, and on a log each."""

    def drive(workload: str, row: int, names: Sequence[str], in_flight: int) -> None:
        numbers = store_driver.drive_stores(
            surroundings.postgres, names, USERS, plan.seconds, in_flight
        )
        surroundings.results.add(workload, str(row), numbers)

    for name in plan.databases:
        store_driver.touch(surroundings.postgres, name)
    for in_flight in plan.in_flight:
        drive("in_flight", in_flight, plan.databases[:1], in_flight)
    for count in plan.stores:
        drive("one_log", count, [plan.databases[0]] * count, STORES_IN_FLIGHT)
        if count > 1:
            drive("own_logs", count, plan.databases[:count], STORES_IN_FLIGHT)


def one_listener(surroundings: Rig, plan: ScalingPlan) -> None:
    """A listener, at several paces."""
    with surroundings.at_work(THIS_SERVER) as bench:
        listener_load.measure(bench, plan.paces, plan.listening_s)


MEASURED: Sequence[Callable[[Rig, ScalingPlan], None]] = (
    one_server,
    servers,
    stores,
    one_listener,
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
    status_bytes = (after - before) / FILLERS
    return {"log_bytes": log / entries, "status_bytes": status_bytes, "entries": entries}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog=scaling_tables.COMMAND,
        description="Measure the limits of one server, one database and many of each.",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a first look in a minute, written to benchmarks/.build and to no page",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of scaling.json and scaling.md (default: benchmarks/results, and the page)",
    )
    options = parser.parse_args(arguments)
    out: Path = options.out or (BUILD / "scaling" if options.quick else RESULTS)

    def work() -> None:
        results = run(QUICK_PLAN if options.quick else ScalingPlan())
        out.mkdir(parents=True, exist_ok=True)
        (out / "scaling.json").write_text(results.to_json() + "\n")
        text = scaling_tables.markdown(results)
        (out / "scaling.md").write_text(text)
        if out == RESULTS:
            blocks = scaling_tables.blocks(results)
            PAGE.write_text(fill(PAGE.read_text(), blocks, scaling_tables.COMMAND))
        print(text)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
