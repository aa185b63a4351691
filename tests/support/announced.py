"""The events of a datagram, as objects: for tests that compare them with the log."""

from __future__ import annotations

import json
from typing import Any

from tornado_status.wire.datagram import decode_json
from tornado_status.wire.event_object import encode_update


def updates_in(payload: bytes) -> list[dict[str, Any]]:
    """Return the new events of a JSON datagram, each as HTTP has it."""
    return [json.loads(encode_update(event)) for event in decode_json(payload).updates]


def repeated_in(payload: bytes) -> list[dict[str, Any]]:
    """Return the repeated events of a JSON datagram, the newest first."""
    return [json.loads(encode_update(event)) for event in decode_json(payload).repeated]
