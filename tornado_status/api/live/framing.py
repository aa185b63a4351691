"""The live stream's messages, and their bytes as Server-Sent Events and as WebSocket frames. Pure.

A message is one JSON object: an event as in a datagram, a `gap`, or the `position`.
"""

from __future__ import annotations

import json
import struct
import uuid
from dataclasses import dataclass
from typing import Protocol

from tornado_status.model.records import Event
from tornado_status.wire import datagram

RETRY_MS = 1000  # the least a browser waits before it connects again

_TEXT_FRAME = 0x81  # RFC 6455, 5.2: the last fragment, of text


@dataclass(frozen=True, slots=True)
class Message:
    """`seq` is the position that a reader has reached with it; `event` its kind."""

    seq: int
    event: str
    body: bytes


def of_event(event: Event) -> Message:
    """Return an entry of the log as a message."""
    return Message(event.seq, event.event, datagram.encode_update(event))


def position(log_id: uuid.UUID, seq: int) -> Message:
    """Return what says where the reader is: it has, or has been spared, all up to `seq`."""
    body = {"event": "position", "log": str(log_id), "seq": seq}
    return Message(seq, "position", _json(body))


def gap(first: int, last: int, log_id: uuid.UUID | None = None) -> Message:
    """Return what says that events are missing; `stream` where a new one has begun."""
    body: dict[str, object] = {"event": "gap", "from": first, "to": last}
    if log_id is not None:
        body["log"] = str(log_id)
    return Message(last, "gap", _json(body))


class Framing(Protocol):
    """How messages go over one kind of connection."""

    def frame(self, message: Message) -> bytes: ...

    def join(self, frames: list[bytes]) -> bytes:
        """Return what is written at once, for frames in order."""
        ...


class EventStream:
    """Server-Sent Events (WHATWG HTML, 9.2) in chunks of HTTP/1.1 (RFC 9112, 7.1)."""

    LAST_CHUNK = b"0\r\n\r\n"

    def frame(self, message: Message) -> bytes:
        return b"id: %d\nevent: %b\ndata: %b\n\n" % (
            message.seq,
            message.event.encode(),
            message.body,
        )

    def join(self, frames: list[bytes]) -> bytes:
        return self.chunk(b"".join(frames))

    def chunk(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data)

    def opening(self, retry_ms: int) -> bytes:
        """Return the first chunk: how long to wait before connecting again."""
        return self.chunk(b"retry: %d\n\n" % retry_ms)

    def ending(self, reason: str) -> bytes:
        """Return the last chunks, with the reason as a comment for people."""
        return self.chunk(b": %b\n\n" % reason.encode()) + self.LAST_CHUNK


class WebSocketFrames:
    """One text frame of a server (RFC 6455, 5.2) for each message."""

    def frame(self, message: Message) -> bytes:
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
