"""Attackers: each works with all it has, in a process of its own, until the test ends it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import resource
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.harness import LOOPBACK, client_context

RETRY_S = 0.1  # after a connection that failed
CONNECTS_PER_S = 1000  # of a crowd; more is for a firewall to stop
ADDRESSES = tuple(f"127.0.1.{number}" for number in range(1, 9))  # of strangers


@contextlib.contextmanager
def attacking(attack: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Meanwhile `attack(*arguments)` runs in a process of its own, which may have many sockets."""
    process = multiprocessing.get_context("spawn").Process(
        target=_run, args=(attack, *arguments), daemon=True
    )
    process.start()
    try:
        yield
        assert process.is_alive(), "the attack ended early"
    finally:
        process.kill()
        process.join()


def _run(attack: Callable[..., None], *arguments: Any) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    attack(*arguments)


def client_hello() -> bytes:
    """Return the first message of a handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def crowd_in(port: int, begin: bytes, count: int, addresses: Sequence[str]) -> None:
    """Connect again and again, send `begin` and no more, and hold the last `count` connections.

    Fewer if not so many files may be open.
    """
    count = min(count, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 100)
    held: deque[socket.socket] = deque()
    begun = time.monotonic()
    for number in itertools.count():
        while number > CONNECTS_PER_S * (time.monotonic() - begun):
            time.sleep(0.001)
        stranger = socket.socket()
        stranger.setblocking(False)
        stranger.bind((addresses[number % len(addresses)], 0))
        with contextlib.suppress(BlockingIOError):
            stranger.connect((LOOPBACK, port))
        held.append(stranger)
        if len(held) >= 64:
            with contextlib.suppress(OSError):  # not connected yet, or refused
                held[-64].send(begin)
        if len(held) > count:
            held.popleft().close()


def pipeline(port: int, certs: Path, names: Sequence[str], each: int, requests: bytes) -> None:
    """Send `requests` without end over `each` connections of each name, and read the answers."""

    async def send(writing: asyncio.StreamWriter) -> None:
        while True:
            writing.write(requests)
            await writing.drain()

    async def work(context: ssl.SSLContext, address: str) -> None:
        while True:
            with contextlib.suppress(OSError):
                reading, writing = await asyncio.open_connection(
                    LOOPBACK,
                    port,
                    ssl=context,
                    server_hostname="localhost",
                    local_addr=(address, 0),
                )
                sending = asyncio.ensure_future(send(writing))
                try:
                    while await reading.read(65536):
                        pass
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
                    writing.transport.abort()
            await asyncio.sleep(RETRY_S)

    async def work_all() -> None:
        await asyncio.gather(
            *(
                work(client_context(certs, name), ADDRESSES[number % len(ADDRESSES)])
                for number, name in enumerate(names)
                for _ in range(each)
            )
        )

    asyncio.run(work_all())
