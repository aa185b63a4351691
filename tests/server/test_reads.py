"""Answers to reads: in pieces, at the pace of the client, and no client's at the cost of others."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest

from tests.support.faults.samples import peak_memory_kb
from tests.support.harness import PATIENCE_S, Answer, Server, StartServer, exchange
from tests.support.hostile_requests import HOST
from tests.support.log_events import fill, fill_history
from tests.support.raw_http import PLAIN, read_answers
from tests.support.slow_client import ask, in_kernel, settled
from tests.support.with_constants import (
    MAX_READS,
    MAX_READS_EACH,
    MAX_REQUESTS_EACH,
    MAX_UNSENT_BYTES,
    PIECE,
    READ_WAIT_S,
)
from tornado_status.api.live.subscription import MAX_UNREAD_BYTES
from tornado_status.api.users import MAX_OWN_HISTORY
from tornado_status.model.records import LogSlice
from tornado_status.runtime.fair_semaphore import FairSemaphore
from tornado_status.store.follow.feed import Feed
from tornado_status.store.store import Store

VALID = "valid_user@example.com"
HISTORY = f"/api/users/{VALID}/history"
EVENTS = 60_000  # about 9 MB
SMALL = 2_000_000  # bytes: of what the server may hold for an answer
TOO_MANY = "As many answers as allowed are under way: read yours, then try again"


def pages(server: Server, path: str, member: str, limit: int) -> list[Any]:
    """Return what `path` lists, read page by page along the Link headers."""
    found: list[Any] = []
    following: str | None = f"{path}{'&' if '?' in path else '?'}limit={limit}"
    connection = server.connect("operator")
    with contextlib.closing(connection):
        while following is not None:
            answer = exchange(connection, "GET", following)
            assert answer.status == 200
            page = answer.json
            assert 0 < len(page[member]) <= limit
            found += page[member]
            link = answer.headers["Link"]
            following = None if link is None else link.removeprefix("<").split(">")[0]
            if "next" in page:
                assert page["next"] == following
    return found


@pytest.mark.parametrize("limit", [249, 250, 251, 500, 600, 1000])
def test_pages_in_pieces_are_whole(server: Server, limit: int) -> None:
    """With sizes around those of pieces: nothing is missing, and nothing comes twice."""
    fill_history(server, VALID, 599)
    server.rows(
        "INSERT INTO user_status (email, seq, last_seen, first_seen, client_ip, client_port,"
        " issuer, serial, offline) SELECT 'user' || n || '@example.com', n, now(), now(),"
        " '10.0.0.1', 5, 'CN=a', '1', false FROM generate_series(1, 599) n"
    )
    numbers = list(range(1, 601))
    assert [each["seq"] for each in pages(server, "/api/events", "events", limit)] == numbers
    history = pages(server, HISTORY, "events", limit)
    assert [each["seq"] for each in history] == numbers[::-1]
    users = [each["email"] for each in pages(server, "/api/users", "users", limit)]
    assert users == [
        email for (email,) in server.rows("SELECT email FROM user_status ORDER BY email")
    ]


@pytest.mark.parametrize("path", ["/api/events", "/api/users", HISTORY])
def test_a_page_in_pieces_has_an_etag(start_server: StartServer, path: str) -> None:
    """304 as long as nothing has changed."""
    server = start_server(constants={PIECE: 1})
    for cert in ("client", "operator", "client"):
        assert server.request("POST", "/api/client", cert=cert).status == 204

    def conditional(tag: str) -> Answer:
        connection = server.connect("operator")
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"If-None-Match": tag})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    first = server.request("GET", path, cert="operator")
    assert first.headers["Transfer-Encoding"] == "chunked"
    again = conditional(first.headers["ETag"])
    assert (again.status, again.body) == (304, b"")
    assert server.request("POST", "/api/client").status == 204
    changed = conditional(first.headers["ETag"])
    assert (changed.status, changed.json != first.json) == (200, True)


def test_a_page_for_http_1_0_ends_with_the_connection(start_server: StartServer) -> None:
    """There are no chunks, so nothing else says where it ends."""
    server = start_server(constants={PIECE: 1})
    for _ in range(3):
        assert server.request("POST", "/api/client").status == 204
    with server.connect_raw("operator") as connection:
        connection.sendall(
            b"GET /api/events HTTP/1.0\r\nConnection: keep-alive\r\nHost: localhost\r\n\r\n"
        )
        answer = b""
        while data := connection.recv(65536):
            answer += data
    assert answer.endswith(b"]}")
    assert answer.count(b'"seq"') == 3


def test_large_pages_are_for_readers(server: Server) -> None:
    """A user's own history comes in pages of the default size."""
    fill_history(server, VALID, 3)
    for limit, cert, status in (
        (MAX_OWN_HISTORY, "client", 200),
        (MAX_OWN_HISTORY + 1, "client", 403),
        (MAX_OWN_HISTORY + 1, "operator", 200),
    ):
        assert server.request("GET", f"{HISTORY}?limit={limit}", cert=cert).status == status


@pytest.mark.parametrize("piece", [None, EVENTS], ids=["in pieces", "as a whole"])
def test_a_large_page_is_never_whole_in_memory(
    start_server: StartServer, piece: int | None
) -> None:
    """Nor is it made in one go, which would stop check-ins meanwhile."""
    server = start_server(constants={} if piece is None else {PIECE: piece})
    fill(server, EVENTS)
    before = peak_memory_kb(server.process.pid)
    page = server.request("GET", f"/api/events?limit={EVENTS}", cert="operator")
    assert len(page.json["events"]) == EVENTS
    grown = (peak_memory_kb(server.process.pid) - before) * 1024
    assert grown < len(page.body) / 2 if piece is None else grown > len(page.body)


# ------------------------------------------------------------------------ clients that do not read


@contextlib.contextmanager
def unread(server: Server, count: int, waiting: int = 0) -> Iterator[list[ssl.SSLSocket]]:
    """Connections of one client that ask for its history, and do not read it.

    The answer to `count` of them has begun; `waiting` more come behind.
    """
    request = f"GET {HISTORY}.csv HTTP/1.1\r\n".encode() + HOST + b"\r\n"
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(ask(server, request, "client", answered=number < count))
            for number in range(count + waiting)
        ]


@pytest.mark.parametrize("shared", [True, False], ids=["as it is", "without shares"])
def test_a_client_that_does_not_read_waits_for_itself(
    start_server: StartServer, shared: bool
) -> None:
    """Its further reads wait, then get 503. Its check-ins, and all of others, do not."""
    shares = {} if shared else {MAX_READS_EACH: 100, MAX_REQUESTS_EACH: 100}
    server = start_server(constants={READ_WAIT_S: 0.5, **shares})
    fill_history(server, VALID, 20_000)
    with unread(server, 4, waiting=4):
        for _ in range(4 if shared else 0):
            assert server.wait_event("request")["status"] == 503
        refused = server.request("GET", HISTORY)
        assert refused.status == (503 if shared else 200)
        if shared:
            assert refused.headers["Retry-After"] == "10"
            assert refused.detail == TOO_MANY
        assert server.request("GET", HISTORY, cert="operator").status == 200
        assert server.request("GET", "/api/client").status == (503 if shared else 200)
        with server.connect_raw() as connection:
            connection.sendall(PLAIN)
            assert b" 204 " in read_answers(connection, 1)


def test_who_waits_and_hangs_up_waits_no_longer(start_server: StartServer) -> None:
    """Or clients that come again and again would leave a crowd of waiting requests behind."""
    server = start_server(constants={READ_WAIT_S: 3600, MAX_READS_EACH: 1})
    fill_history(server, VALID, 20_000)
    with unread(server, 1, waiting=1) as (_, waiting):
        # Accepted after it: the request that waits has been read by then.
        assert server.request("GET", "/api/users", cert="operator").status == 200
        waiting.close()
        server.log.wait_for(lambda line: '"status": 503' in line, "the end of its wait")


def test_all_clients_together_have_a_limit(start_server: StartServer) -> None:
    """Another client's read waits, then gets 503."""
    server = start_server(constants={READ_WAIT_S: 0.5, MAX_READS: 2})
    fill_history(server, VALID, 20_000)
    with unread(server, 2):
        assert server.request("GET", "/api/events", cert="operator").status == 503
        assert server.request("POST", "/api/client", cert="operator").status == 204


@pytest.mark.parametrize("bounded", [True, False], ids=["as it is", "by the kernel's default"])
def test_the_kernel_holds_little_of_an_answer(start_server: StartServer, bounded: bool) -> None:
    """For a client whose window is shut."""
    server = start_server(constants={} if bounded else {MAX_UNSENT_BYTES: 0})
    fill_history(server, VALID, 60_000)
    with unread(server, 1) as (connection,):
        held = settled(lambda: in_kernel(server, connection)[0])
    assert (held < 4 * 65_536) == bounded, held


def test_the_kernel_holds_little_of_a_live_stream(server: Server) -> None:
    """More than of a page, because events come by themselves."""
    fill_history(server, VALID, 20_000)
    request = f"GET /api/stream?email={VALID}&after=0 HTTP/1.1\r\n".encode() + HOST + b"\r\n"
    with ask(server, request, "client") as connection:
        held = settled(lambda: in_kernel(server, connection)[0])
    assert held < MAX_UNREAD_BYTES + 2 * 65_536


def test_a_place_of_one_key_is_no_place_of_another() -> None:
    """And nothing is left of a key that is not in use."""

    async def main() -> None:
        semaphore = FairSemaphore(each=1, total=2)
        await semaphore.acquire("a")
        waiting = [asyncio.ensure_future(hold(semaphore, "a")) for _ in range(3)]
        await asyncio.sleep(0)
        await semaphore.acquire("b")
        third = asyncio.ensure_future(hold(semaphore, "c"))
        await asyncio.sleep(0)
        assert not third.done()
        semaphore.release("b")
        await third
        assert not any(each.done() for each in waiting)
        waiting.pop().cancel()
        semaphore.release("a")
        await asyncio.gather(*waiting)
        assert not semaphore._shares

    async def hold(semaphore: FairSemaphore, key: str) -> None:
        await semaphore.acquire(key)
        await asyncio.sleep(0)
        semaphore.release(key)

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


class SlowLog:
    """A log whose pages for the e-mail `VALID` are not read before `go` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def log_slice(self, after: int, span: int, emails: Sequence[str]) -> LogSlice:
        if VALID in emails:
            await self.go.wait()
        return LogSlice(uuid.UUID(int=0), 0, [], after)


def test_streams_of_one_identity_that_catch_up_leave_a_turn_to_others() -> None:
    async def main() -> None:
        log = SlowLog()
        feed = Feed(cast(Store, log), lambda following: None)
        many = [asyncio.ensure_future(feed.read(0, [VALID], VALID)) for _ in range(20)]
        await asyncio.sleep(0)
        for _ in range(3):
            await feed.read(0, ["other@example.com"], "other@example.com")
        assert not any(each.done() for each in many)
        log.go.set()
        await asyncio.gather(*many)

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
