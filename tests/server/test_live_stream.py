"""The live stream: every event once and in order over restarts, for permitted readers only."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import http.client
import json
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import psycopg2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from certs_gen.authority import Authority
from tests.support.faults.samples import peak_memory_kb
from tests.support.harness import PATIENCE_S, Postgres, Server, StartServer, exchange, wait_until
from tests.support.log_events import fill
from tests.support.metrics import metric
from tests.support.subscriber import Subscriber
from tests.support.trust_site import Site, now, replace
from tests.support.with_constants import (
    KEEP_ALIVE_S,
    MAX_IGNORED,
    MAX_PER_READER,
    MAX_UNREAD_BYTES,
)
from tornado_status.api.live import event_filter
from tornado_status.model.records import Event
from tornado_status.store.follow import notify_channel

VALID = "valid_user@example.com"
OPERATOR = "operator@example.com"


def check_in(server: Server, times: int = 1, cert: str = "client") -> None:
    connection = server.connect(cert)
    for _ in range(times):
        assert exchange(connection, "POST", "/api/client").status == 204
    connection.close()


def log(server: Server, after: int = 0) -> list[dict[str, Any]]:
    """Return the log as readers get it, checked against the table."""
    page = server.request("GET", f"/api/events?after={after}&limit=100000", cert="operator")
    events: list[dict[str, Any]] = page.json["events"]
    stored = server.rows("SELECT seq, event, email FROM check_in WHERE seq > %s ORDER BY 1", after)
    assert [(e["seq"], e["event"], e["email"]) for e in events] == stored
    return events


@contextlib.contextmanager
def checking_in(*servers: Server) -> Iterator[Callable[[], int]]:
    """Keep checking in at servers, also over restarts; yields a count of successes."""
    stop = threading.Event()
    acknowledged = [0] * len(servers)

    def run(number: int) -> None:
        server, connection = servers[number], None
        while not stop.is_set():
            try:
                connection = connection or server.connect()
                acknowledged[number] += exchange(connection, "POST", "/api/client").status == 204
            except (OSError, http.client.HTTPException):
                if connection is not None:
                    connection.close()
                connection = None
                stop.wait(0.05)
        if connection is not None:
            connection.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(servers))]
    for thread in threads:
        thread.start()
    try:
        yield lambda: sum(acknowledged)
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)


def await_more(count: Callable[[], int], more: int) -> None:
    before = count()
    wait_until(lambda: count() >= before + more, f"{more} more check-ins")


# --------------------------------------------------------------------------------------- following


def test_the_stream_starts_at_now_with_one_message_an_event(server: Server) -> None:
    """The id is the log id and the number, the data is the event as in a datagram."""
    check_in(server, 2)
    with Subscriber(server) as subscriber:
        assert subscriber.status == 200
        assert subscriber.headers["Content-Type"] == "text/event-stream"
        hello = subscriber.expect("position")
        assert (hello.id, hello.data["seq"]) == (2, 2)
        assert hello.data["log"] == str(server.rows("SELECT log_id::text FROM head")[0][0])
        check_in(server, cert="operator")
        check_in(server)
        first, second = subscriber.expect(), subscriber.expect()
    assert (first.id, first.kind, second.id, second.kind) == (3, "new", 4, "check-in")
    assert [first.data, second.data] == log(server, 2)
    assert subscriber.last_id == f"{hello.data['log']}:4"


@pytest.mark.parametrize("how", ["header", "query"])
def test_a_reader_resumes_where_it_was(server: Server, how: str) -> None:
    """By Last-Event-ID or `after`, from the log without a gap; then live."""
    check_in(server, 5)
    query, last = ("", 2) if how == "header" else ("?after=2", None)
    with Subscriber(server, query, last=last) as subscriber:
        assert subscriber.expect("position").id == 2
        assert subscriber.events(3) == log(server, 2)
        check_in(server)
        assert subscriber.events(1) == log(server, 5)


def test_a_gap_or_a_repetition_would_show(server: Server) -> None:
    """The control of all tests here that compare with the log."""
    check_in(server, 5)
    for wrong in (1, 3):
        with Subscriber(server, last=wrong) as subscriber:
            assert subscriber.until(5) != log(server, 2)


def test_last_event_id_wins_over_the_url(server: Server) -> None:
    """A browser reconnects with the first URL, and sends its position in the header."""
    check_in(server, 3)
    with Subscriber(server, "?after=0", last=2) as subscriber:
        assert subscriber.events(1) == log(server, 2)


def test_events_of_all_servers_come_in_order_and_once(start_server: StartServer) -> None:
    """Subscribers at two servers, while clients check in at both."""
    first, second = start_server(), start_server()
    check_in(first)
    subscribers = [Subscriber(server, last=0) for server in (first, second) for _ in range(3)]
    with checking_in(first, second) as count:
        await_more(count, 200)
    head = first.rows("SELECT seq FROM head")[0][0]
    expected = log(first)
    assert [event["seq"] for event in expected] == list(range(1, head + 1))
    for subscriber in subscribers:
        assert subscriber.until(head) == expected
        subscriber.close()


def test_a_stream_survives_the_end_of_its_server(start_server: StartServer) -> None:
    """kill -9 during check-ins: resumed at another server, nothing is missing or repeated."""
    first, second = start_server(), start_server()
    subscriber = Subscriber(first, last=0)
    with checking_in(first, second) as count:
        await_more(count, 50)
        got = subscriber.events(20)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(PATIENCE_S)
        got += subscriber.rest()
        assert not subscriber.ended_well
        await_more(count, 20)
        subscriber.close()
        subscriber = Subscriber(second, last=subscriber.last)
        await_more(count, 20)
    head = second.rows("SELECT seq FROM head")[0][0]
    got += subscriber.until(head)
    subscriber.close()
    assert got == log(second)


def test_a_stream_survives_a_restart_of_the_database(
    own_postgres: Postgres, start_server: StartServer
) -> None:
    """The connection stays open, and continues without a gap."""
    server = start_server(url=own_postgres.url)
    with Subscriber(server, last=0) as subscriber, contextlib.ExitStack() as stack:
        count = stack.enter_context(checking_in(server))
        await_more(count, 20)
        got = subscriber.events(10)
        own_postgres.stop()
        wait_until(lambda: server.management("/readyz").status == 503, "a database that is away")
        own_postgres.start()
        await_more(count, 20)
        late = Subscriber(server, last=3)
        stack.close()
        head = server.rows("SELECT seq FROM head")[0][0]
        got += subscriber.until(head)
        assert got == log(server)
        assert late.until(head) == log(server, 3)
        late.close()


def test_events_of_another_server_arrive_though_the_notify_connection_is_cut(
    start_server: StartServer,
) -> None:
    """The log is read again, and the channel reconnects."""
    first, second = start_server(), start_server()
    with Subscriber(second) as subscriber:
        check_in(first)
        assert subscriber.events(1) == log(first)
        for _ in range(3):
            second.rows(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
                " AND objid = %s",
                notify_channel.FOLLOWING,
            )
            head = log(first)[-1]["seq"]
            check_in(first)
            assert subscriber.events(1) == log(first, head)


def test_a_server_notifies_only_if_another_one_has_subscriptions(start_server: StartServer) -> None:
    """Check-ins pay nothing otherwise. A server that begins to listen learns the head."""
    server = start_server()
    check_in(server)
    connection = psycopg2.connect(server.database_url)
    connection.autocommit = True
    cursor = connection.cursor()

    def notified() -> int:
        def received() -> bool:
            connection.poll()
            return bool(connection.notifies)

        wait_until(received, "a notification")
        return int(connection.notifies.pop(0).payload)

    cursor.execute(f"LISTEN {notify_channel.HEAD}")
    check_in(server, 3)
    cursor.execute(f"SELECT pg_advisory_lock_shared({notify_channel.FOLLOWING})")
    cursor.execute(f"NOTIFY {notify_channel.FOLLOW}")
    assert notified() == 4  # and nothing of the three before
    check_in(server)
    while (head := notified()) == 4:
        pass  # seen in pg_locks and by NOTIFY, a server may be notified twice
    assert head == 5
    connection.close()


def test_a_forged_notification_changes_nothing(server: Server) -> None:
    """Any account of the database may NOTIFY."""
    with Subscriber(server) as subscriber:
        for lie in ("9223372036854775807", "99999999999999999999", "-1", "x", ""):
            server.rows(f"SELECT pg_notify('{notify_channel.HEAD}', %s)", lie)
        check_in(server, 3)
        assert subscriber.events(3) == log(server)


# ----------------------------------------------------------------------------------------- bounds


def test_a_slow_client_is_closed_and_loses_nothing(server: Server) -> None:
    """A fast client at the same time stays; the slow one resumes from the log."""
    slow, quick = Subscriber(server, receive_buffer=4096), Subscriber(server)
    assert slow.expect("position").id == quick.expect("position").id == 0
    head = fill(server, 60_000)
    seen: list[int] = []
    reader = threading.Thread(target=lambda: seen.extend(e["seq"] for e in quick.until(head)))
    reader.start()
    wait_until(lambda: metric(server, 'streams_ended_total{reason="slow"}') == 1, "a cut")
    reader.join(PATIENCE_S)
    assert seen == list(range(1, head + 1))
    got = [event["seq"] for event in slow.rest()]
    assert got
    assert not slow.ended_well
    assert len(got) < head
    with Subscriber(server, last=slow.last) as resumed:
        got += [event["seq"] for event in resumed.until(head)]
    assert got == list(range(1, head + 1))
    assert metric(server, "streams") == 1
    slow.close()
    quick.close()
    check_in(server)


def test_a_slow_client_catches_up_at_its_own_pace(server: Server) -> None:
    """The server waits for it, and holds no more than a page for it."""
    head = fill(server, 60_000)
    with Subscriber(server, last=0, receive_buffer=4096) as subscriber:
        assert subscriber.expect("position").id == 0
        check_in(server, 3)  # meanwhile
        assert [e["seq"] for e in subscriber.until(head + 3)] == list(range(1, head + 4))
    assert metric(server, 'streams_ended_total{reason="slow"}') == 0


def test_a_reader_that_pauses_stays_subscribed(start_server: StartServer) -> None:
    """Its kernel acknowledges with a closed window. When it reads again, it gets everything."""
    server = start_server(constants={KEEP_ALIVE_S: 0.1, MAX_UNREAD_BYTES: 100_000_000})
    with Subscriber(server, receive_buffer=4096) as subscriber:
        assert subscriber.expect("position").id == 0
        head = fill(server, 5_000)
        check_in(server)
        paused = time.monotonic()
        while time.monotonic() - paused < 1:
            assert metric(server, "streams") == 1
            time.sleep(0.1)
        assert [e["seq"] for e in subscriber.until(head + 1)] == list(range(1, head + 2))


def test_streams_have_a_limit(start_server: StartServer) -> None:
    """503 with Retry-After, and a client that leaves frees its slot."""
    server = start_server(live={"max_streams": 2})
    subscribers = [Subscriber(server), Subscriber(server)]
    refused = Subscriber(server)
    assert refused.headers["Retry-After"] == "10"
    assert refused.answer() == (503, "As many streams as allowed are open")
    assert metric(server, "streams") == 2
    subscribers[0].close()
    wait_until(lambda: metric(server, "streams") == 1, "a free place")
    with Subscriber(server) as again:
        assert again.status == 200
    subscribers[1].close()


def test_no_identity_takes_all_slots(start_server: StartServer) -> None:
    """A user may have twenty; a reader may have more, and has a limit, too."""
    server = start_server(constants={MAX_PER_READER: 21})
    subscribers = [Subscriber(server, f"?email={VALID}", cert="client") for _ in range(20)]
    assert {subscriber.status for subscriber in subscribers} == {200}
    refused = Subscriber(server, f"?email={VALID}", cert="client")
    assert refused.answer() == (503, "You have as many streams as allowed")
    more = [Subscriber(server) for _ in range(21)]
    assert {subscriber.status for subscriber in more} == {200}
    assert Subscriber(server).answer() == (503, "You have as many streams as allowed")
    for subscriber in subscribers + more:
        subscriber.close()


def test_keep_alive_messages_prevent_the_idle_timeout(start_server: StartServer) -> None:
    """Positions are sent again and again; they advance also if the filter selects nothing."""
    server = start_server(server={"idle_timeout_s": 0.5}, constants={KEEP_ALIVE_S: 0.3})
    began = time.monotonic()
    with Subscriber(server, "?email=nobody@example.com") as subscriber:
        check_in(server)
        while time.monotonic() - began < 2:
            said = subscriber.expect("position")
        assert said.id == subscriber.last == 1
    with Subscriber(server) as subscriber:
        assert subscriber.expect("position").id == 1
        check_in(server)
        assert subscriber.expect().id == 2
    wait_until(lambda: metric(server, "streams") == 0, "the clients' ends to be noticed")


def test_a_client_that_sends_data_is_closed(server: Server) -> None:
    """The server bounds what it reads and ignores."""
    with server.connect_raw("operator") as raw:
        raw.sendall(b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 200")
        with contextlib.suppress(OSError):
            raw.sendall(b"x" * 10_000)
            while raw.recv(4096):
                pass
    wait_until(lambda: metric(server, "streams") == 0, "the end of the stream")
    assert server.request("POST", "/api/client").status == 204


# ----------------------------------------------------------------------------------------- filters


def test_readers_filter_by_pattern_and_kind(server: Server) -> None:
    """Patterns are those of access.readers; any one of several terms may match."""
    subscribers = {
        query: Subscriber(server, query)
        for query in (
            "?email=OPERATOR@*",
            "?email=valid_user@example.com",
            "?email=nobody@example.com&email=*_user@example.com",
            "?event=new",
            "?event=new&email=valid*",
            "?event=check-in&event=offline",
        )
    }
    for cert in ("client", "operator", "client", "operator", "client"):
        check_in(server, cert=cert)
    everything = log(server)
    expected = {
        "?email=OPERATOR@*": [2, 4],
        "?email=valid_user@example.com": [1, 3, 5],
        "?email=nobody@example.com&email=*_user@example.com": [1, 3, 5],
        "?event=new": [1, 2],
        "?event=new&email=valid*": [1],
        "?event=check-in&event=offline": [3, 4, 5],
    }
    for query, numbers in expected.items():
        wanted_events = [everything[number - 1] for number in numbers]
        assert subscribers[query].events(len(numbers)) == wanted_events, query
        subscribers[query].close()
        with Subscriber(server, query, last=0) as resumed:
            assert resumed.events(len(numbers)) == wanted_events, query


def test_a_user_may_subscribe_to_own_events_only(server: Server) -> None:
    """403 otherwise, also if the own e-mail is one of several."""
    subscriber = Subscriber(server, f"?email={VALID.upper()}", cert="client")
    for cert in ("operator", "client", "operator", "client"):
        check_in(server, cert=cert)
    assert [event["seq"] for event in subscriber.events(2)] == [2, 4]
    subscriber.close()
    with Subscriber(server, f"?email={VALID}", cert="client", last=2) as resumed:
        assert [event["seq"] for event in resumed.events(1)] == [4]
    for query in ("", "?email=*", f"?email={OPERATOR}", f"?email={VALID}&email={OPERATOR}"):
        refused = Subscriber(server, query, cert="client")
        assert refused.answer() == (403, "Only readers may see this"), query
        refused.close()


def test_an_email_that_looks_like_a_pattern_is_only_itself() -> None:
    """`*@example.com` is a valid address: its owner sees no events of other users."""
    moment = datetime.datetime.now(datetime.UTC)
    events = [
        Event(n, "check-in", email, moment, "10.0.0.1", 5)
        for n, email in enumerate(("*@example.com", "somebody@example.com"), start=1)
    ]
    assert event_filter.own_events("*@example.com", ()).select(events) == events[:1]
    assert event_filter.parse_filter(["*@example.com"], ()).select(events) == events
    both = event_filter.EventFilter(frozenset(["*@example.com"]), frozenset(["x*"]))
    assert both.select(events) == events[:1]


@pytest.mark.parametrize(
    ("query", "last", "detail"),
    [
        ("?after=-1", None, "after: expected a whole number"),
        ("?after=99999999999999999999", None, "after: expected a whole number"),
        ("", "x", "Last-Event-ID: expected the id of an event"),
        ("", "x:7", "Last-Event-ID: expected the id of an event"),
        ("", "9" * 30, "Last-Event-ID: expected the id of an event"),
        ("?log=x", None, "log: expected a UUID"),
        ("?event=No+Kind", None, "event: expected up to 20 kinds"),
        ("?email=", None, "email: expected up to 20 patterns"),
        ("?" + "&".join(f"email={n}@example.com" for n in range(21)), None, "email: expected"),
    ],
)
def test_an_invalid_parameter_is_a_400_with_a_sentence(
    server: Server, query: str, last: str | None, detail: str
) -> None:
    headers = {"Last-Event-ID": last} if last is not None else {}
    refused = Subscriber(server, query, headers=headers)
    status, sentence = refused.answer()
    assert status == 400
    assert sentence is not None
    assert sentence.startswith(detail)


def test_other_protocols_are_refused(server: Server) -> None:
    """505 for HTTP/1.0, which has no chunks; 426 for a plain GET of the WebSocket."""
    with server.connect_raw("operator") as raw:
        raw.sendall(b"GET /api/stream HTTP/1.0\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 505")
    answer = server.request("GET", "/api/socket", cert="operator")
    assert (answer.status, answer.headers["Upgrade"]) == (426, "websocket")
    assert server.request("POST", "/api/stream", cert="operator").status == 405
    assert server.request("GET", "/api/socket").status == 426
    assert metric(server, "streams") == 0


def test_other_web_sites_cannot_subscribe(server: Server) -> None:
    """By SSE or WebSocket: their pages could open both with the visitor's certificate."""
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        refused = Subscriber(server, headers=headers)
        assert refused.answer() == (403, "Requests from other web sites are not served")
    with Subscriber(server, headers={"Origin": f"https://localhost:{server.port}"}) as subscriber:
        assert subscriber.status == 200

    async def talk() -> None:
        for origin, status in (("https://evil.example", 403), ("null", 403)):
            with pytest.raises(HTTPClientError) as refused:
                await socket_to(server, headers={"Origin": origin})
            assert refused.value.code == status
        allowed = await socket_to(server, headers={"Origin": f"https://localhost:{server.port}"})
        assert (await say(allowed))["event"] == "position"
        allowed.close()
        await ended(allowed)

    run(talk())


# ------------------------------------------------------------------------------------------- gaps


def test_pruned_events_are_a_gap(server: Server) -> None:
    """Then the stream continues with the oldest event that is kept."""
    check_in(server, 6)
    server.rows("DELETE FROM check_in WHERE seq <= 3")
    for query in ("", "?email=*", f"?email={VALID}"):
        with Subscriber(server, query, last=1) as subscriber:
            gap = subscriber.expect()
            assert (gap.kind, gap.id) == ("gap", 3)
            assert gap.data == {"event": "gap", "from": 2, "to": 3}
            assert [event["seq"] for event in subscriber.events(3)] == [4, 5, 6]
    with Subscriber(server, last=3) as subscriber:  # the other side of the edge: nothing is missing
        assert [event["seq"] for event in subscriber.events(3)] == [4, 5, 6]
    server.rows("DELETE FROM check_in")
    with Subscriber(server, last=1) as subscriber:
        assert subscriber.expect().data == {"event": "gap", "from": 2, "to": 6}
        check_in(server)
        assert subscriber.expect().id == 7


@pytest.mark.parametrize("position", [9, 2**63 - 2, 2**63 - 1])
@pytest.mark.parametrize("query", ["", f"?email={VALID}"])
def test_a_position_above_the_head_is_a_gap(server: Server, query: str, position: int) -> None:
    """`to` is below `from`. The greatest numbers are none that a database can add to."""
    check_in(server, 2)
    with Subscriber(server, query, last=position) as subscriber:
        gap = {"event": "gap", "from": position + 1, "to": 2}
        assert subscriber.expect().data == gap
        check_in(server)
        assert subscriber.expect().id == 3


def test_a_new_log_is_a_gap(server: Server) -> None:
    """For open subscriptions, and for a client that resumes with the old log id."""
    check_in(server, 2)
    with Subscriber(server) as subscriber:
        old = subscriber.expect("position").data["log"]
        server.rows("UPDATE head SET log_id = gen_random_uuid(), seq = 1")
        server.rows("DELETE FROM check_in WHERE seq > 1")
        new = server.rows("SELECT log_id::text FROM head")[0][0]
        assert subscriber.expect().data == {"event": "gap", "from": 1, "to": 1, "log": new}
        with Subscriber(server, f"?log={old}&after=2") as other:
            assert other.expect().data == {"event": "gap", "from": 1, "to": 1, "log": new}
        with Subscriber(server, f"?log={new}&after=0") as other:
            assert other.expect().data["seq"] == 1


# -------------------------------------------------------------------------------------- the end


def test_a_revoked_certificate_ends_its_subscriptions(site: Site) -> None:
    """With the reason; other subscriptions continue."""
    site.start()
    theirs = Subscriber(site.server, f"?email={VALID}", cert="client")
    ours = Subscriber(site.server)
    assert theirs.expect("position").id == 0
    site.revoke("client")
    assert theirs.rest() == []
    assert theirs.comments == ["The certificate is revoked"]
    assert theirs.ended_well
    assert Subscriber(site.server, cert="client").answer()[0] == 403
    check_in(site.server, cert="operator")
    assert ours.expect().id == 1
    theirs.close()
    ours.close()


@pytest.mark.parametrize(
    ("stays", "reason"),
    [
        (True, "The trusted CAs have changed: connect anew"),
        (False, "The certificate's CA is not trusted any more"),
    ],
)
def test_new_trust_anchors_end_all_subscriptions(site: Site, stays: bool, reason: str) -> None:
    """Whether their CA is still trusted or not: clients reconnect, and are verified again."""
    site.start(crl=None)
    theirs = Subscriber(site.server, f"?email={VALID}", cert="client")
    assert theirs.expect("position").id == 0
    other = Authority.create(name="another CA").certificate_pem()
    before = (site.certs / "ca.crt").read_bytes() if stays else b""
    replace(site.certs / "ca.crt", before + other)
    assert theirs.rest() == []
    assert theirs.comments == [reason]
    assert theirs.ended_well
    theirs.close()
    if stays:
        with Subscriber(site.server, f"?email={VALID}", cert="client") as again:
            assert again.expect("position").id == 0


def test_an_expired_certificate_ends_its_subscriptions(site: Site) -> None:
    """At its expiry, not before."""
    site.start()
    brief = site.issue_brief()
    with Subscriber(site.server, "?email=brief@example.com", cert="brief") as subscriber:
        check_in(site.server, cert="brief")
        assert subscriber.expect().id == 1
        assert subscriber.rest() == []
        assert now() > brief.not_valid_after_utc
        assert subscriber.comments == ["The certificate has expired"]


def test_a_graceful_shutdown_delivers_committed_events_and_ends_all_subscriptions(
    server: Server,
) -> None:
    """Neither clients nor the server wait for a time-out."""
    subscribers = [Subscriber(server), Subscriber(server, f"?email={VALID}", cert="client")]
    check_in(server, 5)
    assert server.stop() == 0
    for subscriber in subscribers:
        assert [event["seq"] for event in subscriber.rest()] == [1, 2, 3, 4, 5]
        assert subscriber.comments == ["The server is stopping"]
        assert subscriber.ended_well
        subscriber.close()
    assert not server.events("drain timed out")


def test_a_graceful_shutdown_does_not_wait_for_a_stalled_client(server: Server) -> None:
    """However much data waits for the client."""
    subscriber = Subscriber(server, last=0, receive_buffer=4096)
    fill(server, 20_000)
    assert subscriber.expect().id == 1
    assert server.stop() == 0
    subscriber.close()


def test_the_database_away_is_a_503(own_postgres: Postgres, start_server: StartServer) -> None:
    """For the first subscription; its slot is free again."""
    server = start_server(url=own_postgres.url, live={"max_streams": 1})
    own_postgres.stop()
    refused = Subscriber(server)
    assert refused.status == 503
    assert refused.headers["Retry-After"] == "1"
    refused.close()
    own_postgres.start()
    wait_until(lambda: server.management("/readyz").status == 200, "the database")
    with Subscriber(server) as subscriber:
        assert subscriber.status == 200


# ----------------------------------------------------------------------------------- WebSocket


def run(talk: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await talk

    asyncio.run(bounded())


async def socket_to(
    server: Server,
    query: str = "",
    *,
    cert: str = "operator",
    headers: dict[str, str] | None = None,
) -> WebSocketClientConnection:
    return await websocket_connect(
        HTTPRequest(
            f"wss://localhost:{server.port}/api/socket{query}",
            ssl_options=server.client_context(cert),
            headers=headers or {},
        )
    )


async def say(connection: WebSocketClientConnection) -> dict[str, Any]:
    message = await connection.read_message()
    assert isinstance(message, str), (connection.close_code, connection.close_reason)
    found: dict[str, Any] = json.loads(message)
    return found


async def ended(connection: WebSocketClientConnection) -> tuple[int | None, str | None]:
    while await connection.read_message() is not None:
        pass
    connection.close()  # our side of it
    return connection.close_code, connection.close_reason


def test_a_web_socket_carries_the_same_messages(server: Server) -> None:
    """Resumed or live, with or without a filter."""
    check_in(server, 3)
    subscriber = Subscriber(server, last=1)

    async def talk() -> None:
        everything = await socket_to(server, "?after=1")
        own = await socket_to(server, f"?after=1&email={VALID}", cert="client")
        first = await say(everything)
        assert first == subscriber.expect("position").data == await say(own)
        for _ in range(2):
            expected = subscriber.expect().data
            assert expected == await say(everything) == await say(own)
        await asyncio.to_thread(check_in, server, cert="operator")
        await asyncio.to_thread(check_in, server)
        assert [await say(everything), await say(everything)] == subscriber.events(2)
        assert (await say(own))["seq"] == 5
        for connection in (everything, own):
            connection.close()
            await ended(connection)

    run(talk())
    subscriber.close()
    wait_until(lambda: metric(server, "streams") == 0, "the end of all streams")


def test_a_web_socket_is_kept_alive_and_refused_like_the_stream(start_server: StartServer) -> None:
    """Pings for the client library, positions for scripts, which see no pings."""
    server = start_server(
        server={"idle_timeout_s": 0.5}, live={"max_streams": 1}, constants={KEEP_ALIVE_S: 1.5}
    )

    async def talk() -> None:
        connection = await socket_to(server)
        for _ in range(3):
            assert (await say(connection))["event"] == "position"
        for cert, query, status in (
            ("client", "", 403),
            ("operator", "?after=x", 400),
            ("operator", "", 503),
        ):
            with pytest.raises(HTTPClientError) as refused:
                await socket_to(server, query, cert=cert)
            assert refused.value.code == status
        connection.close()
        await ended(connection)

    run(talk())
    wait_until(lambda: metric(server, "streams") == 0, "a free place")
    with Subscriber(server) as subscriber:
        assert subscriber.status == 200


def test_a_web_socket_ends_with_its_certificate_and_its_server(site: Site) -> None:
    """Close code 1008 with the reason, 1001 if the server stops."""
    site.start()

    async def talk() -> None:
        theirs = await socket_to(site.server, f"?email={VALID}", cert="client")
        ours = await socket_to(site.server)
        await asyncio.to_thread(site.revoke, "client")
        assert await ended(theirs) == (1008, "The certificate is revoked")
        told = site.server.wait_event("identity refused")
        assert (told["reason"], told["email"]) == ("revoked", VALID)
        stopping = asyncio.create_task(asyncio.to_thread(site.server.stop))
        assert await ended(ours) == (1001, "The server is stopping")
        assert await stopping == 0

    run(talk())


UPGRADE = (
    b"GET /api/socket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def test_pongs_that_are_not_read_do_not_pile_up(start_server: StartServer) -> None:
    """Tornado before 6.6 keeps them all, here 30 MB."""
    server = start_server(constants={MAX_IGNORED: 1_000_000_000})
    ping = b"\x89\xfd" + bytes(4 + 125)
    with server.connect_raw("operator") as raw:
        raw.sendall(UPGRADE)
        assert raw.recv(4096).startswith(b"HTTP/1.1 101")
        before = peak_memory_kb(server.process.pid)
        with contextlib.suppress(OSError):  # a slow client may be closed by then
            for _ in range(100):
                raw.sendall(ping * 500)
        assert server.request("POST", "/api/client").status == 204
        assert peak_memory_kb(server.process.pid) - before < 16 * 1024


@pytest.mark.parametrize("most, ended", [(4096, 1), (1_000_000, 0)], ids=["default", "control"])
@pytest.mark.parametrize(
    "frame", [b"\x89\x80" + bytes(4), b"\x81\x80" + bytes(4)], ids=["ping", "text"]
)
def test_a_web_socket_that_chatters_is_closed(
    start_server: StartServer, frame: bytes, most: int, ended: int
) -> None:
    """Each frame takes time from others, and the client has nothing to say."""
    server = start_server(constants={MAX_IGNORED: most})
    with server.connect_raw("operator") as raw:
        raw.sendall(UPGRADE)
        assert raw.recv(4096).startswith(b"HTTP/1.1 101")
        raw.sendall(frame * 100)
        check_in(server)
        received = b""
        while b'"check-in"' not in received and b'"new"' not in received:
            received += raw.recv(4096)
        with contextlib.suppress(OSError):
            raw.sendall(frame * 2000 + b"\x88\x80" + bytes(4))  # and a close frame
            while raw.recv(65536):
                pass
    wait_until(lambda: metric(server, "streams") == 0, "the end of the stream")
    assert metric(server, 'streams_ended_total{reason="chatters"}') == ended


def test_a_web_socket_that_answers_no_ping_is_closed(start_server: StartServer) -> None:
    """TCP still acknowledges for a program that hangs."""
    server = start_server(constants={KEEP_ALIVE_S: 0.5})
    with server.connect_raw("operator") as raw:
        raw.sendall(UPGRADE)
        assert raw.recv(4096).startswith(b"HTTP/1.1 101")
        wait_until(lambda: metric(server, "streams") == 0, "the end of the stream")


def test_an_invalid_web_socket_handshake_takes_no_slot(start_server: StartServer) -> None:
    """An Upgrade header without the others."""
    server = start_server(live={"max_streams": 1})
    for _ in range(3):
        connection = server.connect("operator")
        connection.request("GET", "/api/socket", headers={"Upgrade": "websocket"})
        assert connection.getresponse().status == 400
        connection.close()
    with Subscriber(server) as subscriber:
        assert subscriber.status == 200


def test_a_stream_through_a_proxy_ends_with_its_certificate(
    site: Site, start_server: StartServer
) -> None:
    """If a proxy terminates TLS, whose connections carry many certificates."""
    server = site.server = start_server(
        ingress={"mode": "proxy", "trusted_proxies": ["127.0.0.1"]},
        tls={"client_ca": str(site.certs / "ca.crt"), "crl": str(site.certs / "ca.crl")},
    )

    def subscribe(cert: str, query: str) -> http.client.HTTPResponse:
        certificate = x509.load_pem_x509_certificate((site.certs / f"{cert}.crt").read_bytes())
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
        headers = {
            "Client-Cert": f":{base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()}:",
            "X-Forwarded-For": "10.0.0.7",
        }
        connection.request("GET", f"/api/stream{query}", headers=headers)
        return connection.getresponse()

    theirs, ours = subscribe("client", f"?email={VALID}"), subscribe("operator", "")
    assert (theirs.status, ours.status) == (200, 200)
    site.revoke("client")
    assert theirs.read().decode().endswith("\n\n: The certificate is revoked\n\n")
    assert metric(server, "streams") == 1
    told = server.wait_event("identity refused")
    assert (told["reason"], told["email"], told["client_ip"]) == ("revoked", VALID, "10.0.0.7")
    ours.close()
