"""What a listener delivers: updates, or gaps and snapshots where there are none. Values."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from tornado_status.model.records import Event, StatusRecord
from tornado_status.wire.datagram import BinaryUpdate

Source = tuple[str, int]  # a sender's address and port


@dataclass(frozen=True, slots=True)
class Update:
    """An entry of the log, once and in order where it is verified.

    `source` is where it was heard from, None where it was fetched over HTTPS. Unverified ones
    (`Settings.insecure`) come as they were heard, and nothing proves them.
    """

    event: Event | BinaryUpdate
    source: Source | None
    verified: bool = True


@dataclass(frozen=True, slots=True)
class Gap:
    """Numbers `first` to `last` that are not delivered as updates.

    With `stream` a new stream begins, and the numbers are the new one's; `last` may then be 0.
    Where the listener can repair, the state of all users follows as `Snapshot`s.
    """

    first: int
    last: int
    log_id: uuid.UUID | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A user's newest entry as of the gap before it: it replaces what was known of the user."""

    record: StatusRecord


Delivery = Update | Gap | Snapshot
