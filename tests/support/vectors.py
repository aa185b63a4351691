"""The golden vectors of the wire formats: tests/vectors."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from typing import Any

from tornado_status.model.records import Event, LogStep
from tornado_status.wire.datagram import Datagram, DatagramEncoder, Signs


def written_event(update: dict[str, Any]) -> Event:
    texts: dict[str, str] = {n: update[n] for n in ("last_seen", "at") if update.get(n)}
    parsed = {name: datetime.datetime.fromisoformat(text) for name, text in texts.items()}
    return Event(**{**update, **parsed})


def written_datagram(fields: dict[str, Any], kid: str | None = None) -> Datagram:
    log_id, parent = uuid.UUID(fields["log"]), fields["parent"]
    if parent is not None:
        parent = LogStep(log_id, uuid.UUID(parent["log"]), parent["fork"])
    return Datagram(
        log_id=log_id,
        sent=datetime.datetime.fromisoformat(fields["sent"]),
        head=fields["head"],
        updates=tuple(written_event(update) for update in fields["updates"]),
        repeated=tuple(written_event(update) for update in fields["repeated"]),
        parent=parent,
        kid=kid,
    )


def encoded(datagram: Datagram, signer: Signs | None = None) -> Sequence[bytes]:
    """Encode it, with an encoder that has announced before what it repeats."""
    encoder = DatagramEncoder(len(datagram.repeated))
    log_id, sent, head = datagram.log_id, datagram.sent, datagram.head
    for event in reversed(datagram.repeated):
        list(encoder.encode(log_id, sent, head, [event]))
    return list(encoder.encode(log_id, sent, head, datagram.updates, signer, datagram.parent))
