"""A listener as a process of its own, and the options and check-ins that tests give it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support import forked_program
from tests.support.forked_program import ForkedProgram
from tests.support.harness import (
    FORKS,
    PATIENCE_S,
    ROOT,
    Lines,
    Server,
    exchange,
    plain_environment,
    wait_until,
)


class Listening:
    """A `python -m listeners`, once it listens."""

    def __init__(
        self, *arguments: object, prefix: Sequence[str] = (), cwd: Path = ROOT, form: str = "json"
    ) -> None:
        given = ["--format", form, *(str(argument) for argument in arguments)]
        self.process: subprocess.Popen[str] | ForkedProgram
        if FORKS and not prefix:
            self.process = ForkedProgram(
                FORKS[-1], forked_program.LISTENER, given, plain_environment(), cwd=cwd
            )
            self.process.stdin.close()
        else:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-W", "error", "-m", "listeners", *given],
                cwd=cwd,
                env={**plain_environment(), "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        self.out = Lines(self.process.stdout)
        self.said = Lines(self.process.stderr)

    def __enter__(self) -> Listening:
        self.said.wait_for(lambda line: line.startswith("Listening on "), "Listening on")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.ended()

    @property
    def shown(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in list(self.out.lines)]

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        """Return what it showed, once that is `count` lines or more."""
        wait_until(lambda: len(self.out.lines) >= count, f"{count} lines")
        return self.shown

    def wait_for_seq(self, seq: int) -> list[dict[str, Any]]:
        """Return what it showed up to the update with that number."""
        self.out.wait_for(lambda line: f'"seq":{seq},' in line, f"update {seq}")
        return self.shown

    def says(self, text: str) -> str:
        return self.said.wait_for(lambda line: text in line, text)

    def ended(self) -> int:
        status = self.process.wait(PATIENCE_S)
        self.out.wait_end()
        self.said.wait_end()
        return status

    def stop(self) -> str:
        """End it in order. Returns its final line."""
        self.process.send_signal(signal.SIGTERM)
        assert self.ended() == 0, self.said.lines
        return self.said.lines[-1]


def reading(server: Server, *more: object, port: int | None = None) -> list[object]:
    """The options of a listener with a reader's certificate."""
    certs = server.certs
    return [
        *("--port", port or server.announce_port, "--url", server.url, "--ca", certs / "ca.crt"),
        *("--cert", certs / "operator.crt", "--key", certs / "operator.key"),
        *more,
    ]


def verifying(certs: Path, port: int, *more: object) -> list[object]:
    """The options of a listener that knows the announcer, and no server."""
    announcer = ("--announcer", certs / "announcer.crt", "--ca", certs / "ca.crt")
    return ["--port", port, "--cert", "", *announcer, *more]


def check_in(server: Server, count: int, connections: int = 4) -> None:
    """Check in over kept connections as fast as the server answers."""

    def one(number: int) -> None:
        connection = server.connect()
        try:
            for _ in range(number):
                assert exchange(connection, "POST", "/api/client").status == 204
        finally:
            connection.close()

    shares = [count // connections + (n < count % connections) for n in range(connections)]
    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(one, shares))


def log_of(server: Server, after: int = 0) -> list[dict[str, Any]]:
    page = server.request("GET", f"/api/events?after={after}&limit=100000", cert="operator").json
    events: list[dict[str, Any]] = page["events"]
    return events
