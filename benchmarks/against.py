"""This server as another commit has it, measured beside it as it is: did a change gain or lose?"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys

from benchmarks.contender import Contender
from benchmarks.peers.registry import SERVER_TEMPLATE, THIS_SERVER, server_commands
from benchmarks.programs import BUILD, ROOT, BenchmarkError, run_tool
from benchmarks.results import Results

WORKLOADS = ("keep-alive", "handshake", "resumed")
CPU = "server_cpu_ms+database_cpu_ms"


def contender(commit: str) -> Contender:
    """Return the server of `commit`, run by this Python. Raises `BenchmarkError` without it."""
    found = _git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    if found.returncode != 0:
        raise BenchmarkError(f"there is no commit {commit}")
    tree = BUILD / "against" / found.stdout.strip()
    if not tree.exists():
        half = tree.with_suffix(".half")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        archive = half.with_suffix(".tar")
        run_tool(
            ["git", "-C", ROOT, "archive", "-o", archive, tree.name], f"reading the commit {commit}"
        )
        run_tool(["tar", "-xf", archive, "-C", half], f"unpacking the commit {commit}")
        archive.unlink()
        half.rename(tree)
    # In its own folder, so that `-m` finds the package there; with the settings that it knows.
    start = ["env", f"--chdir={tree}", sys.executable]
    template = tree / SERVER_TEMPLATE.relative_to(ROOT)
    return dataclasses.replace(
        THIS_SERVER,
        name=commit,
        title=f"tornado_status of {commit}",
        commands=lambda site: server_commands(site, start, template),
    )


def verdict(results: Results, commit: str) -> str:
    """Return one line: CPU of a check-in, as a ratio to that of `commit`, by workload.

    Gained and lost are said only where all rounds agree.
    """
    parts = []
    for workload in results.rounds:
        try:
            ratios = results.summary(workload, THIS_SERVER.name, CPU).ratios
        except KeyError:
            continue
        low, high = min(ratios), max(ratios)
        said = "gained" if high < 1 else "lost" if low > 1 else "unclear"
        middle = results.summary(workload, THIS_SERVER.name, CPU).ratio
        parts.append(f"{workload} {middle:.3f} ({low:.3f} to {high:.3f}): {said}")
    return f"CPU of a check-in against {commit}: {'; '.join(parts) or 'not measured'}."


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
