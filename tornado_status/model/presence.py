"""Presence: the state of a user, and how often it is checked. Pure: the time is passed in."""

from __future__ import annotations

import datetime
import enum
from dataclasses import dataclass

# The defaults of the settings.
INTERVAL_S = 60.0
OFFLINE_AFTER_INTERVALS = 3
# A user is late after this many intervals without a check-in: a client's timer, its retries and the
# network are never exact.
LATE_AFTER_INTERVALS = 1.5
SWEEPS_PER_INTERVAL = 4
MAX_SWEEP_EVERY_S = 15.0  # an `offline` comes at most so much after its time
# No server was running if two sweeps did not happen; a busy machine alone does not count.
AWAY_AFTER_SWEEPS, MIN_AWAY_S = 2, 5.0
# Kept at least that much longer than a user may be silent, so that every sweep finds its entries.
RETENTION_MARGIN_S = 60.0
SHORTEST_RETENTION_S = 3600.0  # what a retention of 0 means


class State(enum.StrEnum):
    """The presence of a user."""

    NEVER = "never"  # enrolled, and no check-in yet
    ONLINE = "online"
    LATE = "late"  # the next check-in is overdue
    OFFLINE = "offline"  # the log has the event


@dataclass(frozen=True, slots=True)
class PresenceTimes:
    """How often users check in, and after how much silence one is late or offline."""

    interval_s: float = INTERVAL_S
    late_after_s: float = INTERVAL_S * LATE_AFTER_INTERVALS
    offline_after_s: float = INTERVAL_S * OFFLINE_AFTER_INTERVALS


def state(
    last_seen: datetime.datetime | None,
    offline: bool,
    now: datetime.datetime,
    interval_s: float,
) -> State:
    """Return the state of a user who checks in every `interval_s` seconds.

    `offline` is whether the log says so: a record never contradicts the events.
    """
    if offline:
        return State.OFFLINE
    if last_seen is None:
        return State.NEVER
    if (now - last_seen).total_seconds() > late_after_s(interval_s):
        return State.LATE
    return State.ONLINE


def late_after_s(interval_s: float) -> float:
    """Return after how much silence a user's next check-in is overdue."""
    return interval_s * LATE_AFTER_INTERVALS


def sweep_every_s(interval_s: float) -> float:
    """Return how often the presence sweep runs."""
    return min(interval_s / SWEEPS_PER_INTERVAL, MAX_SWEEP_EVERY_S)


def away_after_s(every_s: float) -> float:
    """Return after how long without a sweep no server can have been running."""
    return max(AWAY_AFTER_SWEEPS * every_s, MIN_AWAY_S)


def retention_s(configured_s: float, offline_after_s: float) -> float:
    """Return how long the log is kept: at least as long as the sweep needs it."""
    return max(configured_s or SHORTEST_RETENTION_S, offline_after_s + RETENTION_MARGIN_S)
