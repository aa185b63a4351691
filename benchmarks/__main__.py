"""`python -m benchmarks`: build, measure, print the table, write it with its plot.

Only a run of everything is written to benchmarks/results and README.md; less is a first look.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from benchmarks import pages, report
from benchmarks.campaign import OWN_WORKLOADS, Plan, run
from benchmarks.errors import BenchmarkError
from benchmarks.peers.registry import QUICK, all_peers
from benchmarks.places import BENCHMARKS, BUILD, ROOT
from benchmarks.workloads import WORKLOADS

ROUNDS, SECONDS, IDLE_CONNECTIONS = 5, 5.0, 2000
QUICK_ROUNDS, QUICK_SECONDS, QUICK_IDLE_CONNECTIONS = 2, 1.0, 500
QUICK_BUDGET_S = 110.0  # on a busy machine there is one round, and a note that says so
EXIT_FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    plan, out, page = _read(arguments)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        results = run(plan)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return EXIT_FAILED
    table = report.markdown(results)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(results.to_json())
    (out / "results.md").write_text(table)
    (out / "results.svg").write_text(report.svg(results))
    if page is not None:
        page.write_text(pages.fill(page.read_text(), report.summary(results), report.COMMAND))
    print(table)
    return 0


def _read(arguments: Sequence[str] | None) -> tuple[Plan, Path, Path | None]:
    peers = {peer.name: peer for peer in all_peers()}
    workloads = [*WORKLOADS, *OWN_WORKLOADS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compare tornado_status with servers that do the same job.",
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"in two minutes, a first look: {', '.join(QUICK)}"
    )
    parser.add_argument(
        "--only", nargs="+", choices=peers, metavar="PEER", help=f"of {', '.join(peers)}"
    )
    parser.add_argument(
        "--workloads",
        nargs="+",
        choices=workloads,
        metavar="NAME",
        help=f"of {', '.join(workloads)}",
    )
    parser.add_argument("--rounds", type=int, help=f"(default: {ROUNDS})")
    parser.add_argument(
        "--seconds", type=float, help=f"measured in each workload and round (default: {SECONDS:g})"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="where results.json, results.md and results.svg go (default: benchmarks/results, and"
        " README.md; of less than everything: benchmarks/.build/results)",
    )
    options = parser.parse_args(arguments)
    quick: bool = options.quick
    names = options.only or (QUICK if quick else list(peers))
    chosen = options.workloads or (list(WORKLOADS) if quick else workloads)
    if not set(chosen) & set(WORKLOADS):
        names = []  # nothing to compare
    whole = not quick and names == list(peers) and chosen == workloads
    results = BENCHMARKS / "results"
    return (
        Plan(
            peers=[peer for name, peer in peers.items() if name in names],
            workloads=chosen,
            rounds=options.rounds or (QUICK_ROUNDS if quick else ROUNDS),
            seconds=options.seconds or (QUICK_SECONDS if quick else SECONDS),
            idle_connections=QUICK_IDLE_CONNECTIONS if quick else IDLE_CONNECTIONS,
            budget_s=QUICK_BUDGET_S if quick else float("inf"),
        ),
        options.out or (results if whole else BUILD / "results"),
        ROOT / "README.md" if whole and options.out is None else None,
    )


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)  # so that everything that was started is ended


if __name__ == "__main__":
    sys.exit(main())
