"""Both statements that record a batch write the same, and every writer locks the head first."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection

from tests.support.harness import rows
from tests.support.store import check_in, run, watched
from tornado_status.config.settings import DatabaseSettings
from tornado_status.model.records import CheckIn, Event
from tornado_status.store import Store, batch_statements, log_id
from tornado_status.store.enrolment import OfflineEnrolment
from tornado_status.store.log_id import connected

USERS = ("ada", "bob", "cy", "dee")
CERTIFICATES = (("CN=one", "01"), ("CN=one", "02"), ('CN="two"\\{', "01"))
BEGIN = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)

# A batch in which no user is twice, or something else that happens to a user.
BATCHES = st.dictionaries(
    st.sampled_from(USERS),
    st.tuples(st.sampled_from(CERTIFICATES), st.integers(1, 3)),
    min_size=1,
).map(
    lambda batch: [
        CheckIn(f"{user}@example.com", f"127.0.0.{address}", address, *certificate)
        for user, (certificate, address) in batch.items()
    ]
)
CHANGES = {
    "offline": "UPDATE user_status SET offline = true WHERE email = %s AND last_seen IS NOT NULL",
    "removed": "DELETE FROM user_status WHERE email = %s",
    "enrolled": "INSERT INTO user_status (email, seq) VALUES (%s, 0) ON CONFLICT DO NOTHING",
    # As it is after an update from a version without first_seen.
    "older": "UPDATE user_status SET first_seen = NULL WHERE email = %s",
}
STEPS = st.lists(
    BATCHES | st.tuples(st.sampled_from(sorted(CHANGES)), st.sampled_from(USERS)), max_size=8
)


@contextlib.contextmanager
def prepared(url: str) -> Iterator[Connection]:
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET TIME ZONE 'UTC'; SET enable_seqscan = off")
            for statement in batch_statements.PREPARE:
                cursor.execute(statement)
        yield connection
    finally:
        connection.close()


def written(connection: Connection, steps: list[Any], *, any_batch: bool) -> list[Any]:
    """Run the steps from an empty log; return all answers and tables. Nothing is committed."""
    found: list[Any] = []
    with connection.cursor() as cursor:
        for number, step in enumerate(steps):
            # The clock is behind the log, so that both write the same times.
            cursor.execute("UPDATE head SET at = %s", [BEGIN + datetime.timedelta(hours=number)])
            if isinstance(step, tuple):
                cursor.execute(CHANGES[step[0]], [f"{step[1]}@example.com"])
                continue
            record = batch_statements.record_any if any_batch else batch_statements.record
            statement = record(step, False)
            assert ("record_any" in statement) is any_batch
            cursor.execute(f"{batch_statements.LOCK_HEAD}; {statement}")
            [(base, at, new, back, accepted)] = cursor.fetchall()
            found.append((base, at, sorted(new), sorted(back), accepted))
        for table, key in (("head", "seq"), ("check_in", "seq"), ("user_status", "email")):
            cursor.execute(f"SELECT * FROM {table} ORDER BY {key}")  # noqa: S608
            found.append(cursor.fetchall())
    connection.rollback()
    return found


def test_both_statements_write_the_same(database_url: str) -> None:
    """New, known, enrolled, removed and offline users, with one device or another."""

    @settings(max_examples=150, deadline=None)
    @given(STEPS)
    def compare(steps: list[Any]) -> None:
        distinct = written(connection, steps, any_batch=False)
        assert distinct == written(connection, steps, any_batch=True)

    with prepared(database_url) as connection:
        connection.commit()
        compare()


# -------------------------------------------------------------------------------------- the lock

# SELECT FOR UPDATE holds this lock of the table until the end of its transaction; an UPDATE of the
# head holds another one.
GUARD = """\
CREATE FUNCTION head_is_locked() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_locks WHERE pid = pg_backend_pid() AND relation = 'head'::regclass
            AND mode = 'RowShareLock' AND granted
    ) THEN RAISE EXCEPTION 'the head is not locked'; END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER head_first BEFORE INSERT OR UPDATE OR DELETE ON user_status
    EXECUTE FUNCTION head_is_locked()"""


def test_every_writer_of_a_status_locks_the_head_first(database_url: str) -> None:
    """Without it, a row could move between the look at its place and the update."""
    rows(database_url, GUARD)
    with pytest.raises(psycopg2.errors.RaiseException, match="the head is not locked"):
        rows(database_url, "UPDATE user_status SET offline = true")
    heard: list[Event] = []

    async def body(store: Store) -> None:
        await asyncio.gather(*(store.record(check_in(user)) for user in "aab"))
        watched(database_url)
        assert await store.sweeper.sweep() == 2
        await store.record(check_in("a"))
        assert await store.enrol("c@example.com")
        assert await store.remove("c@example.com")
        async with connected(DatabaseSettings(url=database_url), writable=True) as connection:
            commands = OfflineEnrolment(connection)
            await commands.prepare()
            assert await commands.enrol(["d@example.com"]) == {"d@example.com"}
            assert await commands.remove(["d@example.com"]) == {"d@example.com"}
        before = store.log_id
        assert (await log_id.renew(DatabaseSettings(url=database_url))).log_id != before
        await store.record(check_in("a"))

    run(database_url, heard, body)
    kinds = {"new", "check-in", "offline", "back", "enrolled", "removed"}
    assert {event.event for event in heard} == kinds
