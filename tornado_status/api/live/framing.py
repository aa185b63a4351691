"""The messages of the live stream, framed as Server-Sent Events or for a WebSocket. Pure.

A message is one JSON object: an event of the log, a `gap`, a `rollback`, or the `position`.
"""

from __future__ import annotations

import json
import struct
import uuid
from dataclasses import dataclass
from typing import Protocol

from tornado_status.model.records import Event
from tornado_status.wire.event_object import encode_update
from tornado_status.wire.json_members import MAX_SEQ

RETRY_MS = 1000  # the least that a browser waits before it reconnects

_TEXT_FRAME = 0x81  # RFC 6455, 5.2: the last fragment, of text


@dataclass(frozen=True, slots=True)
class LiveMessage:
    """One message. The reader's position after it is `seq` in the log; `event` is its kind."""

    log_id: uuid.UUID
    seq: int
    event: str
    body: bytes


def event_message(log_id: uuid.UUID, event: Event) -> LiveMessage:
    """Return an event of the log as a message."""
    return LiveMessage(log_id, event.seq, event.event, encode_update(event))


def position_message(log_id: uuid.UUID, seq: int) -> LiveMessage:
    """Return the reader's position: it has all events up to `seq` that its filter selects."""
    body = {"event": "position", "log": str(log_id), "seq": seq}
    return LiveMessage(log_id, seq, "position", _json(body))


def gap_message(log_id: uuid.UUID, first: int, last: int, *, new_log: bool) -> LiveMessage:
    """Return a message that events are missing; with the log id if a new log has begun."""
    body: dict[str, object] = {"event": "gap", "from": first, "to": last}
    if new_log:
        body["log"] = str(log_id)
    return LiveMessage(log_id, last, "gap", _json(body))


def rollback_message(log_id: uuid.UUID, first: int, last: int) -> LiveMessage:
    """Return a message that these events of the log before are not in this one."""
    body = {"event": "rollback", "from": first, "to": last, "log": str(log_id)}
    return LiveMessage(log_id, first - 1, "rollback", _json(body))


def parse_id(text: str) -> tuple[uuid.UUID | None, int]:
    """Return log id and number of a message's id, as `frame` writes it; or of a number alone.

    Raises `ValueError`.
    """
    log_id, _, number = text.rpartition(":")
    if not (number.isascii() and number.isdecimal() and len(number) <= 19):
        raise ValueError("no number of an event")
    if (seq := int(number)) > MAX_SEQ:
        raise ValueError("no number of an event")
    return (uuid.UUID(log_id) if log_id else None), seq


class Framing(Protocol):
    """How one kind of connection carries messages."""

    def frame(self, message: LiveMessage) -> bytes: ...

    def join(self, frames: list[bytes]) -> bytes:
        """Return the bytes of one write, for frames in order."""
        ...


class EventStream:
    """Server-Sent Events (WHATWG HTML, 9.2) in chunks of HTTP/1.1 (RFC 9112, 7.1)."""

    LAST_CHUNK = b"0\r\n\r\n"

    def frame(self, message: LiveMessage) -> bytes:
        return b"id: %b:%d\nevent: %b\ndata: %b\n\n" % (
            str(message.log_id).encode(),
            message.seq,
            message.event.encode(),
            message.body,
        )

    def join(self, frames: list[bytes]) -> bytes:
        return self.chunk(b"".join(frames))

    def chunk(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data)

    def opening(self, retry_ms: int) -> bytes:
        """Return the first chunk: how long the client waits before it reconnects."""
        return self.chunk(b"retry: %d\n\n" % retry_ms)

    def ending(self, reason: str) -> bytes:
        """Return the last chunks, with the reason as a comment."""
        return self.chunk(b": %b\n\n" % reason.encode()) + self.LAST_CHUNK


class WebSocketFrames:
    """One unmasked text frame (RFC 6455, 5.2) for each message."""

    def frame(self, message: LiveMessage) -> bytes:
        size = len(message.body)
        if size < 126:
            head = struct.pack("!BB", _TEXT_FRAME, size)
        else:
            head = struct.pack("!BBH", _TEXT_FRAME, 126, size)  # a message is far below 64 KB
        return head + message.body

    def join(self, frames: list[bytes]) -> bytes:
        return b"".join(frames)


def _json(body: dict[str, object]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()
