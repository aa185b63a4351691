"""The shapes of what goes out, as JSON Schema (2020-12): for the API's description. Pure.

Later versions may add members, states and kinds of events: nothing here forbids more.
"""

from __future__ import annotations

from typing import Any

from tornado_status.model.presence import State
from tornado_status.model.records import EventKind
from tornado_status.wire import datagram

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """Return a reference to the schema of this name."""
    return {"$ref": f"#/components/schemas/{name}"}


def _number(description: str, low: int = 1, high: int = datagram.MAX_SEQ) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high, "description": description}


def _shape(description: str, properties: dict[str, Schema], *optional: str) -> Schema:
    return {
        "type": "object",
        "description": description,
        "required": [name for name in properties if name not in optional],
        "properties": properties,
    }


def _list(item: str, limit: int | None = None) -> Schema:
    found: Schema = {"type": "array", "items": ref(item)}
    return found if limit is None else {**found, "maxItems": limit}


def _next(what: str) -> Schema:
    return {
        "type": ["string", "null"],
        "description": f"The path of the following page{what}; null on the last.",
    }


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_ADDRESS: dict[str, Schema] = {
    "client_ip": {
        "description": "The client's address; IPv4 is never written as `::ffff:`.",
        "anyOf": [{"type": "string", "format": "ipv4"}, {"type": "string", "format": "ipv6"}],
    },
    "client_port": _number("The client's TCP port.", 0, 65535),
}

_EVENT: dict[str, Schema] = {
    "seq": _number("The entry's number: gapless and in commit order."),
    "event": {
        "type": "string",
        "pattern": "^[a-z][a-z-]{0,31}$",
        "examples": [str(kind) for kind in EventKind],
        "description": "What it says of the user. Later versions add kinds.",
    },
    "email": ref("Email"),
    "last_seen": ref("Time"),
    **_ADDRESS,
    "at": {**ref("Time"), "description": "When an entry that is no check-in was committed."},
}
_NO_CHECK_IN = ("last_seen", "client_ip", "client_port")  # may be missing where there is `at`
_EITHER = [{"required": list(_NO_CHECK_IN)}, {"required": ["at"]}]

_CERTIFICATE: dict[str, Schema] = {
    "issuer": {"type": "string", "description": "The certificate's issuer."},
    "serial": {"type": "string", "description": "The certificate's serial number."},
}

SCHEMAS: dict[str, Schema] = {
    "Email": {
        "type": "string",
        "minLength": 3,
        "maxLength": datagram.MAX_EMAIL,
        "pattern": "^[^@\\s]+@[^@\\s]+$",
        "description": "An address in canonical form: lower case, the domain in ASCII.",
    },
    "Time": {
        "type": "string",
        "format": "date-time",
        "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{6}Z$",
        "description": "RFC 3339 in UTC, with microseconds.",
    },
    "LogId": {
        "type": "string",
        "format": "uuid",
        "description": "The log that the numbers belong to.",
    },
    "Head": _number("The newest number there is; 0 before the first.", 0),
    "Event": {
        **_shape("An entry of the log.", _EVENT, *_NO_CHECK_IN, "at"),
        "oneOf": _EITHER,
    },
    "HistoryEntry": {
        **_shape(
            "An entry of one user's history; a check-in has its certificate's names.",
            {**_EVENT, **_CERTIFICATE},
            *(*_NO_CHECK_IN, "at", "issuer", "serial"),
        ),
        "oneOf": _EITHER,
        "dependentRequired": {"issuer": ["serial"], "serial": ["issuer"]},
    },
    "Device": _shape(
        "A certificate that a user was seen with.",
        {**_CERTIFICATE, "last_seen": ref("Time"), **_ADDRESS},
    ),
    "Record": _shape(
        "What is known of one user.",
        {
            "email": ref("Email"),
            "state": {
                "type": "string",
                "examples": [str(state) for state in State],
                "description": "Later versions may add states.",
            },
            "last_seen": {**_or_null(ref("Time")), "description": "null where never."},
            "first_seen": {
                **_or_null(ref("Time")),
                "description": "null where never, or the log no longer knows.",
            },
            **{name: _or_null(schema) for name, schema in _ADDRESS.items()},
            "seq": _number("The number of the user's newest entry in the log."),
            "devices": {
                **_list("Device"),
                "description": "In the record of one user: the newest first, at most nine.",
            },
        },
        "devices",
    ),
    "UserPage": _shape(
        "A page of records, in order of the e-mail. `head` was read before the records.",
        {
            "log": ref("LogId"),
            "head": ref("Head"),
            "users": _list("Record"),
            "next": _next(""),
        },
    ),
    "EventPage": _shape(
        "A page of the log, in order and without a gap.",
        {"log": ref("LogId"), "head": ref("Head"), "events": _list("Event")},
    ),
    "HistoryPage": _shape(
        "A page of one user's history, the newest entry first.",
        {
            "email": {"type": "string", "description": "The address that was asked for."},
            "events": _list("HistoryEntry"),
            "next": _next(", of older entries"),
        },
    ),
    "Announcers": _shape(
        "Who signs datagrams, did in the last hour, or soon will.",
        {
            "log": ref("LogId"),
            "announcers": {
                "type": "array",
                "items": {
                    "type": "string",
                    "pattern": "^-----BEGIN CERTIFICATE-----",
                    "description": "A certificate in PEM, its intermediate CAs behind it.",
                },
            },
        },
    ),
    "Problem": _shape(
        "An error (RFC 9457).",
        {
            "type": {"type": "string", "const": "about:blank"},
            "title": {"type": "string", "description": "The phrase of the status."},
            "status": _number("The HTTP status.", 400, 599),
            "detail": {"type": "string", "description": "A sentence that says what is wrong."},
        },
        "detail",
    ),
}
