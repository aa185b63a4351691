"""Comparing answers, messages and routes with the API's description."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from tornado.routing import PathMatches, Rule
from tornado.web import Application, RequestHandler

from tests.support.harness import Answer
from tornado_status.api import make_application
from tornado_status.api.handler import METHODS

# The board: served on the same port, and no part of the API.
PAGES = re.compile(r"/|/board(/.*)?")

Operation = tuple[str, str]  # the method, and the path as the document writes it


def operations(document: dict[str, Any]) -> dict[Operation, dict[str, Any]]:
    """Return every operation of the document."""
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method.upper() in METHODS
    }


def served(application: Application) -> set[Operation]:
    """Return the operations of the routes, without the pages. Parameters are written `{}`."""
    found = set()
    for rule in application.wildcard_router.rules:
        for path in _paths(rule):
            handler = rule.target
            assert isinstance(handler, type) and issubclass(handler, RequestHandler)
            found |= {
                (method, path)
                for method in METHODS
                if getattr(handler, method.lower()) is not getattr(RequestHandler, method.lower())
            }
    return found


def _paths(rule: Rule) -> Iterator[str]:
    assert isinstance(rule.matcher, PathMatches)
    pattern = rule.matcher.regex.pattern.removesuffix("$")
    if PAGES.fullmatch(pattern):
        return
    # One path for each word of an alternative, and a parameter for anything else in brackets.
    parts = re.split(r"(\([^()]*\))", pattern)
    choices = [
        part[1:-1].split("|")
        if re.fullmatch(r"\([a-z|]+\)", part)
        else ["{}" if part.startswith("(") else re.sub(r"\\(.)", r"\1", part)]
        for part in parts
    ]
    for chosen in itertools.product(*choices):
        yield "".join(chosen)


def routes() -> Application:
    """Return the real application's routes, with stubs for its parts."""

    class Nothing:
        def __getattr__(self, name: str) -> Nothing:
            return self

    needed = inspect.signature(make_application).parameters
    nothing: Any = Nothing()
    return make_application(*(nothing for _ in needed))


def differences(application: Application, document: dict[str, Any]) -> list[str]:
    """Return a sentence for each operation that is only served or only described."""
    described = {(method, re.sub(r"\{\w+\}", "{}", path)) for method, path in operations(document)}
    exist = served(application)
    return [
        f"{method} {path} is served and not described: add it to tornado_status/api/openapi.yaml"
        for method, path in sorted(exist - described)
    ] + [
        f"{method} {path} is described in tornado_status/api/openapi.yaml and not served"
        for method, path in sorted(described - exist)
    ]


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    """Return a validator of one of the document's schemas that refuses undescribed members.

    The document allows them, because clients ignore them; the server must not send any.
    """
    components = json.loads(json.dumps(document["components"]))
    for part in _nested([components.get("schemas"), schema := json.loads(json.dumps(schema))]):
        if "properties" in part:
            part.setdefault("additionalProperties", False)
    return Draft202012Validator(
        {**schema, "components": components}, format_checker=FormatChecker()
    )


def _nested(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
    inner: Iterable[Any] = part.values() if isinstance(part, dict) else part
    if isinstance(part, dict | list):
        for each in inner:
            yield from _nested(each)


def resolved(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Return the target of a `$ref` of the document; anything else as it is."""
    while "$ref" in part:
        found: Any = document
        for step in part["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        part = found
    return part


def faults(document: dict[str, Any], operation: Operation, answer: Answer) -> list[str]:
    """Return the differences between an answer and its description."""
    described = operations(document)[operation]["responses"].get(str(answer.status))
    if described is None:
        return [f"a status of {answer.status}"]
    described = resolved(document, described)
    found = []
    for name, header in described.get("headers", {}).items():
        header = resolved(document, header)
        text = answer.headers[name]
        if text is None:
            found += [f"no {name}"] if header.get("required") else []
            continue
        value = int(text) if header["schema"].get("type") == "integer" else text
        found += [
            f"{name}: {error.message}"
            for error in validator(document, header["schema"]).iter_errors(value)
        ]
    content = described.get("content")
    media = (answer.headers["Content-Type"] or "").partition(";")[0]
    if not content:
        return found + ([f"a body of type {media}"] if answer.body else [])
    if media not in content:
        return [*found, f"the type {media!r}"]
    body = answer.json if media.endswith("json") and "ndjson" not in media else answer.body.decode()
    schema = content[media]["schema"]
    return found + [
        f"{error.json_path}: {error.message}"
        for error in validator(document, schema).iter_errors(body)
    ]
