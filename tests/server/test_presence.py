"""Presence: who is here, who has gone, who is back; and how long the log of it is kept."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import datetime
import http.client
import io
import json
import re
import socket
import ssl
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.support.database_clock import MovableClock
from tests.support.harness import (
    PATIENCE_S,
    Heard,
    Postgres,
    Server,
    StartServer,
    free_port,
    rows,
    targets,
    wait_until,
)
from tests.support.log_command import log_command
from tests.support.own_connections import break_connections
from tests.support.store import HOURLY, check_in, run, until, watched
from tests.support.with_constants import MIN_LATE_S
from tornado_status.api.event_log import csv_lines, csv_row
from tornado_status.config.settings import DatabaseSettings, HistorySettings, PresenceSettings
from tornado_status.errors import HistoryGone, StoreUnavailable, UserUnknown
from tornado_status.model import presence
from tornado_status.model.presence import State
from tornado_status.model.records import Event, HistoryEntry
from tornado_status.store import Store, user_counts
from tornado_status.store import group_commit as commit_module
from tornado_status.store import presence_sweep as sweep_module
from tornado_status.store import store as store_module
from tornado_status.store.database_clock import DatabaseClock

LOG = "SELECT seq, event, email FROM check_in ORDER BY seq"


def time_passes(url: str, hours: float = 3) -> None:
    """Make all that was recorded so much older; the sweeps went on meanwhile."""
    past = f"{hours} hours"
    for table, columns in {
        "check_in": ("at", "last_seen"),
        "user_status": ("last_seen", "first_seen"),
        "head": ("at",),
        "presence_mark": ("at",),
    }.items():
        changes = ", ".join(f"{column} = {column} - interval '{past}'" for column in columns)
        rows(url, f"UPDATE {table} SET {changes}")  # noqa: S608 - the names are ours
    watched(url, hours)


def restarted(store: Store, away: str = "0 s") -> None:
    """Let the sweep know as little as after a restart, and no server have run for a while."""
    store.sweeper._marked = None
    rows(store._settings.url, "UPDATE head SET swept_at = clock_timestamp() - %s::interval", away)


def steady(store: Store) -> None:
    """The database's clock was not set for as long as pruning asks for."""
    store.sweeper.clock._steady_since = float("-inf")


# ----------------------------------------------------------------------------- offline and back


def test_who_is_silent_too_long_goes_offline_once_and_comes_back(database_url: str) -> None:
    """An entry of the log with its own number, announced; the check-in after it is `back`."""
    heard: list[Event] = []

    async def body(store: Store) -> None:
        seen = await store.record(check_in("silent"))
        time_passes(database_url)
        await store.record(check_in("busy"))
        await store.sweeper.sweep()
        [offline] = heard[2:]
        assert tuple(offline) == (
            3,
            "offline",
            "silent@example.com",
            offline.last_seen,
            None,
            None,
            offline.at,
        )
        busy = heard[1].last_seen
        assert seen.last_seen is not None
        assert offline.last_seen == seen.last_seen - datetime.timedelta(hours=3)
        assert offline.at is not None
        assert busy is not None
        assert offline.at >= busy
        assert store.head == 3
        assert (await store.events(2, 10)).events == [offline]
        await store.sweeper.sweep()
        time_passes(database_url)
        await store.sweeper.sweep()
        await store.sweeper.sweep()
        await store.record(check_in("silent"))
        await store.record(check_in("silent"))

    run(database_url, heard, body)
    assert rows(database_url, LOG) == [
        (1, "new", "silent@example.com"),
        (2, "new", "busy@example.com"),
        (3, "offline", "silent@example.com"),
        (4, "offline", "busy@example.com"),
        (5, "back", "silent@example.com"),
        (6, "check-in", "silent@example.com"),
    ]
    assert [(event.seq, event.event, event.email) for event in heard] == rows(database_url, LOG)
    assert rows(database_url, "SELECT email, seq, offline FROM user_status ORDER BY email") == [
        ("busy@example.com", 4, True),
        ("silent@example.com", 6, False),
    ]
    assert rows(database_url, "SELECT seq FROM head") == [(6,)]


def test_several_check_ins_of_one_commit_come_back_once(database_url: str) -> None:
    """Only the first of them is `back`."""

    async def body(store: Store) -> None:
        await store.record(check_in("a"))
        time_passes(database_url)
        await store.sweeper.sweep()
        await asyncio.gather(*(store.record(check_in("a", port)) for port in range(1, 4)))

    run(database_url, [], body)
    events = [event for _, event, _ in rows(database_url, LOG)]
    assert events == ["new", "offline", "back", "check-in", "check-in"]


WITHOUT_SEQ = (" AND s.seq = o.seq", " AND s.seq = c.seq")


@pytest.mark.parametrize("broken", [False, True], ids=["as it is", "a sweep that ignores seq"])
def test_an_old_entry_of_a_user_who_is_here_means_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    """The log's old end is full of them. (A sweep that ignores `seq` would be caught.)"""
    if broken:
        look, sweep = sweep_module.FIND_SILENT, sweep_module.PREPARE_SWEEP
        assert WITHOUT_SEQ[0] in look
        assert WITHOUT_SEQ[1] in sweep
        monkeypatch.setattr(sweep_module, "FIND_SILENT", look.replace(WITHOUT_SEQ[0], ""))
        monkeypatch.setattr(
            "tornado_status.store.store.PREPARE_SWEEP", sweep.replace(WITHOUT_SEQ[1], "")
        )
    gone = []

    async def body(store: Store) -> None:
        await store.record(check_in("a"))
        time_passes(database_url)
        await store.record(check_in("a"))
        gone.append(await store.sweeper.sweep())

    run(database_url, [], body)
    assert gone == [1 if broken else 0]


@pytest.mark.parametrize("broken", [False, True], ids=["as it is", "a lock without a second look"])
def test_who_comes_back_while_we_look_is_not_declared_offline(
    database_url: str, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    """The sweep decides again under the lock, whatever the reading connection saw."""
    if broken:
        sweep = sweep_module.PREPARE_SWEEP
        monkeypatch.setattr(
            "tornado_status.store.store.PREPARE_SWEEP", sweep.replace(WITHOUT_SEQ[1], "")
        )
    gone = []

    async def body(store: Store) -> None:
        await store.record(check_in("a"))
        time_passes(database_url)
        look = store.sweeper._find_silent

        async def look_and_come_back(connection: Any) -> Any:
            silent = await look(connection)
            assert silent.emails == ["a@example.com"]
            await store.record(check_in("a"))
            return silent

        store.sweeper._find_silent = look_and_come_back  # type: ignore[method-assign]
        gone.append(await store.sweeper.sweep())

    run(database_url, [], body)
    assert gone == [1 if broken else 0]
    assert len(rows(database_url, LOG)) == 2 + gone[0]


def test_two_servers_declare_each_user_offline_once(database_url: str) -> None:
    """Both sweep at once, in small steps, while others check in: no event twice, no hole."""
    heard: list[Event] = []
    others: list[Event] = []
    silent = 100

    async def body(store: Store) -> None:
        for first in range(0, silent, 50):
            await asyncio.gather(
                *(store.record(check_in(f"silent{n}")) for n in range(first, first + 50))
            )
        time_passes(database_url)
        other = Store(
            DatabaseSettings(url=database_url),
            enrolment_closed=False,
            subscribers=[lambda batch: others.extend(batch.events)],
            when=HOURLY,
        )
        await other.start()
        await other.wait_connected()
        stop = asyncio.Event()

        async def keep_checking_in(where: Store, user: str) -> None:
            while not stop.is_set():
                await where.record(check_in(user))

        busy = [
            asyncio.create_task(keep_checking_in(where, f"busy{n}"))
            for n, where in enumerate([store, other] * 4)
        ]
        offline = "SELECT count(*) FROM check_in WHERE event = 'offline'"
        # One that finds the other ahead leaves the rest to it.
        while rows(database_url, offline) < [(silent,)]:
            await asyncio.gather(store.sweeper.sweep(), other.sweeper.sweep())
        await asyncio.gather(store.sweeper.sweep(), other.sweeper.sweep())
        stop.set()
        await asyncio.gather(*busy)
        await other.drain(PATIENCE_S)
        await other.stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_module, "MAX_OFFLINE", 7)
        patch.setattr(sweep_module, "SCAN", 50)
        run(database_url, heard, body)
    log = rows(database_url, LOG)
    assert [seq for seq, _, _ in log] == list(range(1, len(log) + 1))
    gone = Counter(email for _, event, email in log if event == "offline")
    assert gone == {f"silent{n}@example.com": 1 for n in range(silent)}
    assert sorted((e.seq, str(e.event), e.email) for e in heard + others) == log


def test_a_sweep_that_loses_the_cursor_is_complete_too(database_url: str) -> None:
    """Two servers in phase: the one that is always second must not report a late sweep."""

    async def body(store: Store) -> None:
        await store.record(check_in("a"))
        time_passes(database_url)
        sweeper = store.sweeper
        look = sweeper._find_silent

        async def look_and_be_overtaken(connection: Any) -> Any:
            silent = await look(connection)
            sweeper._find_silent = look  # type: ignore[method-assign]
            await sweeper._commit.write(sweeper._work(silent))  # as the other server does it
            return silent

        sweeper._find_silent = look_and_be_overtaken  # type: ignore[method-assign]
        sweeper._swept_at = None
        assert await sweeper.sweep() == 0
        assert rows(database_url, "SELECT event FROM check_in WHERE seq = 2") == [("offline",)]
        assert sweeper.swept_ago_s is not None

    run(database_url, [], body)


def test_one_outage_is_told_for_each_step(database_url: str) -> None:
    """The reason of a late sweep is the sweep's own."""

    async def body(store: Store) -> None:
        sweeper = store.sweeper

        async def mark() -> None:
            raise StoreUnavailable("no mark")

        with structlog.testing.capture_logs() as lines:
            repeating = asyncio.create_task(sweeper._repeat(mark))
            await until(lambda: lines)
            repeating.cancel()
        [line] = lines
        assert (line["event"], line["step"], line["reason"]) == (
            "presence work postponed",
            "mark",
            "no mark",
        )
        sweeper._swept_at = time.monotonic() - 24 * 3600
        assert "no mark" not in sweeper.warnings()["late"]

    run(database_url, [], body)


def test_after_an_absence_there_is_a_grace_and_no_storm(database_url: str) -> None:
    """No user could check in without a server; a user who does so now was never offline."""
    heard: list[Event] = []

    async def body(store: Store) -> None:
        await store.record(check_in("faithful"))
        await store.record(check_in("gone"))
        time_passes(database_url)
        restarted(store, away="3 hours")
        await store.sweeper.mark()
        assert await store.sweeper.sweep() == 0
        assert await store.sweeper.sweep() == 0
        [(left,)] = rows(database_url, "SELECT grace_until - clock_timestamp() FROM head")
        assert datetime.timedelta(hours=1) < left <= datetime.timedelta(hours=2)
        await store.record(check_in("faithful"))
        rows(database_url, "UPDATE head SET watched_ms = watched_ms + 7199000")
        assert await store.sweeper.sweep() == 0
        rows(database_url, "UPDATE head SET watched_ms = watched_ms + 1000")
        assert await store.sweeper.sweep() == 1

    run(database_url, heard, body)
    assert [(e.event, e.email.partition("@")[0]) for e in heard] == [
        ("new", "faithful"),
        ("new", "gone"),
        ("check-in", "faithful"),
        ("offline", "gone"),
    ]


def test_without_an_absence_there_is_no_grace(database_url: str) -> None:
    """The control of the test before: what holds events back is the absence."""

    async def body(store: Store) -> None:
        await store.record(check_in("gone"))
        time_passes(database_url)
        assert await store.sweeper.sweep() == 1

    run(database_url, [], body)


def test_an_offline_whose_answer_was_lost_is_announced_after_all(database_url: str) -> None:
    """It is recorded, so the network hears of it."""
    heard: list[Event] = []

    async def body(store: Store) -> None:
        await store.record(check_in("gone"))
        time_passes(database_url)
        rows(
            database_url,
            "CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_sleep(3); RETURN NULL; END $$;"
            "CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON check_in DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION nap()",
        )
        sweeping = asyncio.create_task(store.sweeper.sweep())
        asleep = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        await until(lambda: rows(database_url, asleep))
        break_connections()
        with pytest.raises(StoreUnavailable):
            await sweeping
        await until(lambda: len(heard) == 2)

    run(database_url, heard, body)
    assert [(e.seq, e.event, e.email) for e in heard] == rows(database_url, LOG)
    assert heard[1].event == "offline"


def test_a_sweep_that_the_database_refuses_costs_no_check_in(database_url: str) -> None:
    """It is rolled back as a whole and done later; check-ins go on meanwhile."""

    async def body(store: Store) -> None:
        await store.record(check_in("gone"))
        time_passes(database_url)
        rows(
            database_url,
            "ALTER TABLE check_in ADD CONSTRAINT full_disk CHECK (event <> 'offline')",
        )
        with pytest.raises(StoreUnavailable, match="the database refuses"):
            await store.sweeper.sweep()
        assert (await store.record(check_in("here"))).seq == 2
        rows(database_url, "ALTER TABLE check_in DROP CONSTRAINT full_disk")
        assert await store.sweeper.sweep() == 1

    run(database_url, [], body)
    assert [seq for seq, _, _ in rows(database_url, LOG)] == [1, 2, 3]


def test_the_sweep_goes_on_after_the_database_was_away(own_postgres: Postgres) -> None:
    """The timer survives a fault."""
    heard: list[Event] = []
    often = PresenceSettings(interval_s=1, offline_after_s=2)

    async def body(store: Store) -> None:
        await store.record(check_in("gone"))
        own_postgres.stop()
        own_postgres.start()
        # Without a check-in, the sweep makes the writer connect again.
        await until(lambda: any(event.event == "offline" for event in heard))

    run(own_postgres.url, heard, body, when=often)
    assert rows(own_postgres.url, LOG) == [
        (1, "new", "gone@example.com"),
        (2, "offline", "gone@example.com"),
    ]


def test_other_work_is_bounded(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write without room is refused at once, and check-ins go on."""

    async def body(store: Store) -> None:
        monkeypatch.setattr(commit_module, "MAX_WORK", 0)
        with pytest.raises(StoreUnavailable, match="more work"):
            await store.sweeper.mark()
        await store.record(check_in("a"))

    run(database_url, [], body)


# ---------------------------------------------------------------------------------------- pruning


def test_the_log_is_pruned_in_small_steps_up_to_the_retention(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older entries go, newer ones and every status stay, and readers get 410."""
    monkeypatch.setattr(sweep_module, "PRUNE", 4)

    async def body(store: Store) -> None:
        steady(store)
        for number in range(10):
            await store.record(check_in(f"old{number}"))
        time_passes(database_url)
        await store.sweeper.sweep()
        time_passes(database_url)
        await store.record(check_in("young"))
        assert await store.sweeper.prune() == 10
        assert await store.sweeper.prune() == 0
        with pytest.raises(HistoryGone):
            await store.events(9, 100)
        assert len((await store.events(10, 100)).events) == 11
        # An offline whose check-in is pruned still says when the user was seen.
        record = await store.user("old3@example.com")
        assert record is not None
        seen = (await store.events(10, 1)).events[0].last_seen
        assert seen is not None
        assert record.last_seen is not None
        assert seen < record.last_seen + datetime.timedelta(hours=1)

    run(database_url, [], body, history=HistorySettings(retention=4 * 3600))
    assert rows(database_url, "SELECT count(*) FROM user_status") == [(11,)]


@pytest.mark.parametrize("broken", [False, True], ids=["as it is", "pruning past the cursor"])
def test_what_was_not_judged_yet_is_never_pruned(
    database_url: str, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    """A user whose newest entry went first would never go offline."""
    if broken:
        condition = " AND seq <= (SELECT swept FROM head)"
        assert condition in sweep_module.PRUNE_LOG
        prune = sweep_module.PRUNE_LOG.replace(condition, "")
        monkeypatch.setattr(sweep_module, "PRUNE_LOG", prune)
    gone = []

    async def body(store: Store) -> None:
        await store.record(check_in("a"))
        time_passes(database_url, hours=300)
        await store.sweeper.mark()
        steady(store)
        await store.sweeper.prune()
        gone.append(await store.sweeper.sweep())

    run(database_url, [], body)
    assert gone == [0 if broken else 1]


# -------------------------------------------------------------------------- the database's clock

FUTURE = datetime.timedelta(days=365).total_seconds()
BY_TIME = "c.at <= now() - interval '2 hours'"


@pytest.mark.parametrize("broken", [False, True], ids=["as it is", "silence by the log's times"])
def test_a_clock_that_ran_ahead_keeps_nobody_online(
    database_url: str, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    """The log's times cannot fall, so they all say now; the age of its entries is known anyway."""
    if broken:
        old = "c.seq <= edge.sure OR c.at <= edge.at"
        assert old in sweep_module.FIND_SILENT
        find = sweep_module.FIND_SILENT.replace(old, BY_TIME)
        monkeypatch.setattr(sweep_module, "FIND_SILENT", find)
    gone = []
    clock = MovableClock(database_url)

    async def body(store: Store) -> None:
        clock.set(FUTURE)
        await store.record(check_in("at the wrong time"))
        clock.set(0)
        await store.record(check_in("after it"))
        watched(database_url)
        await store.record(check_in("here"))
        gone.append(await store.sweeper.sweep())
        await store.sweeper.mark()
        assert "ahead" in store.presence_warnings()
        gone.append(await store.sweeper.sweep())
        watched(database_url)
        gone.append(await store.sweeper.sweep())

    run(database_url, [], body)
    assert gone == ([0, 0, 0] if broken else [2, 0, 1])


@pytest.mark.parametrize("by_s", [FUTURE, -FUTURE, 25, -25])
def test_a_clock_that_is_set_makes_nobody_silent(database_url: str, by_s: float) -> None:
    """Neither way: users are as old as before, and no absence of the servers is taken for one."""
    heard: list[Event] = []
    clock = MovableClock(database_url)

    async def body(store: Store) -> None:
        await store.record(check_in("silent"))
        watched(database_url, hours=1.99)
        await store.record(check_in("here"))
        await store.sweeper.mark()
        with structlog.testing.capture_logs() as logs:
            clock.set(by_s)
            await store.sweeper.mark()
            assert await store.sweeper.sweep() == 0
        [line] = logs
        assert line["event"] == "database clock was set"
        assert line["by_s"] == pytest.approx(by_s, abs=PATIENCE_S)
        assert (line["by_s"] > 0) == (by_s > 0)
        rows(database_url, "UPDATE head SET watched_ms = watched_ms + 100000")
        assert await store.sweeper.sweep() == 1

    run(database_url, heard, body)
    assert [(e.event, e.email.partition("@")[0]) for e in heard] == [
        ("new", "silent"),
        ("new", "here"),
        ("offline", "silent"),
    ]


def test_offline_is_declared_in_time_while_the_clock_is_set(database_url: str) -> None:
    """In real time, with a user who stays: one is declared offline, the other is not."""
    clock = MovableClock(database_url)
    often = PresenceSettings(interval_s=2, offline_after_s=5)
    offline = "SELECT email FROM check_in WHERE event = 'offline'"

    async def body(store: Store) -> None:
        async def stay() -> None:
            while True:
                await store.record(check_in("here"))
                await asyncio.sleep(0.1)

        staying = asyncio.create_task(stay())
        for by_s in (0, FUTURE, 0, -FUTURE, 3600):
            clock.set(by_s)
            await store.record(check_in("gone"))
        await until(lambda: rows(database_url, offline))
        staying.cancel()

    run(database_url, [], body, when=often)
    assert rows(database_url, offline) == [("gone@example.com",)]


def test_a_mark_of_another_server_counts_by_the_databases_clock(database_url: str) -> None:
    """But for no longer than since the own mark; and after a restart there is nothing else."""
    watched_ms = "SELECT watched_ms FROM head"

    async def body(store: Store) -> None:
        await store.sweeper.mark()
        [(before,)] = rows(database_url, watched_ms)
        # Another server made a mark, half an hour ago by a clock that was set since.
        rows(
            database_url,
            "UPDATE head SET watched_ms = watched_ms + 1, swept_at = swept_at - interval '30 min'",
        )
        await store.sweeper.mark()
        [(after,)] = rows(database_url, watched_ms)
        assert 0 < after - before < PATIENCE_S * 1000
        restarted(store, away="20 s")
        await store.sweeper.mark()
        [(restart,)] = rows(database_url, watched_ms)
        assert 20_000 <= restart - after < 20_000 + PATIENCE_S * 1000
        restarted(store, away="-1 hour")
        await store.sweeper.mark()
        assert rows(database_url, watched_ms) == [(restart,)]

    run(database_url, [], body)


@pytest.mark.parametrize("guarded", [True, False], ids=["as it is", "pruning by now()"])
@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "after the sweep"])
def test_a_clock_that_is_ahead_prunes_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch, guarded: bool, noticed: bool
) -> None:
    """For however short a time; once it is steady again, what is old goes."""
    if not guarded:
        before = "to_timestamp(%(before)s)"
        assert before in sweep_module.PRUNE_LOG
        prune = sweep_module.PRUNE_LOG.replace(before, "now() - interval '4 hours'")
        monkeypatch.setattr(sweep_module, "PRUNE_LOG", prune)
        monkeypatch.setattr(DatabaseClock, "steady_time", lambda self: 0.0)
    clock = MovableClock(database_url)
    pruned = []

    async def body(store: Store) -> None:
        for number in range(4):
            await store.record(check_in(f"user{number}"))
        time_passes(database_url)
        await store.sweeper.mark()
        await store.sweeper.sweep()
        steady(store)
        clock.set(FUTURE)
        if noticed:
            await store.sweeper.mark()
        pruned.append(await store.sweeper.prune())
        clock.set(0)
        pruned.append(await store.sweeper.prune())
        await store.sweeper.mark()
        steady(store)
        time_passes(database_url)
        pruned.append(await store.sweeper.prune())

    run(database_url, [], body, history=HistorySettings(retention=4 * 3600))
    if guarded:
        assert pruned == [0, 0, 4]
    else:
        assert pruned[0] >= 4


def test_a_clock_that_is_behind_only_delays_pruning(database_url: str) -> None:
    """As the database's clock is, or that of the server's machine: the earlier one counts."""
    clock = MovableClock(database_url)

    async def body(store: Store) -> None:
        await store.record(check_in("a"))
        time_passes(database_url, hours=9)
        await store.sweeper.sweep()
        clock.set(-FUTURE)
        await store.sweeper.mark()
        steady(store)
        assert await store.sweeper.prune() == 0
        clock.set(0)
        await store.sweeper.mark()
        assert await store.sweeper.prune() == 0
        steady(store)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.time", lambda real=time.time: real() - FUTURE)
            assert await store.sweeper.prune() == 0
        assert await store.sweeper.prune() == 1

    run(database_url, [], body, history=HistorySettings(retention=4 * 3600))


def test_a_new_log_sets_the_times_of_the_future_back(
    start_server: StartServer, database_url: str, tmp_path: Path
) -> None:
    """The way back from a clock that was far ahead; what was right before stays."""
    clock = MovableClock(database_url)
    server = start_server()
    assert server.request("POST", "/api/client").status == 204
    right = server.rows("SELECT at FROM check_in")
    clock.set(FUTURE)
    for cert in ("client", "operator"):
        assert server.request("POST", "/api/client", cert=cert).status == 204
    clock.set(0)
    before = log_command(server.settings, tmp_path)
    after = log_command(server.settings, tmp_path, "new")
    assert after["at"] < before["at"]
    assert after["log"] != before["log"]
    assert server.rows("SELECT at FROM check_in WHERE seq = 1") == right
    future = "> pg_catalog.clock_timestamp()"
    for query in (
        f"check_in WHERE at {future} OR last_seen {future}",
        f"user_status WHERE last_seen {future} OR first_seen {future}",
        f"head WHERE at {future}",
    ):
        assert server.rows(f"SELECT 1 FROM {query}") == []  # noqa: S608 - the names are ours
    assert server.rows("SELECT count(*) FROM user_status WHERE first_seen IS NOT NULL") == [(2,)]
    wait_until(lambda: server.request("POST", "/api/client").status == 204, "a check-in")
    # Readers get the events with other times again.
    assert server.rows("SELECT fork FROM log_step") == [(1,)]
    moments = [moment for (moment,) in server.rows("SELECT at FROM check_in ORDER BY seq")]
    assert moments == sorted(moments)
    assert moments[-1] < datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)


def test_a_clock_that_ran_ahead_delays_no_alert(database_url: str) -> None:
    """Neither its messages nor, if its server is killed meanwhile, the one that takes over."""
    clock = MovableClock(database_url)
    one, two = uuid.uuid4(), uuid.uuid4()

    async def body(store: Store) -> None:
        await store.alerts.register(["plant"])
        clock.set(FUTURE)
        assert await store.alerts.lease("plant", one, 20)
        event = await store.record(check_in("a"))
        clock.set(0)
        cursor = await store.alerts.cursor("plant", two, 10)
        assert cursor.free
        assert not (await store.alerts.cursor("plant", one, 10)).held
        assert await store.alerts.lease("plant", two, 20)
        assert not await store.alerts.lease("plant", one, 20)
        log_id = cursor.log_id
        assert await store.alerts.advance("plant", two, log_id, 1, [event], 0) == 0
        [message] = await store.alerts.due("plant", 10)
        assert message.event.seq == event.seq

    run(database_url, [], body)


# ------------------------------------------------------------------- connections of the sweep's own


@pytest.mark.parametrize("broken", [False, True], ids=["as it is", "with the readers' connections"])
def test_clients_that_read_take_no_connection_of_the_sweep(database_url: str, broken: bool) -> None:
    """Nor of the alerts, nor of the commands' entries."""

    async def body(store: Store) -> None:
        await store.record(check_in("gone"))
        time_passes(database_url)
        await store.alerts.register(["plant"])
        steady(store)
        for pool in store._pools:
            pool._acquire_timeout_s = 0.1
        if broken:
            store.sweeper._pool = store._outbox._pool = store.alerts._pool = store._pool
        async with contextlib.AsyncExitStack() as readers:
            for _ in range(store_module.READERS):
                await readers.enter_async_context(store._pool.connection())
            with pytest.raises(StoreUnavailable, match="too many reads"):
                await store.user("gone@example.com")
            for work in (
                store.sweeper.sweep,
                store.sweeper.prune,
                store._outbox.take,
                lambda: store.alerts.cursor("plant", uuid.uuid4(), 1),
            ):
                if broken:
                    with pytest.raises(StoreUnavailable, match="too many reads"):
                        await work()
                else:
                    await work()

    run(database_url, [], body)
    assert rows(database_url, "SELECT 1 FROM check_in WHERE event = 'offline'") == (
        [] if broken else [(1,)]
    )


def test_a_missing_connection_is_no_absence_of_servers(database_url: str) -> None:
    """The writer notes that a server runs; the search catches up, without a grace."""

    async def body(store: Store) -> None:
        await store.record(check_in("gone"))
        time_passes(database_url)
        store.sweeper._pool._acquire_timeout_s = 0.1
        async with store.sweeper._pool.connection():
            with pytest.raises(StoreUnavailable, match="too many reads"):
                await store.sweeper.sweep()
            [(before,)] = rows(database_url, watched_ms)
            # Longer than what counts as an absence.
            enough = before + 1000 * presence.away_after_s(presence.sweep_every_s(1))
            await until(lambda: rows(database_url, watched_ms) > [(enough,)])
        await until(lambda: rows(database_url, offline))

    offline = "SELECT 1 FROM check_in WHERE event = 'offline'"
    watched_ms = "SELECT watched_ms FROM head"
    with structlog.testing.capture_logs() as logs:
        run(database_url, [], body, when=PresenceSettings(interval_s=1, offline_after_s=7200))
    assert "offline detection paused" not in [line["event"] for line in logs]


def test_readiness_says_when_the_sweep_is_late(start_server: StartServer) -> None:
    """With the reason, as a warning: check-ins are recorded all the same."""
    server = start_server(presence=OFTEN, constants={MIN_LATE_S: 1})

    def warnings() -> list[str]:
        ready = server.management("/readyz")
        assert ready.status == 200
        found: list[str] = ready.json["checks"]["presence"]["reasons"]
        return found

    wait_until(lambda: warnings() == [], "the first sweep")
    server.rows("ALTER TABLE presence_mark RENAME TO hidden")
    [late] = wait_until(warnings, "a warning")
    assert re.match(r"the last presence sweep was \d+ s ago: .*presence_mark", late)
    assert server.request("POST", "/api/client").status == 204
    server.rows("ALTER TABLE hidden RENAME TO presence_mark")
    wait_until(lambda: warnings() == [], "a sweep")


# ---------------------------------------------------------------------------------------- history


def test_a_users_history_is_complete_in_pages(database_url: str) -> None:
    """Newest first, among others' entries, also where one commit holds several of the user's."""

    async def body(store: Store) -> None:
        for number in range(6):
            users = ["a", "b", "a", "a", "c", "a"][: number + 1]
            await asyncio.gather(*(store.record(check_in(u, 1000 + number)) for u in users))
        time_passes(database_url)
        await store.sweeper.sweep()
        await store.record(check_in("a", serial="02"))
        expected = rows(
            database_url,
            "SELECT seq FROM check_in WHERE email = 'a@example.com' ORDER BY seq DESC",
        )
        for limit in (1, 4, 1000):
            found: list[int] = []
            before = None
            while True:
                page = await store.history("a@example.com", before, limit)
                found += [entry.event.seq for entry in page.entries]
                before = page.before
                if before is None:
                    break
            assert found == [seq for (seq,) in expected]
        page = await store.history("a@example.com", None, 3)
        assert [(e.event.event, e.serial) for e in page.entries] == [
            ("back", "02"),
            ("offline", None),
            ("check-in", "01"),
        ]
        # Another user's entry leads nowhere.
        assert (await store.history("b@example.com", expected[1][0], 10)).entries == []
        assert (await store.history("nobody@example.com", None, 10)).entries == []

    run(database_url, [], body)


def test_a_history_has_no_hole_where_enrolment_is_closed(database_url: str) -> None:
    """Those who are refused take no number, so positions in a commit are not numbers."""

    async def body(store: Store) -> None:
        rows(database_url, "INSERT INTO user_status (email) VALUES ('a@example.com')")
        users = ["stranger", "a", "stranger", "a", "a", "stranger", "a"]
        results = await asyncio.gather(
            *(store.record(check_in(user)) for user in users), return_exceptions=True
        )
        assert sum(isinstance(result, UserUnknown) for result in results) == 3
        page = await store.history("a@example.com", None, 10)
        assert [entry.event.seq for entry in page.entries] == [4, 3, 2, 1]

    run(database_url, [], body, enrolment_closed=True)


# ---------------------------------------------------------------------------------------- devices


def test_several_devices_of_a_user_are_told_apart(database_url: str) -> None:
    """By their certificates, the newest first, also when they check in at the same time."""

    async def devices(store: Store) -> list[tuple[str, int]]:
        record = await store.user("a@example.com")
        assert record is not None
        assert record.devices[0].last_seen == record.last_seen
        moments = [device.last_seen for device in record.devices]
        assert moments == sorted(moments, reverse=True)
        return [(device.serial, device.client_port) for device in record.devices]

    async def body(store: Store) -> None:
        # In one commit, on an empty table: an insert.
        await asyncio.gather(
            *(store.record(check_in("a", n, s)) for n, s in [(1, "01"), (2, "02")])
        )
        assert await devices(store) == [("02", 2), ("01", 1)]
        await store.record(check_in("a", 3, "02"))
        assert await devices(store) == [("02", 3), ("01", 1)]
        await store.record(check_in("a", 4, "01"))
        assert await devices(store) == [("01", 4), ("02", 3)]
        # In one commit, three of them, two known.
        several = [(5, "03"), (6, "02"), (7, "02"), (8, "01")]
        await asyncio.gather(*(store.record(check_in("a", n, serial)) for n, serial in several))
        found = await devices(store)
        assert found[0] == ("01", 8)
        assert sorted(found[1:]) in ([("02", 6), ("03", 5)], [("02", 7), ("03", 5)])
        await store.record(check_in("b", 9, "01"))
        assert (await devices(store))[0] == ("01", 8)

    run(database_url, [], body)


def test_the_devices_that_are_remembered_are_bounded(database_url: str) -> None:
    """The newest eight beside the one in use: a certificate renewed daily fills no page."""

    async def body(store: Store) -> None:
        for number in range(20):
            await store.record(check_in("a", 1, f"{number:02x}"))
        record = await store.user("a@example.com")
        assert record is not None
        assert [int(device.serial, 16) for device in record.devices] == list(range(19, 10, -1))

    run(database_url, [], body)


def test_one_device_writes_nothing_about_devices(database_url: str) -> None:
    """The common case costs nothing."""

    async def body(store: Store) -> None:
        await asyncio.gather(*(store.record(check_in("a")) for _ in range(3)))
        await store.record(check_in("a"))

    run(database_url, [], body)
    assert rows(database_url, "SELECT devices FROM user_status") == [(None,)]


# ------------------------------------------------------------------------------------ end to end

OFTEN = {"interval_s": 1, "offline_after_s": 2}


def test_a_user_is_seen_to_go_and_to_come_back(start_server: StartServer) -> None:
    """On the wire, in the record, in the log and in the user's own history."""
    server = start_server(presence=OFTEN)
    with Heard(server.announce_port) as listener:
        assert server.request("POST", "/api/client").status == 204
        assert server.request("GET", "/api/client").json["state"] in ("online", "late")
        new, offline = listener.updates(2)
        assert (new["event"], offline["event"]) == ("new", "offline")
        assert list(offline) == ["seq", "event", "email", "last_seen", "at"]
        assert (offline["seq"], offline["email"]) == (2, new["email"])
        assert offline["last_seen"] == new["last_seen"] < offline["at"]
        record = server.request("GET", "/api/client").json
        assert (record["state"], record["seq"]) == ("offline", 2)
        assert record["last_seen"] == record["first_seen"] == new["last_seen"]
        assert record["client_ip"] == "127.0.0.1"
        assert server.request("POST", "/api/client").status == 204
        [back] = listener.updates(1)
        assert (back["seq"], back["event"]) == (3, "back")
    page = server.request("GET", "/api/events?after=0&limit=3", cert="operator").json
    assert page["events"] == [new, offline, back]
    path = f"/api/users/{new['email']}/history"
    for cert in ("client", "operator"):
        first = server.request("GET", f"{path}?limit=2&before=3", cert=cert).json
        assert [event["seq"] for event in first["events"]] == [2, 1]
        assert first["next"] is None
        assert first["events"][1]["serial"]
    newest = server.request("GET", f"{path}?limit=1").json
    assert server.request("GET", newest["next"]).status == 200


def test_only_readers_see_others_histories(start_server: StartServer) -> None:
    """403, and nonsense is a 400."""
    server = start_server()
    answer = server.request("GET", "/api/users/operator@example.com/history")
    assert (answer.status, answer.detail) == (403, "Only readers may see this")
    for nonsense in ("before=0", "before=x", "limit=0", "limit=10001"):
        path = f"/api/users/valid_user@example.com/history?{nonsense}"
        assert server.request("GET", path).status == 400


def test_receivers_of_the_older_format_hear_check_ins_only(start_server: StartServer) -> None:
    """They would take an `offline` for a check-in."""
    port = free_port(socket.SOCK_DGRAM)
    server = start_server(presence=OFTEN, announce={"targets": targets(port, "binary")})
    with Heard(port) as listener:
        assert server.request("POST", "/api/client").status == 204
        wait_until(
            lambda: server.rows("SELECT 1 FROM check_in WHERE event = 'offline'"), "an offline"
        )
        assert server.request("POST", "/api/client").status == 204
        first, second = listener.one()[0], listener.one()[0]
        assert first != second
    moments = {int.from_bytes(payload[23:31]) // 1000 for payload in (first, second)}
    seen = server.rows(
        "SELECT (extract(epoch FROM at) * 1000000)::bigint FROM check_in"
        " WHERE event IN ('new', 'back') ORDER BY seq LIMIT 2"
    )
    assert moments == {moment for (moment,) in seen}


# ----------------------------------------------------------------------------------------- export


def fill_log(server: Server, count: int) -> None:
    """Make a log of one user's check-ins, as that many would leave it."""
    server.rows(
        "INSERT INTO check_in"
        " (seq, at, event, email, client_ip, client_port, issuer, serial, previous)"
        " SELECT n, now(), 'check-in', 'valid_user@example.com', '10.0.0.7', 51514,"
        " 'CN=\"a\", O=b', 'ff', nullif(n - 1, 0) FROM generate_series(1, %s) AS n",
        count,
    )
    server.rows(
        "INSERT INTO user_status (email, seq, last_seen)"
        " VALUES ('valid_user@example.com', %s, now())",
        count,
    )
    server.rows("UPDATE head SET seq = %s", count)


def test_the_log_and_a_history_are_exported_whole(start_server: StartServer) -> None:
    """As CSV and as JSON lines, more than a page of them."""
    server = start_server()
    count = 2500
    fill_log(server, count)
    answer = server.request("GET", "/api/events.csv", cert="operator")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="events.csv"'
    table = list(csv.DictReader(io.StringIO(answer.body.decode(), newline="")))
    assert [int(row["seq"]) for row in table] == list(range(1, count + 1))
    assert (table[0]["issuer"], table[0]["client_ip"]) == ('CN="a", O=b', "10.0.0.7")
    lines = server.request("GET", "/api/events.jsonl?after=2000", cert="operator").body.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(2001, count + 1))
    path = "/api/users/valid_user@example.com/history"
    lines = server.request("GET", f"{path}.jsonl").body.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(count, 0, -1))
    assert len(server.request("GET", f"{path}.csv").body.splitlines()) == count + 1
    assert server.request("GET", "/api/events.csv").status == 403
    assert server.request("GET", "/api/users/operator@example.com/history.csv").status == 403
    assert (
        server.request("GET", f"/api/events.csv?after={count + 1}", cert="operator").status == 410
    )
    server.rows("DELETE FROM check_in WHERE seq < 2000")
    assert server.request("GET", "/api/events.csv?after=5", cert="operator").status == 410
    assert len(server.request("GET", "/api/events.csv", cert="operator").body.splitlines()) == 502


def test_an_export_that_cannot_be_finished_is_cut_off(start_server: StartServer) -> None:
    """A client sees that it is not whole: what is missing was pruned while it read."""
    server = start_server()
    fill_log(server, 60_000)
    connection = server.connect("operator")
    connection.connect()
    connection.request("GET", "/api/events.jsonl")
    response = connection.getresponse()
    assert response.status == 200
    # The client does not read on, so the server is somewhere in the middle.
    server.rows("DELETE FROM check_in")
    with pytest.raises((http.client.IncompleteRead, ConnectionError, ssl.SSLError)):
        response.read()
    connection.close()
    assert server.wait_event("answer cut off")["email"] == "operator@example.com"


def test_a_cell_is_no_formula() -> None:
    """A spreadsheet would run a formula in the name of a certificate."""
    event = Event(1, "offline", "=1+1@example.com", NOW, None, None, NOW)
    row = csv_lines([csv_row(HistoryEntry(event, None, None))]).decode()
    moment = "2026-01-02T03:04:05.000000Z"
    assert row == f"1,offline,'=1+1@example.com,{moment},{moment},,,,\r\n"


# -------------------------------------------------------------------------------------------- HOT


@pytest.mark.parametrize("indexed", [False, True], ids=["as it is", "with an index on last_seen"])
def test_check_ins_and_sweeps_are_hot_updates(database_url: str, indexed: bool) -> None:
    """No index is touched, whatever the number of users. (With one on a time it would be.)"""

    async def body(store: Store) -> None:
        if indexed:
            rows(database_url, "CREATE INDEX ON user_status (last_seen)")
        for _ in range(30):
            await store.record(check_in("a"))
        time_passes(database_url)
        await store.sweeper.sweep()
        await store.record(check_in("a"))

    run(database_url, [], body)
    statistics = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = %s"

    def updates() -> tuple[int, int] | None:
        [(total, hot)] = rows(database_url, statistics, "user_status")
        # 29 check-ins, the passing of time, the sweep, the return.
        return (total, hot) if total == 32 else None

    total, hot = wait_until(updates, "PostgreSQL's statistics")
    assert (hot < total) is indexed


# ------------------------------------------------------------------------------------- the states

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


def ago(seconds: float) -> datetime.datetime:
    return NOW - datetime.timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("last_seen", "offline", "expected"),
    [
        (None, False, State.NEVER),
        (ago(-5), False, State.ONLINE),
        (ago(0), False, State.ONLINE),
        (ago(90), False, State.ONLINE),
        (ago(91), False, State.LATE),
        (ago(9999), False, State.LATE),
        (ago(9999), True, State.OFFLINE),
    ],
)
def test_what_a_user_is(
    last_seen: datetime.datetime | None,
    offline: bool,
    expected: State,
) -> None:
    """Late by the clock, offline by the log."""
    assert presence.state(last_seen, offline, NOW, 60) is expected


@pytest.mark.parametrize(
    ("configured", "offline_after", "kept"),
    [(604800, 180, 604800), (0, 180, 3600), (10, 180, 240), (0, 7200, 7260)],
)
def test_the_log_outlives_every_silence(
    configured: float, offline_after: float, kept: float
) -> None:
    """However little is asked for."""
    assert presence.retention_s(configured, offline_after) == kept


# ------------------------------------------------------------------------------- being counted


def test_users_are_counted_by_their_states(database_url: str) -> None:
    """As their records say, also those who were enrolled and never came."""

    async def body(store: Store) -> None:
        for user in ("gone", "late", "here", "first"):
            await store.record(check_in(user))
        rows(database_url, "INSERT INTO user_status (email) VALUES ('never@example.com')")
        for user, hours in (("gone", 9.0), ("late", 1.6), ("here", 0.5)):
            rows(
                database_url,
                "UPDATE user_status SET last_seen = last_seen - %s * interval '1 hour',"
                " first_seen = first_seen - interval '1 day', offline = %s WHERE email = %s",
                hours,
                user == "gone",
                f"{user}@example.com",
            )
        async with store._pool.connection() as connection:
            counted = await user_counts.count(connection, HOURLY.interval_s)
        assert counted == {"never": 1, "online": 2, "late": 1, "offline": 1}
        records = (await store.users("", 10)).users
        assert Counter(str(record.state) for record in records) == Counter(
            online=2, late=1, offline=1
        )

    run(database_url, [], body)


def test_many_users_are_counted_from_a_sample(database_url: str) -> None:
    """Of bounded size, the same each time, and near enough; a small table is whole."""

    async def body(store: Store) -> None:
        rows(
            database_url,
            "INSERT INTO user_status (email, seq, last_seen, first_seen, offline)"
            " SELECT n || '@example.com', n, now(), now() - interval '1 hour', n %% 4 = 0"
            " FROM generate_series(1, %s) n",
            40_000,
        )
        async with store._pool.connection() as connection:
            exact = await user_counts.count(connection, HOURLY.interval_s)
            assert exact == {"never": 0, "online": 30_000, "late": 0, "offline": 10_000}
            sampled = await user_counts.count(connection, HOURLY.interval_s, max_pages=100)
            again = await user_counts.count(connection, HOURLY.interval_s, max_pages=100)
        assert sampled == again != exact
        # Far apart from a sample that is taken for the whole; the pages are always the same.
        assert 20_000 < sampled["online"] < 40_000
        assert 6_000 < sampled["offline"] < 14_000

    run(database_url, [], body)


def test_what_the_sweep_has_done_is_known(database_url: str) -> None:
    """How long ago it was, also where another server did it; who went offline, what was pruned."""

    async def body(store: Store) -> None:
        await store.record(check_in("silent"))
        time_passes(database_url, hours=24 * 8)
        assert await store.sweeper.sweep() == 1
        first = store.sweeper.swept_ago_s
        assert first is not None
        store.sweeper._swept_at = None
        await store.sweeper.sweep()  # with nothing left to do
        assert store.sweeper.swept_ago_s is not None
        steady(store)
        assert await store.sweeper.prune() == 1
        assert (store.sweeper.gone_offline, store.sweeper.pruned) == (1, 1)

    run(database_url, [], body)
