"""The resources of a process, sampled from /proc while it runs, and whether they grow."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType


@dataclass(frozen=True)
class Sample:
    """One look at a process."""

    at_s: float  # since the sampler was made
    pid: int
    rss_kb: int
    pss_kb: int
    descriptors: int
    acknowledged: int  # check-ins so far
    still: bool = False  # no client was checking in, and only the load's connections were open


class Sampler:
    """Looks at whatever process `pid` returns, at regular intervals and when asked."""

    def __init__(
        self, pid: Callable[[], int], acknowledged: Callable[[], int], interval_s: float
    ) -> None:
        self.samples: list[Sample] = []
        self._pid = pid
        self._acknowledged = acknowledged
        self._interval_s = interval_s
        self._began = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def take(self, *, still: bool = False) -> None:
        """Look now. Nothing where the process is gone."""
        pid = self._pid()
        with contextlib.suppress(OSError, KeyError):
            rollup = _fields(Path(f"/proc/{pid}/smaps_rollup"))
            descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            self.samples.append(
                Sample(
                    self.elapsed_s,
                    pid,
                    rollup["Rss"],
                    rollup["Pss"],
                    descriptors,
                    self._acknowledged(),
                    still,
                )
            )

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self.take()


def _fields(path: Path) -> dict[str, int]:
    found = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value.split()[0])
    return found


@dataclass(frozen=True)
class Growth:
    """Of the process that lived longest: from its second quarter of still moments to its last."""

    stills: int
    memory_kb: int
    descriptors: int  # the most at a still moment, less the first


def growth(samples: Sequence[Sample]) -> Growth:
    """Compare still moments, in which a process that keeps nothing needs what it needed before."""
    stills = [sample for sample in samples if sample.still]
    pids = [sample.pid for sample in stills]
    longest = max(set(pids), key=pids.count)
    life = [sample for sample in stills if sample.pid == longest]
    quarter = max(1, len(life) // 4)
    early = statistics.median(s.pss_kb for s in life[quarter : 2 * quarter] or life[:1])
    late = statistics.median(s.pss_kb for s in life[-quarter:])
    descriptors = max(s.descriptors for s in life) - life[0].descriptors
    return Growth(len(life), round(late - early), descriptors)


def peak_memory_kb(pid: int) -> int:
    """The most physical memory that a process ever had."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    raise AssertionError(f"no process {pid}")
