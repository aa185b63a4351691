"""/api/openapi.json: what the API is, as OpenAPI 3.1.

Written by hand beside the handlers and held against them by a test: every route and method, and
every status that each can answer. Its bounds are the handlers' own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from typing import Any

from tornado_status import __version__
from tornado_status.api.live import event_filter
from tornado_status.api.problem import CONTENT_TYPE, MAX_BODY, Handler
from tornado_status.api.schemas import SCHEMAS, Schema, ref
from tornado_status.api.users import DEFAULT_LIMIT, MAX_EVENTS, MAX_HISTORY, MAX_USERS
from tornado_status.wire import datagram

Object = dict[str, Any]

ABOUT = f"""Checking in with a client certificate, and reading who is here.

The identity is the certificate's common name, an e-mail address. Readers are those whom the
server's setting `access.readers` names; everybody else may read what is their own.

Answers have an `X-Request-ID`, the request's own or a new one, but for those to plain check-ins.
Errors are `application/problem+json` (RFC 9457). Unknown parameters are ignored, and so
is a body of up to {MAX_BODY} bytes. Later versions add members, states and kinds of events: ignore
what you do not know.

The messages of the live stream and the datagrams are described in AsyncAPI.
"""

# Every answer's, but for those to whom nothing is ever told.
PROBLEMS: dict[int, tuple[str, str]] = {
    400: ("BadRequest", "A parameter or the certificate is not what it should be."),
    403: ("Forbidden", "Not for the owner of this certificate, or sent by another web site."),
    404: ("NotFound", "No check-in of this user is recorded."),
    410: ("Gone", "The log does not reach back that far, or not that far ahead: begin again."),
    413: ("TooLarge", f"The body has more than {MAX_BODY} bytes."),
    426: ("UpgradeRequired", "No WebSocket handshake (RFC 6455)."),
    429: ("TooManyRequests", "More check-ins than the server's settings allow."),
    503: ("Unavailable", "The database is away or overloaded, or all places are taken."),
    505: ("OtherVersion", "The stream needs HTTP/1.1."),
}
_HEADERS: dict[int, Object] = {
    426: {"Upgrade": {"schema": {"const": "websocket"}}},
    429: {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}},
    503: {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}},
}
ALWAYS = (400, 403, 413)

TAGS = {
    "checking in": "What a client does.",
    "users": "Who is here.",
    "log": "What happened, in order.",
    "live": "What happens, as it happens.",
    "server": "What the server says of itself.",
}


def document() -> Object:
    """Return the document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tornado_status",
            "version": __version__,
            "summary": "Check in with a client certificate; read who is here.",
            "description": ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "The check-in port."}],
        "security": [{"certificate": []}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": _paths(),
        "components": {
            "securitySchemes": {
                "certificate": {
                    "type": "mutualTLS",
                    "description": "A client certificate of the CA that the server is set up with.",
                }
            },
            "schemas": SCHEMAS,
            "headers": {
                "ETag": {
                    "description": "Send it back as `If-None-Match`.",
                    "required": True,
                    "schema": {"type": "string", "pattern": '^(W/)?".+"$'},
                },
                "Link": {
                    "description": 'The following page: `<path>; rel="next"` (RFC 8288).',
                    "schema": {"type": "string", "pattern": '^</api/.+>; rel="next"$'},
                },
                "RetryAfter": {
                    "description": "Seconds.",
                    "required": True,
                    "schema": {"type": "integer", "minimum": 0},
                },
                "RequestID": {
                    "description": "Names the request in the server's log.",
                    "schema": {"type": "string", "minLength": 1, "maxLength": 128},
                },
            },
            "parameters": _PARAMETERS,
            "responses": {
                name: _answer(text, _problem_content(), _HEADERS.get(status, {}))
                for status, (name, text) in PROBLEMS.items()
            },
        },
    }


class OpenApiHandler(Handler):
    """The document, for everyone with a certificate."""

    async def get(self) -> None:
        self.write_json(_document_json())


@functools.cache
def _document_json() -> bytes:
    return json.dumps(document(), separators=(",", ":")).encode()


# ------------------------------------------------------------------------------------ operations


def _paths() -> Object:
    return {
        "/api/client": {
            **{method: _check_in(method) for method in ("post", "put", "patch")},
            "get": _read("readOwn", "users", "Your own record.", "Record", errors=(404, 503)),
        },
        "/api/users": {
            "get": _read(
                *("listUsers", "users", "Everybody's records: for readers.", "UserPage"),
                parameters=["AfterEmail", _limit(MAX_USERS)],
                is_page=True,
            )
        },
        "/api/users/{email}": {
            "parameters": [_parameter("Email")],
            "get": _read(
                *("readUser", "users", "One user's record: for readers, and for the user."),
                "Record",
                errors=(404, 503),
            ),
            "put": _administer(
                *("enrolUser", "Enrol a user."),
                answers={
                    "201": {"description": "Enrolled."},
                    "204": {"description": "Is enrolled, or has checked in, already."},
                },
                errors=(503,),
            ),
            "delete": _administer(
                *("removeUser", "Remove a user with the record; the log keeps its entries."),
                answers={"204": {"description": "Removed."}},
                errors=(404, 503),
            ),
        },
        "/api/users/{email}/history": {
            "parameters": [_parameter("Email")],
            "get": _read(
                *("readHistory", "log", "One user's part of the log, the newest first."),
                "HistoryPage",
                parameters=["Before", _limit(MAX_HISTORY)],
                is_page=True,
                text="For readers, and for the user. Empty where there is no such user.",
            ),
        },
        "/api/users/{email}/history.csv": {
            "parameters": [_parameter("Email")],
            "get": _export("exportHistoryCsv", "csv", "One user's part of the log, whole."),
        },
        "/api/users/{email}/history.jsonl": {
            "parameters": [_parameter("Email")],
            "get": _export("exportHistoryJsonLines", "jsonl", "One user's part of the log, whole."),
        },
        "/api/events": {
            "get": _read(
                *("listEvents", "log", "The log behind a number: for readers.", "EventPage"),
                parameters=["AfterEvent", _limit(MAX_EVENTS)],
                is_page=True,
                errors=(410, 503),
            )
        },
        "/api/events.csv": {"get": _export_log("exportEventsCsv", "csv")},
        "/api/events.jsonl": {"get": _export_log("exportEventsJsonLines", "jsonl")},
        "/api/announcers": {
            "get": _read(
                *("listAnnouncers", "server", "Who signs datagrams: for readers.", "Announcers"),
            )
        },
        "/api/stream": {
            "get": _follow(
                *("stream", "Events as Server-Sent Events, without an end."),
                parameters=["LastEventID"],
                answer={
                    "200": _answer(
                        "Each `data` is one JSON object: an event, a `gap` or the `position`.",
                        {"text/event-stream": {"schema": {"type": "string"}}},
                    )
                },
                errors=(503, 505),
            )
        },
        "/api/socket": {
            "get": _follow(
                *("socket", "The same over a WebSocket: each text message is one JSON object."),
                parameters=["LastEventID"],
                answer={"101": {"description": "The WebSocket is open."}},
                errors=(426, 503),
            )
        },
        "/api/openapi.json": {
            "get": _operation(
                *("readDescription", "server", "This document."),
                answers={
                    "200": _answer(
                        "OpenAPI 3.1.",
                        {"application/json": {"schema": {"type": "object"}}},
                        _ETAG,
                    ),
                    "304": _NOT_MODIFIED,
                },
                parameters=["IfNoneMatch"],
            )
        },
    }


def _operation(
    name: str,
    tag: str,
    summary: str,
    *,
    answers: Object,
    text: str = "",
    parameters: Iterable[str | Object] = (),
    errors: Iterable[int] = (),
) -> Object:
    operation: Object = {"operationId": name, "tags": [tag], "summary": summary}
    if text:
        operation["description"] = text
    named = [_parameter(each) if isinstance(each, str) else each for each in parameters]
    if named:
        operation["parameters"] = named
    operation["responses"] = answers | {
        str(status): {"$ref": f"#/components/responses/{PROBLEMS[status][0]}"}
        for status in sorted({*ALWAYS, *errors})
    }
    return operation


def _check_in(method: str) -> Object:
    return _operation(
        *(f"checkIn{'' if method == 'post' else method.title()}", "checking in"),
        "I am here.",
        text=f"Answered after the commit. `{method.upper()}` is as good as the other two methods.",
        answers={"204": {"description": "Committed."}},
        errors=(429, 503),
    )


def _administer(name: str, summary: str, *, answers: Object, errors: tuple[int, ...]) -> Object:
    text = "For admins, whom the server's setting `access.admins` names."
    return _operation(name, "users", summary, text=text, answers=answers, errors=errors)


def _read(
    name: str,
    tag: str,
    summary: str,
    shape: str,
    *,
    parameters: Iterable[str | Object] = (),
    errors: Iterable[int] = (503,),
    is_page: bool = False,
    text: str = "",
) -> Object:
    headers = {**_ETAG, "Link": {"$ref": "#/components/headers/Link"}} if is_page else _ETAG
    return _operation(
        name,
        tag,
        summary,
        text=text,
        parameters=[*parameters, "IfNoneMatch"],
        answers={
            "200": _answer(
                str(SCHEMAS[shape]["description"]),
                {"application/json": {"schema": ref(shape)}},
                headers,
            ),
            "304": _NOT_MODIFIED,
        },
        errors=errors,
    )


def _export(
    name: str,
    form: str,
    summary: str,
    *,
    text: str = "For readers, and for the user.",
    parameters: Iterable[str] = (),
    errors: Iterable[int] = (503,),
) -> Object:
    media, what = {
        "csv": ("text/csv", "CSV (RFC 4180) with a line of column names."),
        "jsonl": ("application/x-ndjson", "A line of JSON for each entry (HistoryEntry)."),
    }[form]
    disposition = {"Content-Disposition": {"required": True, "schema": {"type": "string"}}}
    return _operation(
        *(name, "log", summary),
        text=f"{text} An export that cannot be finished is cut off: it has no last chunk.",
        parameters=parameters,
        answers={"200": _answer(what, {media: {"schema": {"type": "string"}}}, disposition)},
        errors=errors,
    )


def _export_log(name: str, form: str) -> Object:
    return _export(
        *(name, form, "The log, whole or behind a number."),
        text="For readers.",
        parameters=["AfterKept"],
        errors=(410, 503),
    )


def _follow(
    name: str, summary: str, *, parameters: list[str], answer: Object, errors: tuple[int, ...]
) -> Object:
    return _operation(
        *(name, "live", summary),
        text="For readers. Everyone may follow their own events, with their address as `email`.",
        parameters=["EmailPatterns", "EventKinds", "AfterToResume", "LogToResume", *parameters],
        answers=answer,
        errors=errors,
    )


# -------------------------------------------------------------------------------------- answers


def _answer(description: str, content: Object, headers: Object | None = None) -> Object:
    return {
        "description": description,
        "headers": {"X-Request-ID": {"$ref": "#/components/headers/RequestID"}, **(headers or {})},
        "content": content,
    }


def _problem_content() -> Object:
    return {CONTENT_TYPE: {"schema": ref("Problem")}}


_ETAG: Object = {"ETag": {"$ref": "#/components/headers/ETag"}}
_NOT_MODIFIED: Object = {"description": "Nothing has changed.", "headers": _ETAG}


# ----------------------------------------------------------------------------------- parameters


def _parameter(name: str) -> Object:
    return {"$ref": f"#/components/parameters/{name}"}


def _number(low: int, high: int = datagram.MAX_SEQ, **more: Any) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high, **more}


def _limit(most: int) -> Object:
    return _query("limit", "The most entries of the page.", _number(1, most, default=DEFAULT_LIMIT))


def _query(name: str, description: str, schema: Schema) -> Object:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _several(name: str, description: str, item: Schema) -> Object:
    return _query(
        name, description, {"type": "array", "maxItems": event_filter.MAX_TERMS, "items": item}
    )


_PARAMETERS: Object = {
    "Email": {
        "name": "email",
        "in": "path",
        "required": True,
        "description": "The user's address, in upper or lower case.",
        "schema": {"type": "string", "minLength": 1, "pattern": "^[^/]+$"},
        "example": "valid_user@example.com",
    },
    "AfterEmail": _query(
        "after", "The page begins behind this address.", {"type": "string", "default": ""}
    ),
    "AfterEvent": _query("after", "The page begins behind this number.", _number(0, default=0)),
    "AfterKept": _query(
        "after", "Begin behind this number; without it, at the oldest entry.", _number(0)
    ),
    "Before": _query(
        "before", "The number of an entry of this user: the page begins before it.", _number(1)
    ),
    "EmailPatterns": _several(
        "email",
        "Only these: an address, or a pattern such as `*@ops.example.com`.",
        {"type": "string", "minLength": 1, "maxLength": event_filter.MAX_PATTERN},
    ),
    "EventKinds": _several(
        "event",
        "Only these kinds.",
        {"type": "string", "pattern": "^[a-z][a-z-]*$", "maxLength": event_filter.MAX_KIND},
    ),
    "AfterToResume": _query("after", "Resume behind this number.", _number(0)),
    "LogToResume": _query(
        "log",
        "The log that `after` belongs to.",
        {"type": "string", "format": "uuid"},
    ),
    "LastEventID": {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "As `after`, and it wins; browsers send it by themselves.",
        "schema": _number(0),
    },
    "IfNoneMatch": {
        "name": "If-None-Match",
        "in": "header",
        "description": "An `ETag`: the answer is 304 as long as nothing has changed.",
        "schema": {"type": "string"},
    },
}
