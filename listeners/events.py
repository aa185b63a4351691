"""The deliveries of a listener: updates; gaps, rollbacks and snapshots where some are missing."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from tornado_status.model.records import Event, StatusRecord
from tornado_status.wire.datagram import BinaryUpdate

Source = tuple[str, int]  # a sender's address and port


@dataclass(frozen=True, slots=True)
class Update:
    """An entry of the log, once and in order if it is verified.

    `source` is the sender, or None if the update was fetched over HTTPS. Unverified updates
    (`ListenerSettings.insecure`) come as they were received, and nothing proves them.
    """

    event: Event | BinaryUpdate
    source: Source | None
    verified: bool = True


@dataclass(frozen=True, slots=True)
class Gap:
    """Numbers `first` to `last` that are not delivered as updates.

    With `log_id` a new log begins, and the numbers are the new one's; `last` may then be 0. If the
    listener can repair, the state of all users follows as `Snapshot`s.
    """

    first: int
    last: int
    log_id: uuid.UUID | None = None


@dataclass(frozen=True, slots=True)
class Rollback:
    """Numbers `first` to `last`, whose updates were delivered, are lost.

    The log `log_id` goes on from the one before after the number `first` - 1. If the listener can
    repair, the state of users as of that number follows as `Snapshot`s. Then come the new log's
    updates from `first` on.
    """

    first: int
    last: int
    log_id: uuid.UUID


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A user's newest entry as of the gap or rollback before it.

    It replaces what was known of the user.
    """

    record: StatusRecord


Delivery = Update | Gap | Rollback | Snapshot
