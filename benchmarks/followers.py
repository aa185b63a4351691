"""Many readers of the live stream in one process, for the `streams` workload.

`python -m benchmarks.followers PORT CA CERTIFICATE KEY COUNT` opens COUNT connections to
/api/stream on 127.0.0.1 and counts what comes. It prints JSON, one object a line:
`{"event": "holding"}` once all are open; then for each line on its input
`{"event": "heard", "messages": N}`, of all together.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import Sequence

OPENING_AT_ONCE = 32
REQUEST = b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"
MARK = b"\nid: "  # before each message but the first of a chunk, whose line the chunk's size ends


class Reader(asyncio.Protocol):
    """One stream. `open` is done when its answer begins."""

    heard = 0  # of all

    def __init__(self) -> None:
        self.open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._end = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.WriteTransport):
            transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        if not self.open.done():
            if not data.startswith(b"HTTP/1.1 200 "):
                self.open.set_exception(RuntimeError(data.split(b"\r\n", 1)[0].decode()))
                return
            self.open.set_result(None)
        data = self._end + data
        Reader.heard += data.count(MARK)
        self._end = data[1 - len(MARK) :]  # a mark may be cut

    def connection_lost(self, error: Exception | None) -> None:
        if not self.open.done():
            self.open.set_exception(error or RuntimeError("closed"))


async def main(arguments: Sequence[str]) -> None:
    port, ca, certificate, key, count = arguments
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(certificate, key)
    loop = asyncio.get_running_loop()
    opening = asyncio.Semaphore(OPENING_AT_ONCE)

    async def open_one() -> None:
        async with opening:
            _, reader = await loop.create_connection(
                Reader, "127.0.0.1", int(port), ssl=context, server_hostname="localhost"
            )
            await reader.open

    await asyncio.gather(*(open_one() for _ in range(int(count))))
    print(json.dumps({"event": "holding"}), flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps({"event": "heard", "messages": Reader.heard}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
