"""The stream of a check-in connection, on a pair of sockets: direct first, then Tornado's."""

from __future__ import annotations

import asyncio
import inspect
import re
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from tornado.iostream import BaseIOStream, IOStream, StreamClosedError

from tornado_status.ingress.peer_stream import READ_CHUNK, CheckInStream, PeerStream

PATIENCE_S = 10
LARGE = b"x" * 4_000_000  # bytes, more than the kernel takes at once


@dataclass
class Pair:
    """A stream with the other end of its socket, and what it called back with."""

    stream: CheckInStream
    peer: socket.socket
    data: list[bytes] = field(default_factory=list)
    sent: asyncio.Event = field(default_factory=asyncio.Event)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    def on_data(self, data: bytes) -> None:
        self.data.append(data)
        self.came.set()

    async def next_data(self) -> bytes:
        await asyncio.wait_for(self.came.wait(), PATIENCE_S)
        self.came.clear()
        return self.data[-1]


def on_a_pair(scenario: Callable[[Pair], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Make a test of a coroutine function that takes a `Pair`."""

    async def run() -> None:
        ours, peer = socket.socketpair()
        peer.setblocking(False)
        pair = Pair(CheckInStream(ours), peer)
        pair.stream.serve(pair.on_data, pair.sent.set)
        try:
            await scenario(pair)
        finally:
            pair.stream.close()
            peer.close()

    def test() -> None:
        asyncio.run(run())

    test.__doc__ = scenario.__doc__
    return test


async def turns() -> None:
    """Let the loop look at its sockets a few times."""
    for _ in range(5):
        await asyncio.sleep(0)


@on_a_pair
async def test_each_call_is_asked_for(pair: Pair) -> None:
    """Bytes that were not asked for wait in the socket: that is the back-pressure."""
    pair.peer.send(b"first")
    assert await pair.next_data() == b"first"
    pair.peer.send(b"second")
    await turns()
    assert pair.data == [b"first"]
    pair.stream.receive()
    assert await pair.next_data() == b"second"


@on_a_pair
async def test_much_comes_in_pieces(pair: Pair) -> None:
    pair.peer.send(b"x" * (READ_CHUNK + 1))
    assert await pair.next_data() == b"x" * READ_CHUNK
    pair.stream.receive()
    assert await pair.next_data() == b"x"


@on_a_pair
async def test_a_reply_that_the_kernel_does_not_take_is_sent_in_order(pair: Pair) -> None:
    assert pair.stream.reply(b"1")
    assert not pair.stream.reply(LARGE)
    assert not pair.stream.reply(b"2")
    expected = b"1" + LARGE + b"2"
    read = bytearray()
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE_S):
        while len(read) < len(expected):
            assert not pair.sent.is_set() or len(expected) - len(read) <= len(LARGE)
            read += await loop.sock_recv(pair.peer, 1 << 20)
        await pair.sent.wait()
    assert read == expected
    assert pair.stream.reply(b"3")


@on_a_pair
async def test_the_end_is_told_once(pair: Pair) -> None:
    assert not pair.stream.reply(LARGE)
    pair.stream.close()
    assert await pair.next_data() == b""
    await turns()
    assert pair.data == [b""]
    assert not pair.sent.is_set()
    with pytest.raises(StreamClosedError):
        pair.stream.reply(b"late")
    pair.stream.receive()  # asks for nothing: it is told already


@on_a_pair
async def test_a_peer_that_hangs_up_closes_the_stream(pair: Pair) -> None:
    pair.peer.close()
    assert await pair.next_data() == b""
    assert pair.stream.closed()
    await turns()
    assert pair.data == [b""]


@on_a_pair
async def test_a_peer_that_resets_with_replies_under_way(pair: Pair) -> None:
    assert not pair.stream.reply(LARGE)
    pair.peer.close()
    assert await pair.next_data() == b""
    assert pair.stream.closed()


@on_a_pair
async def test_ordinary_http_reads_what_was_returned_and_what_follows(pair: Pair) -> None:
    pair.peer.send(b"GET / HTTP/1.1\r\n")
    data = await pair.next_data()
    pair.stream.unread(data)
    pair.peer.send(b"Host: a\r\n\r\nrest")
    reading = pair.stream.read_until_regex(rb"\r?\n\r?\n")
    head = await asyncio.wait_for(reading, PATIENCE_S)
    assert head == b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    await asyncio.wait_for(pair.stream.write(b"answer"), PATIENCE_S)
    assert pair.peer.recv(100) == b"answer"
    assert await asyncio.wait_for(pair.stream.read_bytes(4), PATIENCE_S) == b"rest"
    assert pair.data == [data]


def own_names(kind: type) -> set[str]:
    """Return the names that our classes give to a stream, in the class or on `self`."""
    found: set[str] = set()
    for each in kind.__mro__:
        if each.__module__.startswith("tornado_status."):
            found |= vars(each).keys() | getattr(each, "__annotations__", {}).keys()
            found |= set(re.findall(r"self\.(_\w+)(?:: [^=]+)? = ", inspect.getsource(each)))
    return found


def test_nothing_private_of_tornado_is_overridden() -> None:
    """Of another version of Tornado, too: streams of one's own are documented."""
    ours, peer = socket.socketpair()

    async def names_of_tornado() -> set[str]:
        stream = IOStream(ours)
        try:
            return {*dir(stream)}
        finally:
            stream.close()

    private = {name for name in asyncio.run(names_of_tornado()) if re.match("_[^_]", name)}
    peer.close()
    assert "_read_buffer" in private
    assert "_handle_events" in private
    assert "_unsent" in own_names(PeerStream)
    assert not own_names(PeerStream) & private
    assert vars(BaseIOStream).keys() >= {"read_from_fd", "write_to_fd", "close_fd"}
