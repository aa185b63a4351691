"""Checks of the members of untrusted JSON: each returns the value, or raises `DatagramError`."""

from __future__ import annotations

import datetime
import re
import uuid

from tornado_status.errors import DatagramError
from tornado_status.model.records import normalise_ip

MAX_EMAIL = 254  # RFC 5321: a path of 256 octets less its angle brackets
MAX_SEQ = 2**63 - 1  # PostgreSQL's bigint

# Printable ASCII without quotation mark and backslash, exactly one @: nothing to escape anywhere.
_EMAIL = re.compile(r"[!#-?A-\[\]-~]{1,64}@[!#-?A-\[\]-~]{1,253}")
_KID = re.compile(r"[0-9a-f]{16}")
_KIND = re.compile(r"[a-z][a-z-]{0,31}")
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)


def integer(name: str, value: object, low: int, high: int = MAX_SEQ) -> int:
    if type(value) is int and low <= value <= high:
        return value
    raise malformed(name, value)


def moment(name: str, value: object) -> datetime.datetime:
    if isinstance(value, str) and _TIMESTAMP.fullmatch(value):
        try:
            return datetime.datetime.fromisoformat(value)
        except ValueError:
            pass
    raise malformed(name, value)


def log_id(value: object) -> uuid.UUID:
    if isinstance(value, str):
        try:
            found = uuid.UUID(value)
        except ValueError:
            pass
        else:
            if str(found) == value:
                return found
    raise malformed("log", value)


def kid(value: object) -> str | None:
    if value is None or (isinstance(value, str) and _KID.fullmatch(value)):
        return value
    raise malformed("kid", value)


def kind(value: object) -> str:
    if isinstance(value, str) and _KIND.fullmatch(value):
        return value
    raise malformed("event", value)


def email(value: object) -> str:
    if isinstance(value, str) and len(value) <= MAX_EMAIL and _EMAIL.fullmatch(value):
        return value
    raise malformed("email", value)


def client_ip(value: object) -> str:
    # A zone (`%eth0`) means nothing on another machine, and may hold control characters.
    if isinstance(value, str) and "%" not in value:
        try:
            return normalise_ip(value)
        except ValueError:
            pass
    raise malformed("client_ip", value)


def client_port(value: object) -> int:
    return integer("client_port", value, 0, 65535)


def malformed(name: str, value: object) -> DatagramError:
    return DatagramError("malformed", f"{name}: {short(value)} is not what docs/protocol.md says")


def short(value: object) -> str:
    """Return an untrusted value for a message: escaped and short."""
    if isinstance(value, (dict, list)):
        # Not its text: ascii() of a deeply nested one may exhaust the stack.
        return "an object" if isinstance(value, dict) else "an array"
    text = ascii(value)
    return text if len(text) <= 40 else text[:37] + "..."
