"""The load generator as an object: compiles load.c, runs it, reads what it says."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.errors import BenchmarkError, Unavailable
from benchmarks.places import BENCHMARKS

SOURCE = BENCHMARKS / "load.c"
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra")
LIBRARIES = ("-lssl", "-lcrypto", "-lm")

Mode = Literal["keep-alive", "handshake", "resumed", "idle"]


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What the load generator counted in its measured time.

    `rate` is in requests a second, `latency_us` in microseconds by percentile (`p50` ... `max`),
    `cpu_s` what the generator itself used: near `seconds`, it was the bottleneck.
    """

    mode: str
    count: int
    errors: int
    seconds: float
    rate: float
    resumed: int
    reconnects: int
    cpu_s: float
    latency_us: dict[str, int]
    errors_by_kind: dict[str, int]
    first_error: str


def compile_load(directory: Path) -> Path:
    """Compile load.c into `directory` and return the program. Raises `Unavailable`."""
    program = directory / "load"
    if program.exists() and program.stat().st_mtime > SOURCE.stat().st_mtime:
        return program
    compiler = shutil.which("cc")
    if compiler is None:
        raise Unavailable("the load generator needs a C compiler (Debian: gcc libc6-dev)")
    directory.mkdir(parents=True, exist_ok=True)
    command = [compiler, *FLAGS, "-o", str(program), str(SOURCE), *LIBRARIES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        if "openssl/" in done.stderr or "-lssl" in done.stderr:
            raise Unavailable("the load generator needs OpenSSL's headers (Debian: libssl-dev)")
        raise BenchmarkError(f"load.c does not compile: {done.stderr.strip()}")
    return program


class Load:
    """One run of the load generator, which bounds every wait of its own.

    With a `rate`, in requests a second, `keep-alive` begins them at random moments, as many
    independent clients would, and latency counts from those moments; 0: each connection asks again
    as soon as it is answered. Ends with the `with` block, whatever happened.
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
        expect: int = 204,
    ) -> None:
        arguments: dict[str, object] = {
            "port": port,
            "identities": identities,
            "connections": connections,
            "seconds": seconds,
            "warmup": warmup_s,
            "expect": expect,
        }
        if requests:
            arguments["requests"] = requests
        if rate:
            arguments["rate"] = rate
        command = [str(program), mode]
        for name, value in arguments.items():
            command += [f"--{name}", str(value)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def wait_event(self, event: str) -> dict[str, Any]:
        """Return the line of this event. Raises `BenchmarkError` where it never comes."""
        output = self._process.stdout
        if output is None:
            raise RuntimeError("no pipe")
        for line in output:
            entry: dict[str, Any] = json.loads(line)
            if entry["event"] == event:
                return entry
        _, complaint = self._process.communicate()
        raise BenchmarkError(complaint.strip() or f"load ended without {event!r}")

    def release(self) -> None:
        """Let an idle run go: its connections close."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def stop(self) -> None:
        """End the measured time now."""
        self._process.terminate()

    def result(self) -> LoadResult:
        """Wait for the end and return what was counted."""
        entry = self.wait_event("result")
        return LoadResult(**{name: entry[name] for name in LoadResult.__slots__})


def run(
    load: Load,
    on_measuring: Callable[[], None] = lambda: None,
    on_measured: Callable[[], None] = lambda: None,
) -> LoadResult:
    """Run to the end; call back at both ends of the measured time."""
    with load:
        load.wait_event("measuring")
        on_measuring()
        load.wait_event("measured")
        on_measured()
        return load.result()
