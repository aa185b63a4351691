"""Clients that take what they can get: attacks for `attacking`, which never return."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.faults.samples import peak_memory_kb
from tests.support.harness import LOOPBACK, PATIENCE_S, Server, client_context
from tests.support.hostile_requests import HOST

PIPELINED = 8  # requests that wait on one connection
RETRY_S = 0.1  # after a connection that the server refused or ended

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Session = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def memory(server: Server) -> int:
    """Return the bytes that the server's process took at most, and the kernel holds for it now."""
    local = f":{server.port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    kernel = sum(int(line[4].split(":")[0], 16) for line in lines if line[1].endswith(local))
    return peak_memory_kb(server.process.pid) * 1024 + kernel


def get(path: str, *headers: str) -> bytes:
    """Return a request for a path."""
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"GET {path} HTTP/1.1\r\n".encode() + HOST + lines.encode() + b"\r\n"


def flood(port: int, certs: Path, cert: str, request: bytes, count: int) -> None:
    """Send a request again and again over `count` connections, and read all answers."""

    async def session(reading: asyncio.StreamReader, writing: asyncio.StreamWriter) -> None:
        answers = asyncio.ensure_future(_read_all(reading))
        while not answers.done():
            writing.write(request * PIPELINED)
            await writing.drain()

    asyncio.run(_keep_open(port, certs, cert, [session] * count))


def read_nothing(port: int, certs: Path, cert: str, requests: Sequence[bytes]) -> None:
    """Send each request over a connection of its own that can hold little, and do not read."""
    context = client_context(certs, cert)

    def hold(request: bytes) -> None:
        while True:
            with contextlib.suppress(OSError), _send(port, context, request) as connection:
                ended = select.poll()
                ended.register(connection, select.POLLRDHUP)
                ended.poll()
            time.sleep(RETRY_S)

    with ThreadPoolExecutor(len(requests)) as pool:
        list(pool.map(hold, requests))


def _send(port: int, context: ssl.SSLContext, request: bytes) -> ssl.SSLSocket:
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.settimeout(PATIENCE_S)
    try:
        raw.connect((LOOPBACK, port))
        connection = context.wrap_socket(raw, server_hostname="localhost")
    except BaseException:
        raw.close()
        raise
    connection.sendall(request)
    return connection


def subscribe(port: int, certs: Path, cert: str, requests: Sequence[bytes]) -> None:
    """Send each request over a connection of its own, and read the stream that is the answer."""

    def session(request: bytes) -> Session:
        async def follow(reading: asyncio.StreamReader, writing: asyncio.StreamWriter) -> None:
            writing.write(request)
            await _read_all(reading)

        return follow

    asyncio.run(_keep_open(port, certs, cert, [session(request) for request in requests]))


def stay_idle(port: int, count: int) -> None:
    """Hold `count` connections without TLS, and send nothing over them."""

    async def stay() -> None:
        while True:
            with contextlib.suppress(OSError):
                reading, writing = await asyncio.open_connection(LOOPBACK, port)
                try:
                    await _read_all(reading)
                finally:
                    writing.transport.abort()
            await asyncio.sleep(RETRY_S)

    async def stay_all() -> None:
        await asyncio.gather(*(stay() for _ in range(count)))

    asyncio.run(stay_all())


async def _keep_open(port: int, certs: Path, cert: str, sessions: Sequence[Session]) -> None:
    """Keep a connection open for each session: begin it again when it ends."""
    context = client_context(certs, cert)

    async def keep(session: Session) -> None:
        while True:
            with contextlib.suppress(OSError):
                reading, writing = await asyncio.open_connection(
                    LOOPBACK,
                    port,
                    ssl=context,
                    server_hostname="localhost",
                    ssl_handshake_timeout=PATIENCE_S,
                )
                try:
                    await session(reading, writing)
                finally:
                    writing.transport.abort()
            await asyncio.sleep(RETRY_S)

    await asyncio.gather(*(keep(session) for session in sessions))


async def _read_all(reading: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reading.read(65536):
            pass
