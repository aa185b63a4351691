"""Messages of alerts, and the cursor of an alert in the log. Pure values."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass

from tornado_status.model.records import Event


def committed_at(event: Event) -> datetime.datetime:
    """Return when an event of the log was committed."""
    at = event.last_seen if event.at is None else event.at
    if at is None:
        raise ValueError(f"event {event.seq} has no time")
    return at


@dataclass(frozen=True, slots=True)
class AlertMessage:
    """An event to send to an alert's receiver. `id` is the queue's; it rises with the log."""

    id: int
    log_id: uuid.UUID
    event: Event
    attempts: int


@dataclass(frozen=True, slots=True)
class AlertCursor:
    """How far an alert has read the log, and what there is to do.

    `held`: this server holds the lease. `free`: no server does. `due`: a message is to be sent.
    `log_id` and `head` are the log's; `followed` and `seq` are the alert's position in it.
    """

    followed: uuid.UUID
    seq: int
    log_id: uuid.UUID
    head: int
    held: bool
    free: bool
    due: bool


@dataclass(frozen=True, slots=True)
class UserReturn:
    """A user who came back: if the absence was short, its message is suppressed."""

    seq: int
    email: str
    at: datetime.datetime
