"""`python -m benchmarks`: build, measure, print the table, write it with its plot.

Every contender is measured in every round, in turn, so that disturbances affect all of them. Only a
run of everything is written to benchmarks/results and README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import against, comparison, plot, store_driver, streams, tables
from benchmarks.contender import Contender
from benchmarks.load import compile_load
from benchmarks.peers.registry import CONTENDERS, QUICK, THIS_SERVER
from benchmarks.programs import BENCHMARKS, BUILD, ROOT, BenchmarkError, exit_status, say
from benchmarks.results import Results, Row
from benchmarks.rig import Rig, rig
from benchmarks.workloads import CONNECTIONS, WORKLOADS, keep_alive

USERS = (1_000, 1_000_000)
AFTER_CHECKPOINT = "right after a checkpoint"
SERVERS = (1, 2)


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """A run of the comparison. `seconds` is the measured time of each workload in each round."""

    peers: Sequence[Contender]
    workloads: Sequence[str]
    rounds: int
    seconds: float
    idle_connections: int
    budget_s: float = float("inf")  # no round but the first begins that would end later


def run(plan: ComparisonPlan) -> Results:
    """Build, measure, and return the numbers. Raises `BenchmarkError` if nothing is possible."""
    BUILD.mkdir(exist_ok=True)
    compile_load(BUILD)  # first: without it nothing is possible
    contenders = list(plan.peers)
    with rig(
        CONNECTIONS, seconds=plan.seconds, idle_connections=plan.idle_connections
    ) as surroundings:
        results = surroundings.results
        results.rows += [Row(p.name, p.title, p.writes, p.does_the_job) for p in contenders]
        for users in USERS if "users" in plan.workloads else ():
            say(f"filling a database with {users:,} users")
            store_driver.fill(surroundings.postgres, f"users_{users}", users)
        compared = [name for name in WORKLOADS if name in plan.workloads]
        for number in results.in_rounds(plan.rounds, plan.budget_s):
            # Each is first and last in turn.
            turn = number % len(contenders) if contenders else 0
            for contender in [*contenders[turn:], *contenders[:turn]]:
                if compared and not _measure(surroundings, contender, compared):
                    contenders.remove(contender)
            for name, measure in OWN_WORKLOADS.items():
                if name in plan.workloads:
                    try:
                        measure(surroundings)
                    except BenchmarkError as error:
                        say(f"  {name}: {error}")
                        results.note(f"{name}: a round failed: {error}")
    return results


def _measure(surroundings: Rig, contender: Contender, workloads: Sequence[str]) -> bool:
    """Measure one round of a contender. One that fails is left out of the results: False."""
    results = surroundings.results
    try:
        with surroundings.at_work(contender) as bench:
            for workload in workloads:
                results.add(workload, contender.name, WORKLOADS[workload](bench))
    except BenchmarkError as error:
        say(f"  {contender.name}: left out: {error}")
        (row,) = [row for row in results.rows if row.name == contender.name]
        results.leave_out(row, str(error))
        return False
    return True


# ------------------------------------------------------------------- of tornado_status alone


def measure_users(surroundings: Rig) -> None:
    """Check in random users at full speed, directly through the store."""
    postgres = surroundings.postgres

    def drive(users: int, row: str) -> None:
        names, seconds = [f"users_{users}"], surroundings.seconds
        numbers = store_driver.drive_stores(postgres, names, users, seconds, CONNECTIONS)
        surroundings.results.add("users", row, numbers)

    for users in USERS:
        store_driver.touch(postgres, f"users_{users}")
        drive(users, str(users))
    postgres.execute("postgres", "CHECKPOINT")
    drive(max(USERS), f"{max(USERS)} {AFTER_CHECKPOINT}")


def measure_reuse_port(surroundings: Rig) -> None:
    """Several servers on one port and one database."""
    for servers in SERVERS:
        with surroundings.at_work(dataclasses.replace(THIS_SERVER, servers=servers)) as bench:
            surroundings.results.add("reuse_port", str(servers), keep_alive(bench))


def measure_streams(surroundings: Rig) -> None:
    """Readers of the live stream."""
    for count in streams.STREAMS:
        with surroundings.at_work(THIS_SERVER) as bench:
            surroundings.results.add("streams", str(count), streams.measure(bench, count))


OWN_WORKLOADS: dict[str, Callable[[Rig], None]] = {
    "users": measure_users,
    "reuse_port": measure_reuse_port,
    "streams": measure_streams,
}

PLAN = ComparisonPlan(CONTENDERS, [*WORKLOADS, *OWN_WORKLOADS], 5, 5.0, 2000)
# On a busy machine there is one round, and a note that says so.
QUICK_PLAN = ComparisonPlan(
    [peer for peer in CONTENDERS if peer.name in QUICK], list(WORKLOADS), 2, 1.0, 500, 110.0
)

# ------------------------------------------------------------------------------ the command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    plan, out, page, commit = _read(arguments)

    def work() -> None:
        nonlocal plan
        if commit is not None:
            plan = dataclasses.replace(plan, peers=[against.contender(commit), *plan.peers])
        results = run(plan)
        table = comparison.markdown(results)
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(results.to_json())
        (out / "results.md").write_text(table)
        (out / "results.svg").write_text(plot.svg(results))
        if page is not None:
            blocks = comparison.summary(results)
            page.write_text(tables.fill(page.read_text(), blocks, comparison.COMMAND))
        print(table)
        if commit is not None:
            print(against.verdict(results, commit))

    return exit_status(work)


def _read(arguments: Sequence[str] | None) -> tuple[ComparisonPlan, Path, Path | None, str | None]:
    peers = [contender.name for contender in CONTENDERS]
    workloads = [*WORKLOADS, *OWN_WORKLOADS]
    parser = argparse.ArgumentParser(
        prog=comparison.COMMAND,
        description="Compare tornado_status with servers that do the same job.",
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"a first look in two minutes: {', '.join(QUICK)}"
    )
    parser.add_argument(
        "--against",
        metavar="COMMIT",
        help="compare the server with itself at a commit, in turn, and say whether CPU was gained",
    )
    for option, choices, metavar in (("--only", peers, "PEER"), ("--workloads", workloads, "NAME")):
        known = f"of {', '.join(choices)}"
        parser.add_argument(option, nargs="+", choices=choices, metavar=metavar, help=known)
    parser.add_argument("--rounds", type=int, help=f"(default: {PLAN.rounds})")
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"measured in each workload and round (default: {PLAN.seconds:g})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="where results.json, results.md and results.svg go (default: benchmarks/results, and"
        " README.md; of less than everything: benchmarks/.build/results)",
    )
    options = parser.parse_args(arguments)
    defaults = QUICK_PLAN if options.quick else PLAN
    if options.against is not None:
        defaults = dataclasses.replace(
            defaults,
            peers=[THIS_SERVER],
            workloads=against.WORKLOADS,
            rounds=7,
            budget_s=float("inf"),
        )
    names = options.only or [peer.name for peer in defaults.peers]
    chosen = options.workloads or defaults.workloads
    whole = not options.quick and names == peers and chosen == workloads
    plan = dataclasses.replace(
        defaults,
        # Without a compared workload there is nothing to compare.
        peers=[p for p in CONTENDERS if p.name in names and set(chosen) & set(WORKLOADS)],
        workloads=chosen,
        rounds=options.rounds or defaults.rounds,
        seconds=options.seconds or defaults.seconds,
    )
    out = options.out or (BENCHMARKS / "results" if whole else BUILD / "results")
    page = ROOT / "README.md" if whole and options.out is None else None
    return plan, out, page, options.against


if __name__ == "__main__":
    sys.exit(main())
