"""CPU time and memory of whole process trees, from /proc (proc(5))."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
MAX_SCANS = 50  # of processes that come and go all the time


def tree(roots: Iterable[int]) -> dict[int, int]:
    """Return the process ids of `roots` and all their living descendants.

    The values are the CPU ticks of each, with its children that have ended.
    """
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended since
            # The name in parentheses may hold anything; the numbers begin behind it.
            fields = stat.read_text().rpartition(")")[2].split()
            pid = int(stat.parent.name)
            children.setdefault(int(fields[1]), []).append(pid)
            ticks[pid] = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    found: dict[int, int] = {}
    pending = list(roots)
    while pending:
        pid = pending.pop()
        if pid in ticks and pid not in found:
            found[pid] = ticks[pid]
            pending += children.get(pid, ())
    return found


def cpu_s(roots: Iterable[int]) -> float:
    """Return the user and system time of the trees, in seconds.

    Children that have ended count through their parent: the sum never falls.
    """
    # A child that is reaped during a scan is in its parent's number, or not yet, or twice. The
    # same processes must be there before, in and after the scan that counts.
    roots = tuple(roots)
    before, now, after = (tree(roots) for _ in range(3))
    for _ in range(MAX_SCANS):
        if before.keys() == now.keys() == after.keys():
            break
        before, now, after = now, after, tree(roots)
    return sum(now.values()) * _TICK_S


def pss_kib(roots: Iterable[int]) -> int:
    """Return the memory of the trees in KiB, pages that are shared divided among their users."""
    found = 0
    for pid in tree(roots):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            found += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return found
