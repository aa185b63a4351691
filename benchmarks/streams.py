"""The cost of live streams: memory of each, CPU of a message, and check-ins beside them.

`python -m benchmarks.streams PORT COUNT CA [CERTIFICATE KEY]...` is the process that reads: it
opens COUNT connections to /api/stream on 127.0.0.1, with each certificate as many, and counts what
comes. It prints JSON, one object a line: `{"event": "holding"}` once all are open; then for each
line on its input `{"event": "heard", "messages": N}`, of all together.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import ssl
import sys
import time

from benchmarks.identities import READERS
from benchmarks.processes import pss_kib
from benchmarks.programs import BenchmarkError, Child
from benchmarks.results import Numbers
from benchmarks.rig import Bench
from benchmarks.workloads import keep_alive

STREAMS = (0, 1000)
PACE = 20  # check-ins a second while the cost of a message is measured
SETTLE_S = 30.0  # for the last messages to come
OPENING_AT_ONCE = 32
REQUEST = b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"
MARK = b"\nid: "  # before each message but the first of a chunk, whose line the chunk's size ends


def measure(bench: Bench, streams: int) -> Numbers:
    """Measure with `streams` streams of all events open; 0 to compare with."""
    identities = bench.site.identities
    names = identities.emails[:READERS]
    pairs = [(identities.certificate(name), identities.key(name)) for name in names]
    files = (identities.certificate("ca"), *itertools.chain(*pairs))
    command = [sys.executable, "-m", "benchmarks.streams", bench.site.port, streams, *files]
    before = pss_kib(bench.server)
    with Child(command) as readers:
        readers.wait("holding")
        after = pss_kib(bench.server)
        paced = _paced(bench, readers, streams)
        beside = keep_alive(bench)
    return {
        "kib_per_stream": (after - before) / streams if streams else 0.0,
        **paced,
        **{name: beside[name] for name in ("rate", "p50_ms", "p99_ms")},
    }


def _heard(readers: Child) -> int:
    readers.go_on()
    return int(readers.wait("heard")["messages"])


def _paced(bench: Bench, readers: Child, streams: int) -> Numbers:
    """Check in at a steady pace; return the server's cost of a message to one stream."""
    context = bench.site.identities.client_context(bench.site.identities.emails[1])
    connection = http.client.HTTPSConnection(
        "localhost", bench.site.port, context=context, timeout=SETTLE_S
    )
    before = _heard(readers)
    count = max(1, round(PACE * bench.rig.seconds))
    wanted = count * streams
    with bench.meter() as meter, contextlib.closing(connection):
        begun = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, begun + number / PACE - time.monotonic()))
            connection.request("POST", "/api/client")
            response = connection.getresponse()
            response.read()
            if response.status != 204:
                raise BenchmarkError(f"a check-in was answered {response.status}")
        deadline = time.monotonic() + SETTLE_S
        while (heard := _heard(readers) - before) < wanted:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{wanted} messages were due, and {heard} came")
            time.sleep(0.05)
    return {
        "server_cpu_ms": meter.server_s / count * 1000,
        "cpu_us_per_message": meter.server_s / wanted * 1e6 if wanted else 0.0,
    }


# -------------------------------------------------------------------------- the process that reads


class _Reader(asyncio.Protocol):
    """One stream. `open` is done when its answer begins."""

    heard = 0  # of all

    def __init__(self) -> None:
        self.open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._end = b""

    def data_received(self, data: bytes) -> None:
        if not self.open.done():
            if not data.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(data.split(b"\r\n", 1)[0].decode())
            self.open.set_result(None)
        data = self._end + data
        _Reader.heard += data.count(MARK)
        self._end = data[1 - len(MARK) :]  # a mark may be cut

    def connection_lost(self, error: Exception | None) -> None:
        if not self.open.done():
            self.open.set_exception(error or RuntimeError("closed"))


async def main(port: int, count: int, ca: str, *files: str) -> None:
    contexts = []
    for certificate, key in zip(files[::2], files[1::2], strict=True):
        contexts.append(ssl.create_default_context(cafile=ca))
        contexts[-1].load_cert_chain(certificate, key)
    opening = asyncio.Semaphore(OPENING_AT_ONCE)

    async def open_one(context: ssl.SSLContext) -> None:
        async with opening:
            transport, reader = await asyncio.get_running_loop().create_connection(
                _Reader, "127.0.0.1", port, ssl=context, server_hostname="localhost"
            )
            transport.write(REQUEST)
            await reader.open

    await asyncio.gather(*(open_one(contexts[n % len(contexts)]) for n in range(count)))
    print(json.dumps({"event": "holding"}), flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps({"event": "heard", "messages": _Reader.heard}), flush=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    asyncio.run(main(int(given[0]), int(given[1]), *given[2:]))
