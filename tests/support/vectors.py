"""The golden vectors of the wire formats: tests/vectors."""

from __future__ import annotations

import datetime
from typing import Any

from tornado_status.model.records import Event


def written_event(update: dict[str, Any]) -> Event:
    texts: dict[str, str] = {n: update[n] for n in ("last_seen", "at") if update.get(n)}
    parsed = {name: datetime.datetime.fromisoformat(text) for name, text in texts.items()}
    return Event(**{**update, **parsed})
