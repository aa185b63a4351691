"""Programs that the benchmark finds, builds, runs and listens to, and where its files are."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent  # programs are started here, so that `python -m` finds the project
BUILD = BENCHMARKS / ".build"

LINE_TIMEOUT_S = 900.0  # for one line of a program: the longest measured time of load.c, and more
END_TIMEOUT_S = 60.0  # a store drains, a listener has much to do
LOG_LINES = 15  # of a program that failed


class BenchmarkError(Exception):
    """The benchmark cannot go on. Its text is for its user."""


class Unavailable(BenchmarkError):
    """A program is missing: the text says how to install it."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def exit_status(work: Callable[[], object]) -> int:
    """Run a command and return its exit status. SIGTERM unwinds, so that programs are ended."""

    def terminated(signum: int, frame: object) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, terminated)
    try:
        work()
    except BenchmarkError as error:
        say(f"benchmarks: {error}")
        return 1
    return 0


def find_program(name: str, package: str, *directories: str) -> Path:
    """Return a program on PATH or in `directories`. Raises `Unavailable` naming the package."""
    for directory in [*os.get_exec_path(), *directories]:
        path = Path(directory) / name
        if os.access(path, os.X_OK) and path.is_file():
            return path
    raise Unavailable(f"{name} is not installed (Debian: {package})")


def run_tool(command: Sequence[object], what: str, **environment: str) -> None:
    """Run one step of a build. Raises `BenchmarkError` with the end of its output."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchmarkError(f"{what} failed:\n{tail(done.stdout)}")


def tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-LOG_LINES:])


class Child:
    """A program that reports by lines: a JSON object each, or what `parse` makes of it.

    It ends with the `with` block: by itself once its input is closed, or killed after an error.
    """

    def __init__(
        self,
        command: Sequence[object],
        *,
        parse: Callable[[str], dict[str, Any] | None] = json.loads,
        on_stderr: bool = False,
    ) -> None:
        self._parse = parse
        self._name = " ".join(str(part) for part in command[:3])
        self._process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if on_stderr else subprocess.PIPE,
            stderr=subprocess.PIPE if on_stderr else None,
            text=True,
            start_new_session=True,  # Ctrl-C is ours: the programs end in our order
        )
        lines = self._process.stderr if on_stderr else self._process.stdout
        if lines is None or self._process.stdin is None:
            raise RuntimeError("no pipe")
        self._input, self._lines = self._process.stdin, lines
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._process.kill()
        self.end()

    def wait(self, event: str, timeout_s: float = LINE_TIMEOUT_S) -> dict[str, Any]:
        """Return the line of this event. Raises `BenchmarkError` if it does not come."""
        line = ""
        with self._killed_after(timeout_s):
            for line in self._lines:
                entry = self._parse(line)
                if entry is not None and entry["event"] == event:
                    return entry
                if entry is not None and entry["event"] == "failed":
                    raise BenchmarkError(entry["why"])
        raise BenchmarkError(f"{self._name} ended before {event!r}, after {line.strip()!r}")

    def go_on(self) -> None:
        """Send an empty line, which the program waits for."""
        with contextlib.suppress(BrokenPipeError):  # it has ended: the next wait says so
            self._input.write("\n")
            self._input.flush()

    def release(self) -> None:
        """Close its input."""
        self._input.close()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        """Close its input and return its exit status. Kills it after a time. Idempotent."""
        self.release()
        with self._killed_after(END_TIMEOUT_S):
            if not self._lines.closed:
                self._lines.read()
                self._lines.close()
            return self._process.wait()

    @contextlib.contextmanager
    def _killed_after(self, timeout_s: float) -> Iterator[None]:
        watchdog = threading.Timer(timeout_s, self._process.kill)
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()
