"""A client that does not read its answer costs little, for a while; a slow client gets it."""

from __future__ import annotations

import contextlib
import http.client
import socket
import time

import pytest

from tests.support.faults.samples import peak_memory_kb
from tests.support.harness import LOOPBACK, PATIENCE_S, Server, StartServer, exchange, wait_until
from tests.support.hostile_requests import HOST
from tests.support.log_events import fill
from tests.support.metrics import metric
from tests.support.slow_client import ask
from tests.support.with_constants import KEEP_ALIVE_S, MAX_UNREAD_BYTES, STALL_S
from tornado_status.observe.management import MAX_CONNECTIONS
from tornado_status.runtime import http_timeouts

pytestmark = pytest.mark.once  # the kernel's buffers, and deadlines of half a minute

EVENTS = 60_000  # about 12 MB: more than the kernel's buffers take
PAGE = b"GET /api/events?after=0&limit=%d HTTP/1.1\r\n" % EVENTS + HOST + b"\r\n"
STREAM = b"GET /api/stream HTTP/1.1\r\n" + HOST + b"\r\n"
SOCKET = (
    b"GET /api/socket HTTP/1.1\r\n"
    + HOST
    + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
ENDLESS = 600.0  # of settings that are not what a test is about


def test_an_answer_that_nobody_reads_is_dropped(server: Server) -> None:
    """And one that is read slowly, and for longer, is not."""
    fill(server, EVENTS)
    size = len(server.request("GET", f"/api/events?after=0&limit={EVENTS}", cert="operator").body)
    stalled, slow = ask(server, PAGE), ask(server, PAGE)
    taken = 0

    def only_slow_is_left() -> bool:
        nonlocal taken
        taken += len(slow.recv(256))  # at a rate at which the kernel's buffer lasts for minutes
        return metric(server, "connections") == 1

    wait_until(only_slow_is_left, "the end of the other")
    # On, until it would have been dropped, too: the kernel takes nothing more for so long.
    slow_until = time.monotonic() + http_timeouts.STALL_S + 5
    while time.monotonic() < slow_until:
        data = slow.recv(256)
        assert data
        taken += len(data)
        time.sleep(0.02)
    while taken < size:
        data = slow.recv(65536)
        assert data
        taken += len(data)
    stalled.close()
    slow.close()


@pytest.mark.parametrize("request_", [STREAM, SOCKET], ids=["SSE", "WebSocket"])
def test_a_follower_that_reads_nothing_is_cut_off_in_time(
    start_server: StartServer, request_: bytes
) -> None:
    """Also with requests waiting behind it, and when nothing sent can show that it is stuck."""
    server = start_server(
        constants={MAX_UNREAD_BYTES: 100_000_000, KEEP_ALIVE_S: ENDLESS, STALL_S: 3}
    )
    follower = ask(server, request_)
    wait_until(lambda: metric(server, "streams") == 1, "the stream")
    fill(server, EVENTS)
    assert server.request("POST", "/api/client").status == 204  # which wakes the feed
    wait_until(lambda: metric(server, "streams") == 0, "its end")
    assert metric(server, 'streams_ended_total{reason="slow"}') == 1
    follower.close()


def test_followers_that_read_nothing_cost_a_bounded_amount(server: Server) -> None:
    """Each what may wait for it and no more, of either kind."""
    # Each wants something else, or all would wait for the same bytes.
    followers = [
        ask(server, each.replace(b" HTTP", b"?email=user*&email=%d@example.com HTTP" % number, 1))
        for each in (STREAM, SOCKET)
        for number in range(20)
    ]
    wait_until(lambda: metric(server, "streams") == 40, "the streams")
    before = peak_memory_kb(server.process.pid)
    fill(server, EVENTS)
    assert server.request("POST", "/api/client").status == 204
    wait_until(lambda: metric(server, 'streams_ended_total{reason="slow"}') == 40, "their ends")
    grown = peak_memory_kb(server.process.pid) - before
    assert grown < 100_000  # by 200 MB if all of it may wait
    for follower in followers:
        follower.close()


def test_the_management_port_is_open_again_to_others_in_time(server: Server) -> None:
    """Though peers that read nothing have all its connections."""
    request = b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            peer = stack.enter_context(socket.socket())
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.settimeout(PATIENCE_S)
            peer.connect((LOOPBACK, server.management_port))
            peer.sendall(request * 400)
        late = http.client.HTTPConnection(LOOPBACK, server.management_port, timeout=2 * PATIENCE_S)
        with contextlib.closing(late):
            assert exchange(late, "GET", "/healthz").status == 200
