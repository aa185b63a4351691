"""A check-in is committed before it is answered and announced, without a gap."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certs_gen.cli import main as certs_gen
from tests.support.harness import (
    PATIENCE_S,
    Heard,
    Server,
    StartServer,
    exchange,
    free_port,
    rows,
    targets,
    wait_until,
)
from tests.support.own_connections import break_connections
from tornado_status.config.settings import DatabaseSettings
from tornado_status.errors import StoreError, StoreUnavailable
from tornado_status.model.records import CheckIn, CommittedBatch, Event
from tornado_status.store import Store, group_commit
from tornado_status.store.database import Connection
from tornado_status.store.group_commit import GroupCommit, Work

USERS = 50
CHECK_INS = 200


def test_concurrent_check_ins_leave_last_states_a_gapless_log_and_one_announcement_each(
    certs: Path, server: Server, heard: Heard
) -> None:
    """200 check-ins of 50 users at once: 50 rows, 200 numbers, 200 updates, all of one mind."""
    emails = [f"user{number}@example.com" for number in range(USERS)]
    for email in emails:
        assert certs_gen(["client", email, "--out", str(certs)]) == 0
    start = threading.Barrier(16)

    def check_in(worker: int) -> None:
        start.wait()
        for number in range(worker, CHECK_INS, 16):
            answer = server.request("POST", "/api/client", cert=emails[number % USERS])
            assert answer.status == 204

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(check_in, range(16)))

    log = server.rows(
        "SELECT seq, event, email, at, client_ip, client_port FROM check_in ORDER BY seq"
    )
    assert [row[0] for row in log] == list(range(1, CHECK_INS + 1))
    assert [row[3] for row in log] == sorted(row[3] for row in log)
    assert Counter(row[1] for row in log) == {"new": USERS, "check-in": CHECK_INS - USERS}
    newest = {row[2]: row for row in log}
    status = server.rows(
        "SELECT seq, email, last_seen, client_ip, client_port FROM user_status ORDER BY email"
    )
    assert status == sorted(
        ((r[0], r[2], r[3], r[4], r[5]) for r in newest.values()), key=lambda row: row[1]
    )
    assert server.rows("SELECT seq FROM head") == [(CHECK_INS,)]
    updates = heard.updates(CHECK_INS)
    assert [(u["seq"], u["event"], u["email"], u["client_port"]) for u in updates] == [
        (row[0], row[1], row[2], row[5]) for row in log
    ]


def test_nothing_is_answered_or_announced_before_the_commit(server: Server, heard: Heard) -> None:
    """While the commit cannot happen there is no 204 and no datagram; then there are both."""
    assert server.request("POST", "/api/client").status == 204
    heard.updates(1)
    blocker = psycopg2.connect(server.database_url)
    try:
        with blocker.cursor() as cursor:
            cursor.execute("SELECT seq FROM head FOR UPDATE")
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(server.request, "POST", "/api/client")
            # The server's own statement waits for our lock: it has read the request.
            wait_until(
                lambda: server.rows("SELECT 1 FROM pg_locks WHERE NOT granted"),
                "the commit to be blocked",
            )
            assert not answer.done()
            heard.socket.settimeout(0.3)
            with pytest.raises(TimeoutError):
                heard.one()
            heard.socket.settimeout(10)
            blocker.rollback()
            assert answer.result().status == 204
        assert heard.updates(1)[0]["seq"] == 2
    finally:
        blocker.close()


def test_a_commit_that_the_database_refuses_is_a_503_and_leaves_nothing(
    server: Server, heard: Heard
) -> None:
    """503 with Retry-After, no row, no number, no datagram; and then it works again."""
    assert server.request("POST", "/api/client").status == 204
    server.rows("ALTER TABLE check_in ADD CONSTRAINT full_disk CHECK (seq <> 2)")
    answer = server.request("POST", "/api/client")
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) >= 1
    server.rows("ALTER TABLE check_in DROP CONSTRAINT full_disk")
    wait_until(lambda: server.management("/readyz").status == 200, "readiness")
    assert server.request("POST", "/api/client").status == 204
    assert server.rows("SELECT seq FROM check_in ORDER BY seq") == [(1,), (2,)]
    assert [update["seq"] for update in heard.updates(2)] == [1, 2]


def test_a_target_that_cannot_be_reached_costs_no_check_in(start_server: StartServer) -> None:
    """204 all the same; the failed send is counted by its errno and logged once."""
    nobody = {"kind": "unicast", "address": "127.0.0.1", "port": 1, "interfaces": ["127.0.0.1"]}
    server = start_server(announce={"targets": [nobody]})
    connection = server.connect()
    for _ in range(5):
        assert exchange(connection, "POST", "/api/client").status == 204
    connection.close()
    metrics = server.management("/metrics").body.decode()
    assert 'datagrams_failed_total{errno="ECONNREFUSED",target="unicast 127.0.0.1:1"}' in metrics
    assert len(server.events("announcement not sent")) == 1


def test_every_target_hears_in_its_own_encoding(start_server: StartServer) -> None:
    """JSON and binary targets side by side say the same."""
    port = free_port(socket.SOCK_DGRAM)
    server = start_server(announce={"targets": targets(port, "json", "binary")})
    with Heard(port) as group, Heard(port, group=None) as broadcast:
        assert server.request("POST", "/api/client").status == 204
        for listener in (group, broadcast):
            first, second = listener.one()[0], listener.one()[0]
            assert first.startswith(b'{"v":2,"log":"')
            assert second.startswith(b"\x16valid_user@example.com")


def test_announcements_leave_from_the_source_port(server: Server, heard: Heard) -> None:
    """Listeners may filter by it."""
    assert server.request("POST", "/api/client").status == 204
    _, source = heard.one()
    assert source == ("127.0.0.1", server.settings["announce"]["source_port"])


def test_heartbeats_carry_the_head_in_silence(start_server: StartServer) -> None:
    """Without updates a datagram still says what the newest number is."""
    server = start_server(announce={"heartbeat_s": 0.2})
    with Heard(server.announce_port) as listener:
        assert server.request("POST", "/api/client").status == 204
        listener.updates(1)
        payload, _ = listener.one()
    assert b'"head":1,"events":[]' in payload


# ---------------------------------------------------------------------- two servers, one database


def _store(database_url: str, heard: list[Event]) -> Store:
    return Store(
        DatabaseSettings(url=database_url),
        enrolment_closed=False,
        subscribers=[lambda batch: heard.extend(batch.events)],
    )


async def _stop(store: Store) -> None:
    await store.drain(PATIENCE_S)
    await store.stop()


def _check_in(user: str, port: int) -> CheckIn:
    return CheckIn(f"{user}@example.com", "127.0.0.1", port, "CN=test", "01")


def test_two_servers_on_one_database_agree_on_who_is_new_and_leave_no_hole(
    database_url: str,
) -> None:
    """A user's first check-in at both at once, at full speed: one `new`, every number once."""
    users, other_users = 200, 20
    announced: tuple[list[Event], list[Event]] = ([], [])

    async def run() -> None:
        stores = [_store(database_url, announced[side]) for side in (0, 1)]
        # Together, on an empty database: one migrates, the other waits for it.
        await asyncio.gather(*(store.start() for store in stores))
        await asyncio.gather(*(store.wait_connected() for store in stores))
        stop = asyncio.Event()

        async def background(store: Store, number: int) -> None:
            while not stop.is_set():
                await store.record(_check_in(f"busy{number}", 1000 + number))

        busy = [
            asyncio.create_task(background(store, number))
            for number, store in enumerate(stores * other_users)
        ]
        for number in range(users):
            check_in = _check_in(f"first{number}", 2000 + number)
            await asyncio.gather(*(store.record(check_in) for store in stores))
        stop.set()
        await asyncio.gather(*busy)
        await asyncio.gather(*(_stop(store) for store in stores))

    asyncio.run(run())
    log = rows(database_url, "SELECT seq, event, email FROM check_in ORDER BY seq")
    assert [row[0] for row in log] == list(range(1, len(log) + 1))
    assert rows(database_url, "SELECT seq FROM head") == [(len(log),)]
    new = Counter(email for _, event, email in log if event == "new")
    assert set(new.values()) == {1}
    assert len(new) == users + 2 * other_users
    assert all(sum(1 for _, _, e in log if e == f"first{n}@example.com") == 2 for n in range(9))
    together = sorted((e.seq, str(e.event), e.email) for side in announced for e in side)
    assert together == log


def test_servers_on_one_port_share_it_and_one_order(start_server: StartServer) -> None:
    """`reuse_port`: each has a part of the connections, and the numbers have no hole."""
    port = free_port()
    servers = [start_server(server={"port": port, "reuse_port": True}) for _ in range(2)]
    for _ in range(60):
        assert servers[0].request("POST", "/api/client").status == 204
    sent = 0
    for server in servers:
        metrics = server.management("/metrics").body.decode()
        [line] = [x for x in metrics.splitlines() if x.startswith("tornado_status_log_head ")]
        assert float(line.split()[1]) > 0  # the kernel gave each of them some
        counters = [x for x in metrics.splitlines() if "datagrams_sent_total{" in x]
        sent += sum(int(float(counter.split()[-1])) for counter in counters)
    assert sent == 2 * 60
    assert servers[0].rows("SELECT count(*), max(seq) FROM check_in") == [(60, 60)]


@settings(max_examples=20)
@given(
    st.lists(
        st.builds(
            CheckIn,
            st.sampled_from(["o'brien@example.com", "{a}@example.com", "a+b=c@example.com"]),
            st.sampled_from(["127.0.0.1", "2001:db8::1"]),
            st.integers(1, 65535),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
            st.sampled_from(["0", "ff", "a" * 40]),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_check_in_is_kept_as_it_is(postgres: str, check_ins: list[CheckIn]) -> None:
    """Quotation marks, braces and backslashes in a CA's name are text like any other."""
    name = "any_check_in"
    if not rows(postgres, "SELECT 1 FROM pg_database WHERE datname = %s", name):
        rows(postgres, f"CREATE DATABASE {name}")
    url = postgres.replace("/postgres?", f"/{name}?")

    async def run() -> int:
        store = _store(url, [])
        await store.start()
        await store.wait_connected()
        events = await asyncio.gather(*(store.record(check_in) for check_in in check_ins))
        await _stop(store)
        return events[0].seq

    first = asyncio.run(run())
    kept = rows(
        url,
        "SELECT email, host(client_ip), client_port, issuer, serial FROM check_in"
        " WHERE seq >= %s ORDER BY seq",
        first,
    )
    assert [CheckIn(*row) for row in kept] == check_ins


def test_a_full_queue_refuses_at_once_and_loses_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond `MAX_PENDING` the answer is "try again", and all that was taken is recorded."""
    monkeypatch.setattr("tornado_status.store.group_commit.MAX_PENDING", 10)
    heard: list[Event] = []

    async def run() -> tuple[int, int]:
        store = Store(
            DatabaseSettings(url=database_url),
            enrolment_closed=False,
            subscribers=[lambda batch: heard.extend(batch.events)],
        )
        await store.start()
        await store.wait_connected()
        attempts = [store.record(_check_in("crowd", number)) for number in range(1, 101)]
        results: Sequence[Event | BaseException] = await asyncio.gather(
            *attempts, return_exceptions=True
        )
        await _stop(store)
        refused = [r for r in results if isinstance(r, StoreUnavailable)]
        taken = [r for r in results if isinstance(r, Event)]
        assert len(refused) + len(taken) == 100
        return len(taken), len(refused)

    taken, refused = asyncio.run(run())
    assert refused >= 80
    assert rows(database_url, "SELECT count(*) FROM check_in") == [(taken,)]
    assert len(heard) == taken


def _group_commit(
    database_url: str,
    subscriber: Callable[[CommittedBatch], None],
    commit_timeout_s: float = PATIENCE_S,
    connects: int | None = None,
) -> GroupCommit:
    """The writer alone: nothing but check-ins is written.

    After that many connections the database is silent.
    """
    connect = _store(database_url, [])._connect_writer
    attempts = itertools.count()

    async def connect_or_wait() -> Connection:
        if next(attempts) == connects:
            await asyncio.Event().wait()
        return await connect()

    return GroupCommit(
        connect_or_wait, [subscriber], enrolment_closed=False, commit_timeout_s=commit_timeout_s
    )


def test_the_next_batch_is_sent_before_the_last_is_told_and_all_stays_in_order(
    database_url: str,
) -> None:
    """Check-ins queued during a commit have left the queue when their events are heard."""
    happened: list[tuple[str, str, int]] = []  # and how many waited for a commit to begin then

    async def run() -> None:
        commit = _group_commit(
            database_url,
            lambda batch: happened.extend(
                ("announced", event.email.partition("@")[0], commit.pending)
                for event in batch.events
            ),
        )
        writer = asyncio.create_task(commit.run())
        await commit.connected.wait()
        blocker = psycopg2.connect(database_url)
        blocker.cursor().execute("SELECT seq FROM head FOR UPDATE")
        for number, user in enumerate(("first", "second", "third"), start=1):

            def told(_: Event | StoreError, user: str = user) -> None:
                happened.append(("told", user, commit.pending))

            commit.submit(_check_in(user, number), told)
            if number == 1:
                await _until(lambda: not commit.pending)
        assert commit.pending == 2
        blocker.close()
        assert await commit.drain(PATIENCE_S)
        commit.stop()
        await writer

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    assert happened == [
        ("announced", "first", 0),
        ("told", "first", 0),
        ("announced", "second", 0),
        ("announced", "third", 0),
        ("told", "second", 0),
        ("told", "third", 0),
    ]


def test_who_is_queued_behind_a_hanging_batch_does_not_wait_for_the_next_connection(
    database_url: str,
) -> None:
    """It gets its answer after `commit_timeout_s` and is never recorded."""
    answers: list[tuple[str, Event | StoreError]] = []

    async def run() -> None:
        commit = _group_commit(database_url, lambda batch: None, 0.5, connects=1)
        writer = asyncio.create_task(commit.run())
        await commit.connected.wait()
        blocker = psycopg2.connect(database_url)
        blocker.cursor().execute("SELECT seq FROM head FOR UPDATE")
        work = asyncio.create_task(commit.write(Work("SELECT 1", lambda found: [], [])))
        commit.submit(_check_in("first", 1), lambda answer: answers.append(("first", answer)))
        await _until(lambda: not commit.pending)
        commit.submit(_check_in("second", 2), lambda answer: answers.append(("second", answer)))
        assert await commit.drain(PATIENCE_S)  # the database stays silent
        with pytest.raises(StoreUnavailable):
            await work
        blocker.close()
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        commit.refuse()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    assert [user for user, _ in answers] == ["first", "second"]
    assert all(isinstance(answer, StoreUnavailable) for _, answer in answers)
    assert ("second@example.com",) not in rows(database_url, "SELECT email FROM check_in")


def test_a_check_in_that_timed_out_in_flight_is_answered_once_and_announced(
    database_url: str,
) -> None:
    """The batch has its whole time-out: it is committed after the client got its 503."""
    heard: list[str] = []
    answers: list[Event | StoreError] = []

    async def run() -> None:
        commit = _group_commit(
            database_url, lambda batch: heard.extend(event.email for event in batch.events)
        )
        writer = asyncio.create_task(commit.run())
        await commit.connected.wait()
        blocker = psycopg2.connect(database_url)
        blocker.cursor().execute("SELECT seq FROM head FOR UPDATE")
        commit.submit(_check_in("late", 1), answers.append)
        await _until(lambda: not commit.pending)
        [(check_in, done, submitted)] = commit._in_flight
        commit._in_flight[0] = (check_in, done, submitted - PATIENCE_S)
        commit._expire()
        commit._expire()
        assert [type(answer) for answer in answers] == [StoreUnavailable]
        blocker.close()
        await _until(lambda: heard)
        commit.stop()
        await writer

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    assert heard == ["late@example.com"]
    assert len(answers) == 1


def test_after_an_attempt_that_took_long_the_next_one_begins_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It waited for a silent host, and another may be promoted meanwhile."""
    pauses: list[float] = []

    async def run() -> None:
        async def connect() -> Connection:
            await asyncio.sleep(2 * group_commit.RETRY_MAX_S)
            raise StoreUnavailable("the database does not answer")

        async def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                commit.stop()

        monkeypatch.setattr(group_commit, "RETRY_MAX_S", 0.05)
        commit = GroupCommit(connect, [], enrolment_closed=False, commit_timeout_s=PATIENCE_S)
        monkeypatch.setattr(commit, "_sleep", pause)
        await commit.run()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    assert pauses == [0, 0, 0]


def test_a_stop_during_a_batch_is_heard_after_it(database_url: str) -> None:
    """The writer ends by itself. It once waited to be cancelled: a stop then took five seconds."""

    async def run() -> None:
        commit = _group_commit(database_url, lambda batch: None)
        writer = asyncio.create_task(commit.run())
        await commit.connected.wait()
        blocker = psycopg2.connect(database_url)
        blocker.cursor().execute("SELECT seq FROM head FOR UPDATE")
        commit.submit(_check_in("first", 1), lambda answer: None)
        await _until(lambda: not commit.pending)
        commit.stop()
        blocker.close()
        await writer

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


@pytest.mark.parametrize("turns", range(8))
def test_whoever_is_committed_when_the_writer_ends_is_told(database_url: str, turns: int) -> None:
    """The writer is cancelled some turns of the loop after the first of two batches is committed.

    Both hear something; who hears "recorded" is recorded and announced. The first hears it, where
    its commit was answered before the end.
    """
    announced: list[str] = []
    answers: list[tuple[str, Event | StoreError]] = []

    async def run() -> None:
        commit = _group_commit(
            database_url, lambda batch: announced.extend(event.email for event in batch.events)
        )
        writer = asyncio.create_task(commit.run())
        await commit.connected.wait()
        commit.submit(_check_in("first", 1), lambda answer: answers.append(("first", answer)))
        await _until(lambda: not commit.pending)
        commit.submit(_check_in("second", 2), lambda answer: answers.append(("second", answer)))
        while not rows(database_url, "SELECT 1 FROM check_in"):
            pass  # no turn of the loop: see `turns`
        for _ in range(turns):
            await asyncio.sleep(0)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        commit.refuse()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    assert [user for user, _ in answers] == ["first", "second"]
    told = [answer.email for _, answer in answers if isinstance(answer, Event)]
    assert announced == told
    assert turns < 5 or told[:1] == ["first@example.com"]
    recorded = {email for (email,) in rows(database_url, "SELECT email FROM check_in")}
    assert recorded >= set(told)


def test_a_writer_that_cannot_announce_ends_and_leaves_nobody_waiting(database_url: str) -> None:
    """An error of a subscriber ends `run`, though called while the next commit is under way."""
    answers: list[tuple[str, Event | StoreError]] = []

    def cannot(_: CommittedBatch) -> None:
        raise ArithmeticError

    async def run() -> None:
        commit = _group_commit(database_url, cannot)
        writer = asyncio.create_task(commit.run())
        await commit.connected.wait()
        commit.submit(_check_in("first", 1), lambda answer: answers.append(("first", answer)))
        await _until(lambda: not commit.pending)
        commit.submit(_check_in("second", 2), lambda answer: answers.append(("second", answer)))
        with pytest.raises(ArithmeticError):
            await writer
        commit.refuse()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    assert [type(answer) for _, answer in answers] == [StoreUnavailable, StoreUnavailable]


@pytest.mark.parametrize("fails_over", [False, True])
def test_what_a_lost_answer_left_recorded_is_announced_after_all(
    database_url: str, fails_over: bool
) -> None:
    """The backend dies after the commit, before its answer: 503, and still one announcement.

    Also in the log that goes on from the one it was recorded in.
    """
    heard: list[Event] = []

    async def run() -> None:
        store = _store(database_url, heard)
        await store.start()
        await store.wait_connected()
        await store.record(_check_in("first", 1))
        before = store.log_id
        if fails_over:
            rows(database_url, "UPDATE head SET timeline_id = timeline_id + 1")
        # A deferred trigger, so the row is in the commit, whose answer then takes its time.
        rows(
            database_url,
            "CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_sleep(3); RETURN NULL; END $$;"
            "CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON check_in DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION nap()",
        )
        recording = asyncio.create_task(store.record(_check_in("lost", 2)))
        asleep = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        await _until(lambda: rows(database_url, asleep))
        # From here on the client's side of the connection is dead; the backend goes on and commits.
        break_connections()
        with pytest.raises(StoreUnavailable):
            await recording
        await store.wait_connected()
        await _until(lambda: len(heard) == 2)
        assert (store.log_id != before) == fails_over
        await _stop(store)

    asyncio.run(asyncio.wait_for(run(), 60))
    assert [(event.seq, event.email) for event in heard] == [
        (1, "first@example.com"),
        (2, "lost@example.com"),
    ]


async def _until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - another process's doing gives no event
        await asyncio.sleep(0.01)
