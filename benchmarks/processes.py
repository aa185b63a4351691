"""What processes use: CPU time and memory of whole process trees, from /proc (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")

MAX_LOOKS = 50  # at processes that come and go all the time


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    cpu_s: float  # its own, and of its children that have ended


def tree(roots: Iterable[int]) -> list[int]:
    """Return the process numbers of `roots` and all their living descendants."""
    return [process.pid for process in _tree(roots)]


def cpu_s(roots: Iterable[int]) -> float:
    """Return the user and system time of the trees, in seconds.

    Children that have ended count through their parent, so the sum never falls.
    """
    # A child that is reaped during a look is in its parent's number, or not yet, or twice. So it is
    # looked until the same are there before, in and after a look.
    roots = tuple(roots)
    before, now, after = (_tree(roots) for _ in range(3))
    for _ in range(MAX_LOOKS):
        if _numbers(before) == _numbers(now) == _numbers(after):
            break
        before, now, after = now, after, _tree(roots)
    return sum(process.cpu_s for process in now)


def pss_kib(roots: Iterable[int]) -> int:
    """Return the memory of the trees in KiB, pages that are shared divided among their users."""
    return sum(_pss_kib(pid) for pid in tree(roots))


class Meter:
    """The CPU time of a server and of PostgreSQL over a measured time."""

    def __init__(self, server: Iterable[int], database: Iterable[int]) -> None:
        self._server = tuple(server)
        self._database = tuple(database)
        self.server_s = 0.0
        self.database_s = 0.0

    def start(self) -> None:
        self._from = cpu_s(self._server), cpu_s(self._database)

    def stop(self) -> None:
        self.server_s = cpu_s(self._server) - self._from[0]
        self.database_s = cpu_s(self._database) - self._from[1]


def _numbers(processes: Iterable[_Process]) -> set[int]:
    return {process.pid for process in processes}


def _tree(roots: Iterable[int]) -> list[_Process]:
    children: dict[int, list[_Process]] = {}
    known: dict[int, _Process] = {}
    for process in _all():
        known[process.pid] = process
        children.setdefault(process.parent, []).append(process)
    found: dict[int, _Process] = {}
    pending = [known[root] for root in roots if root in known]
    while pending:
        process = pending.pop()
        if process.pid not in found:
            found[process.pid] = process
            pending += children.get(process.pid, ())
    return list(found.values())


def _all() -> Iterable[_Process]:
    for directory in _PROC.iterdir():
        if not directory.name.isdigit():
            continue
        try:
            text = (directory / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended since
        # The name in parentheses may hold anything; the numbers begin behind it.
        fields = text[text.rindex(")") + 2 :].split()
        ticks = sum(int(fields[n]) for n in (11, 12, 13, 14))  # utime stime cutime cstime
        yield _Process(int(directory.name), int(fields[1]), ticks * _TICK_S)


def _pss_kib(pid: int) -> int:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
