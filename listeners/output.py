"""Updates to text: a block for people, a line for programs. Pure: no sockets, no streams.

Everything in an update was checked when it was decoded, so nothing here needs escaping.
"""

from __future__ import annotations

import datetime
import enum
import json

from tornado_status.checkin import Event
from tornado_status.datagram import BinaryUpdate

Source = tuple[str, int]  # a sender's address and port

_RULE = "-" * 40
# The events that are a check-in themselves: the block looks the same for all three.
_CHECK_INS = frozenset({"check-in", "new", "back"})


class Format(enum.StrEnum):
    """How updates are written."""

    TEXT = "text"
    JSON = "json"


def render(form: Format, update: Event | BinaryUpdate, source: Source) -> str:
    """Return one update as it is written, with its line ends."""
    return text_block(update, source) if form is Format.TEXT else json_line(update)


def text_block(update: Event | BinaryUpdate, source: Source) -> str:
    """Return the block for people. An event that is no check-in is named on one more line."""
    lines = [_RULE, f"Source Packet: {source!r}"]
    if isinstance(update, Event) and update.event not in _CHECK_INS:
        lines.append(f"Event        : {update.event}")
    lines += [
        f"User Email   : {update.email}",
        f"Last Seen    : {_last_seen(update, ' ')}",
        f"Client IP    : {update.client_ip}",
        f"Client Port  : {update.client_port}",
        _RULE,
    ]
    return "\n".join(lines) + "\n"


def json_line(update: Event | BinaryUpdate) -> str:
    """Return one flat JSON object on a line of its own; what the binary format lacks is null."""
    members = {
        "seq": update.seq if isinstance(update, Event) else None,
        "event": update.event if isinstance(update, Event) else None,
        "email": update.email,
        "last_seen": _last_seen(update, "T").replace("+00:00", "Z"),
        "client_ip": update.client_ip,
        "client_port": update.client_port,
    }
    return json.dumps(members, separators=(",", ":")) + "\n"


def _last_seen(update: Event | BinaryUpdate, separator: str) -> str:
    # Not str(): it leaves the fraction out when it is zero.
    moment = update.last_seen.astimezone(datetime.UTC)
    return moment.isoformat(sep=separator, timespec="microseconds")
