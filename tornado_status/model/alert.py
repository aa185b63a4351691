"""Messages about users, as alerts send them, and the cursor behind them. Pure values."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass

from tornado_status.model.records import Event


def moment(event: Event) -> datetime.datetime:
    """Return when an entry of the log was committed."""
    at = event.last_seen if event.at is None else event.at
    if at is None:
        raise ValueError(f"event {event.seq} has no moment")
    return at


@dataclass(frozen=True, slots=True)
class Message:
    """One event that an alert tells its receiver. `id` is the queue's; it rises with the log."""

    id: int
    log_id: uuid.UUID
    event: Event
    attempts: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far an alert has read the log, and what there is to do.

    `held`: this server holds the lease for a while yet. `free`: nobody does. `due`: a message waits
    to be sent. `stream` and `head` are the log's; `followed` and `seq` are where the alert stands.
    """

    followed: uuid.UUID
    seq: int
    log_id: uuid.UUID
    head: int
    held: bool
    free: bool
    due: bool


@dataclass(frozen=True, slots=True)
class Return:
    """A user who came back: what was to be said of the absence need not be, if it was short."""

    seq: int
    email: str
    at: datetime.datetime
