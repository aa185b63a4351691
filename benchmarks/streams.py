"""What it costs that many follow: memory a stream, CPU a message, and check-ins beside them."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import processes
from benchmarks.errors import BenchmarkError
from benchmarks.places import ROOT
from benchmarks.processes import Meter
from benchmarks.workloads import Bench, Numbers, keep_alive

STREAMS = (0, 1000)
PACE = 20  # check-ins a second while the cost of a message is measured
SETTLE_S = 30.0  # for the last messages to come


def measure(bench: Bench, streams: int) -> Numbers:
    """Measure with so many streams of all events open; 0 to compare with."""
    before = processes.pss_kib(bench.server)
    with _followers(bench, streams) as followers:
        after = processes.pss_kib(bench.server)
        paced = _paced(bench, followers, streams)
        beside = keep_alive(bench)
        return {
            "kib_per_stream": (after - before) / streams if streams else 0.0,
            **paced,
            "rate": beside["rate"],
            "p50_ms": beside["p50_ms"],
            "p99_ms": beside["p99_ms"],
        }


class _Followers:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def wait(self, event: str) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise BenchmarkError("the followers ended")
        entry: dict[str, Any] = json.loads(line)
        if entry["event"] != event:
            raise BenchmarkError(f"the followers said {entry}")
        return entry

    def heard(self) -> int:
        if self._process.stdin is not None:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return int(self.wait("heard")["messages"])


@contextlib.contextmanager
def _followers(bench: Bench, count: int) -> Iterator[_Followers | None]:
    if not count:
        yield None
        return
    certificate, key = bench.identities.pair(bench.identities.emails[0])
    arguments = (bench.port, bench.identities.ca, certificate, key, count)
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.followers", *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        followers = _Followers(process)
        followers.wait("holding")
        yield followers
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _paced(bench: Bench, followers: _Followers | None, streams: int) -> Numbers:
    """Check in at a steady pace; return what a message to one stream costs the server."""
    meter = Meter(bench.server, bench.database)
    before = followers.heard() if followers else 0
    connection = _connect(bench)
    meter.start()
    count = max(1, round(PACE * bench.seconds))
    begun = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, begun + number / PACE - time.monotonic()))
        connection.request("POST", "/api/client")
        response = connection.getresponse()
        response.read()
        if response.status != 204:
            raise BenchmarkError(f"a check-in was answered {response.status}")
    connection.close()
    wanted = count * streams
    heard = 0
    deadline = time.monotonic() + SETTLE_S
    while followers and heard < wanted and time.monotonic() < deadline:
        time.sleep(0.05)
        heard = followers.heard() - before
    meter.stop()
    if heard < wanted:
        raise BenchmarkError(f"{wanted} messages were due, and {heard} came")
    return {
        "server_cpu_ms": meter.server_s / count * 1000,
        "cpu_us_per_message": meter.server_s / wanted * 1e6 if wanted else 0.0,
    }


def _connect(bench: Bench) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=str(bench.identities.ca))
    context.load_cert_chain(*bench.identities.pair(bench.identities.emails[1]))
    return http.client.HTTPSConnection("localhost", bench.port, context=context, timeout=SETTLE_S)
