"""The load generator: compiles load.c, runs it, reads its events."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.programs import BENCHMARKS, Child, find_program, run_tool

SOURCE = BENCHMARKS / "load.c"
OPTIONS = ("-std=c11", "-O2", "-Wall", "-Wextra", SOURCE, "-lssl", "-lcrypto", "-lm")
PERCENTILES = {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999, "max": 1000}  # in thousandths

Mode = Literal["keep-alive", "handshake", "resumed", "idle"]


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The counts of the measured time.

    `rate` is in requests a second. `cpu_s` is the generator's own CPU time: near `seconds`, the
    generator was the bottleneck.
    """

    mode: str
    count: int
    errors: int
    seconds: float
    rate: float
    resumed: int
    cpu_s: float
    first_error: str
    latencies_us: list[int]


def percentiles_ms(latencies_us: Sequence[int]) -> dict[str, float]:
    """Return the percentiles by the nearest rank, as `p50_ms` ... `max_ms`; 0 of no values."""
    ordered = sorted(latencies_us)
    return {
        f"{name}_ms": ordered[-(-len(ordered) * share // 1000) - 1] / 1000 if ordered else 0.0
        for name, share in PERCENTILES.items()
    }


def compile_load(directory: Path) -> Path:
    """Compile load.c into `directory` and return the program. Raises `BenchmarkError`."""
    program = directory / "load"
    if not program.exists() or program.stat().st_mtime < SOURCE.stat().st_mtime:
        directory.mkdir(parents=True, exist_ok=True)
        compiler = find_program("cc", "gcc libc6-dev libssl-dev")
        run_tool([compiler, *OPTIONS, "-o", program], "compiling load.c (Debian: libssl-dev)")
    return program


class Load(Child):
    """One run of the load generator, which bounds every wait of its own.

    With a `rate`, in requests a second, `keep-alive` begins them at random moments, as many
    independent clients would, and latency counts from those moments. Without it, each connection
    asks again as soon as it is answered.
    """

    def __init__(
        self,
        program: Path,
        mode: Mode,
        port: int,
        identities: Path,
        *,
        connections: int,
        seconds: float = 5.0,
        warmup_s: float = 1.0,
        requests: int = 0,
        rate: float = 0.0,
    ) -> None:
        if rate and mode != "keep-alive":
            raise ValueError("a rate goes with keep-alive")
        numbers = [connections, warmup_s, seconds, requests, rate]
        super().__init__([program, mode, port, identities, *numbers])

    def stop(self) -> None:
        """End the measured time now."""
        self.signal(signal.SIGTERM)

    def result(self) -> LoadResult:
        """Wait for the end and return what was counted."""
        entry = self.wait("result")
        return LoadResult(**{name: entry[name] for name in LoadResult.__slots__})


def run(load: Load, *beside: AbstractContextManager[object]) -> LoadResult:
    """Run to the end. `beside` are entered for the measured time."""
    with load:
        load.wait("measuring")
        with contextlib.ExitStack() as measured:
            for each in beside:
                measured.enter_context(each)
            load.wait("measured")
        return load.result()
