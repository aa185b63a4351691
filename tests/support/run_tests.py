"""Run pytest on several files at a time, and what failed once more alone, one test after another.

`python -m tests.support.run_tests [PYTEST ARGUMENT...]`. A test that fails beside others and passes
alone is *flaky*: it is printed and counted. The run fails if a test fails twice, or if more than
`MAX_FLAKY` are flaky.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

MAX_FLAKY = 3
SIDE_BY_SIDE = ("-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder")
# Hundreds of programs are started: without bytecode, each compiles all its modules.
ENVIRONMENT = {n: v for n, v in os.environ.items() if n != "PYTHONDONTWRITEBYTECODE"}
ALONE = ("-n", "0", "--last-failed", "--last-failed-no-failures", "none")


def run(cache: Path, *arguments: str) -> tuple[int, set[str]]:
    """Run pytest; return its exit status and what has failed and not passed since."""
    status = subprocess.call(
        [sys.executable, "-m", "pytest", "-o", f"cache_dir={cache}", *arguments], env=ENVIRONMENT
    )
    try:
        return status, set(json.loads((cache / "v/cache/lastfailed").read_text()))
    except FileNotFoundError:  # pytest writes it if there is something to write
        return status, set()


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="pytest-cache-") as directory:
        cache = Path(directory, "cache")
        status, failed = run(cache, *SIDE_BY_SIDE, *arguments)
        if status != pytest.ExitCode.TESTS_FAILED or not failed:
            return status
        print(f"\n{len(failed)} failed beside other tests; once more, alone:", flush=True)
        status, failed_twice = run(cache, *ALONE, *arguments)
    flaky = sorted(failed - failed_twice)
    print(f"\nflaky: {len(flaky)} (at most {MAX_FLAKY}); failed twice: {len(failed_twice)}")
    for name in flaky:
        print(f"  flaky: {name}")
    for name in sorted(failed_twice):
        print(f"  failed twice: {name}")
    return status or int(len(flaky) > MAX_FLAKY)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
