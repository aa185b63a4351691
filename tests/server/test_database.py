"""A connection to PostgreSQL: one cursor and one timer for all statements."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.support.harness import PATIENCE_S
from tornado_status.errors import StoreUnavailable
from tornado_status.store.database import Connection, StatementFailed, parse_url

SHORT_S = 1.0  # enough for `SELECT 1` on a busy machine
LONGER_S = 1.5
LONGER = f"SELECT pg_sleep({LONGER_S})"
ENDLESS = "SELECT pg_sleep(3600)"

Use = Callable[[Connection], Awaitable[None]]


def on_a_connection(url: str, use: Use) -> None:
    async def run() -> None:
        connection = await Connection.open(parse_url(url), PATIENCE_S)
        try:
            await use(connection)
        finally:
            await connection.close()

    asyncio.run(asyncio.wait_for(run(), 2 * PATIENCE_S))


@pytest.mark.parametrize("before_s", [None, SHORT_S, PATIENCE_S])
def test_a_statement_that_takes_too_long_closes_the_connection(
    database_url: str, before_s: float | None
) -> None:
    """It does not matter how much time the statement before it had."""

    async def use(connection: Connection) -> None:
        if before_s is not None:
            await connection.execute("SELECT 1", timeout_s=before_s)
        with pytest.raises(StoreUnavailable, match="the database does not answer in time"):
            await connection.execute(ENDLESS, timeout_s=LONGER_S)
        assert not connection.usable
        with pytest.raises(StoreUnavailable):
            await connection.execute("SELECT 1")

    on_a_connection(database_url, use)


def test_the_time_of_one_statement_does_not_end_the_next(database_url: str) -> None:
    async def use(connection: Connection) -> None:
        await connection.execute("SELECT 1", timeout_s=SHORT_S)
        assert await connection.execute(LONGER, timeout_s=PATIENCE_S) == [("",)]
        await connection.execute("SELECT 1", timeout_s=SHORT_S)
        await asyncio.sleep(LONGER_S)  # past the timer, which finds nothing to end
        assert connection.usable

    on_a_connection(database_url, use)


def test_a_refused_statement_leaves_the_connection_as_it_was(database_url: str) -> None:
    async def use(connection: Connection) -> None:
        for _ in range(2):
            with pytest.raises(StatementFailed) as refused:
                await connection.execute("SELECT 1 / 0")
            assert refused.value.sqlstate == "22012"
            assert await connection.execute("SELECT %s + 1", [1]) == [(2,)]
            assert await connection.execute("CREATE TEMPORARY TABLE t (); DROP TABLE t") == []

    on_a_connection(database_url, use)
