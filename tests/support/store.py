"""A store without a server, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tests.support.harness import PATIENCE_S, rows
from tornado_status.config.settings import DatabaseSettings, PresenceSettings
from tornado_status.model.records import CheckIn, Event
from tornado_status.store import Store

# Intervals so long that a user is late only if a test moves the clock.
HOURLY = PresenceSettings(interval_s=3600, offline_after_s=7200)


def run(
    url: str,
    heard: list[Event],
    body: Callable[[Store], Awaitable[None]],
    **settings: Any,
) -> None:
    """Run `body` with a store on the database at `url`, within a bound."""

    async def main() -> None:
        store = Store(
            DatabaseSettings(url=url),
            enrolment_closed=settings.pop("enrolment_closed", False),
            subscribers=[lambda batch: heard.extend(batch.events)],
            **{"when": HOURLY, **settings},
        )
        await store.start()
        await store.wait_connected()
        # Its first sweep, of a database that was never swept, begins with a grace.
        await until(lambda: store.sweeper._marked and store.sweeper.swept_ago_s is not None)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await body(store)
        finally:
            await store.drain(PATIENCE_S)
            await store.stop()

    asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - another process's doing gives no event
            await asyncio.sleep(0.01)


def check_in(user: str, port: int = 1000, serial: str = "01") -> CheckIn:
    return CheckIn(f"{user}@example.com", "127.0.0.1", port, "CN=test", serial)


def watched(url: str, hours: float = 3) -> None:
    """Servers have watched the log for so much longer, whatever the database's clock says."""
    rows(
        url,
        "INSERT INTO presence_mark SELECT watched_ms + 1, seq, at FROM head;"
        "UPDATE head SET swept_at = clock_timestamp(), watched_ms = watched_ms + 1 + %s",
        int(hours * 3_600_000),
    )
