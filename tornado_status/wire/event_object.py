"""An event as a JSON object of its own, as HTTP, live streams and alerts have it."""

from __future__ import annotations

from json.encoder import encode_basestring_ascii

from tornado_status.model.records import Event, timestamp
from tornado_status.wire import json_members
from tornado_status.wire.json_members import malformed


def encode_update(event: Event) -> bytes:
    """Return a JSON object without white space, in ASCII."""
    text = f'{{"seq":{event.seq},"event":"{event.event}","email":'
    text += encode_basestring_ascii(event.email)
    if event.last_seen is not None:
        text += f',"last_seen":"{timestamp(event.last_seen)}"'
    if event.client_ip is not None:
        text += f',"client_ip":"{event.client_ip}","client_port":{event.client_port}'
    if event.at is not None:
        text += f',"at":"{timestamp(event.at)}"'
    return f"{text}}}".encode()


def decode_update(update: object) -> Event:
    """Check an event as `json.loads` gives it. Raises `DatagramError` (`malformed`)."""
    if not isinstance(update, dict):
        raise malformed("update", update)
    # Both or neither: no client caused an event without them.
    addressed = "client_ip" in update or "client_port" in update
    # Only an event of a user that never checked in has none.
    seen = "last_seen" in update or addressed or "at" not in update
    return Event(
        seq=json_members.integer("seq", update.get("seq"), 1),
        event=json_members.kind(update.get("event")),
        email=json_members.email(update.get("email")),
        last_seen=json_members.moment("last_seen", update.get("last_seen")) if seen else None,
        client_ip=json_members.client_ip(update.get("client_ip")) if addressed else None,
        client_port=json_members.client_port(update.get("client_port")) if addressed else None,
        at=json_members.moment("at", update["at"]) if "at" in update else None,
    )
