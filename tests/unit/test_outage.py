"""Outages of the database in the log: lost, away, back, and how often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from tornado_status.store.database import parse_url
from tornado_status.store.failover import shown
from tornado_status.store.outage import Outage


class Clock:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def events(lines: list[Any]) -> list[tuple[str, float | None]]:
    found: list[tuple[str, float | None]] = []
    for line in lines:
        fields: Mapping[str, Any] = line
        found.append((fields["event"], fields.get("away_s")))
    return found


def test_an_outage_is_logged_each_minute_and_its_end_with_its_length() -> None:
    """The line repeats while the database is away, so that a log of one hour shows it."""
    with capture_logs() as lines:
        clock = Clock()
        outage = Outage(clock)
        outage.over()  # nothing was lost
        outage.lost("db:5432: closed")
        for _ in range(240):
            clock.now += 0.5
            outage.away("db:5432: refused")
        outage.over()
        outage.over()
    assert events(lines) == [
        ("database lost, reconnecting", None),
        ("database away, trying again", 0.5),
        ("database away, trying again", 60.5),
        ("database is back", 120.0),
    ]
    assert lines[2]["suppressed"] == 119


def test_a_database_that_fails_each_commit_does_not_fill_the_log() -> None:
    """Connected and lost ten times a second: one pair of lines a minute."""
    with capture_logs() as lines:
        clock = Clock()
        outage = Outage(clock)
        for _ in range(1000):
            outage.lost("db:5432: disk full")
            clock.now += 0.1
            outage.over()
    assert len(events(lines)) == 2 * 2


def test_another_reason_is_logged_at_once() -> None:
    """As from a host that refuses to a standby that only reads."""
    with capture_logs() as lines:
        outage = Outage(Clock())
        for reason in ("refused", "refused", "read-only"):
            outage.away(reason)
    assert [line["reason"] for line in lines] == ["refused", "read-only"]


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("postgresql://u:s3cret@db/status", "db:5432, database status"),
        ("postgresql://u:s3cret@db:6432/status", "db:6432, database status"),
        ("postgresql://u:s3cret@[::1]/status", "[::1]:5432, database status"),
        ("postgresql://u@db/?hostaddr=10.0.0.1", "db:5432 (10.0.0.1), database u"),
        ("postgresql://u@/status?host=/run/pg", "/run/pg/.s.PGSQL.5432, database status"),
        ("postgresql:///", "the local socket:5432"),
    ],
)
def test_a_database_is_named_without_its_password(url: str, text: str) -> None:
    """Host, port and database."""
    assert shown(parse_url(url)) == text
