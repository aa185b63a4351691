"""A large database with more buffers and huge pages: `python -m benchmarks.huge_pages`.

Drives this server's store alone, as the workload `users` does. PostgreSQL is started anew for each
size of `shared_buffers`, with and without huge pages. Prints a table in Markdown. The kernel must
have reserved the huge pages before: `sysctl vm.nr_hugepages=700`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks import store_driver
from benchmarks.postgresql import PostgreSql
from benchmarks.programs import BUILD, BenchmarkError, exit_status
from benchmarks.results import Results
from benchmarks.rig import machine
from benchmarks.tables import MICRO, RATE, TIMES, columns_table, machine_line, rows
from benchmarks.workloads import CONNECTIONS

USERS = (1_000, 1_000_000)
MEMORY = tuple((buffers, huge) for buffers in ("256MB", "1GB") for huge in ("off", "on"))
ROUNDS = 5
SECONDS = 3.0
RESERVE = 700  # pages of 2 MB: 1 GB of buffers and PostgreSQL's other shared memory

_COLUMNS = {
    f"CPU {MICRO}: PostgreSQL": "{database_cpu_us:.1f}",
    TIMES: "{database_cpu_us.ratio:.2f}",
    "check-ins/s": RATE,
}


def run(directory: Path) -> Results:
    """Measure every memory in every round, forward and backward in turn."""
    results = Results()
    with PostgreSql(directory) as postgres:
        results.machine = machine(postgres)
        for users in USERS:
            store_driver.fill(postgres, f"users_{users}", users)
    for number in results.in_rounds(ROUNDS, float("inf")):
        for buffers, huge in MEMORY if number % 2 == 0 else MEMORY[::-1]:
            settings = {"shared_buffers": buffers, "huge_pages": huge}
            with PostgreSql(directory, settings) as postgres:
                for users in USERS:
                    store_driver.touch(postgres, f"users_{users}")
                    row = f"{users:,} users, {buffers}, huge pages {huge}"
                    numbers = store_driver.drive_stores(
                        postgres, [f"users_{users}"], users, SECONDS, CONNECTIONS
                    )
                    results.add("huge_pages", row, numbers)
    return results


def main() -> int:
    """Run the command line and return its exit status."""

    def work() -> None:
        reserved = int(Path("/proc/sys/vm/nr_hugepages").read_text())
        if reserved < RESERVE:
            raise BenchmarkError(
                f"{reserved} huge pages are reserved: run `sysctl vm.nr_hugepages={RESERVE}` first"
            )
        BUILD.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="run-", dir=BUILD) as directory:
            results = run(Path(directory) / "postgresql")
        print(columns_table("users and memory", rows(results, "huge_pages"), _COLUMNS))
        print(f"\n{machine_line(results)}")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
