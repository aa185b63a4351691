"""The reference page of the API, from its OpenAPI document, as Markdown."""

from __future__ import annotations

import http
import json
from collections.abc import Sequence
from typing import Any

_METHODS = ("get", "post", "put", "patch", "delete")


def api_page(document: dict[str, Any]) -> str:
    """Return the page of all operations and shapes."""
    page = [
        "# API",
        "",
        f"Version {document['info']['version']}, as `GET /api/openapi.json` describes it.",
        "",
        document["info"]["description"],
    ]
    for tag in document["tags"]:
        page += [f"## {tag['name'].capitalize()}", "", tag["description"], ""]
        for path, methods in document["paths"].items():
            for method in _METHODS:
                operation = methods.get(method)
                if operation is not None and tag["name"] in operation["tags"]:
                    shared = methods.get("parameters", [])
                    page += _operation(document, method, path, operation, shared)
    page += ["## Shapes", ""]
    for name, schema in document["components"]["schemas"].items():
        page += _shape(name, schema)
    return "\n".join(page)


def _operation(
    document: dict[str, Any],
    method: str,
    path: str,
    operation: dict[str, Any],
    shared: list[dict[str, Any]],
) -> list[str]:
    page = [f"### {method.upper()} {path}", "", operation["summary"], ""]
    if "description" in operation:
        page += [operation["description"], ""]
    parameters = [_resolve(document, each) for each in shared + operation.get("parameters", [])]
    if parameters:
        page += _table(
            ("parameter", "in", "values", "meaning"),
            [
                (f"`{each['name']}`", each["in"], _values(each["schema"]), each["description"])
                for each in parameters
            ],
        )
    rows = []
    for status, answer in operation["responses"].items():
        answer = _resolve(document, answer)
        bodies = [
            f"`{media}`: {_values(body['schema'])}"
            for media, body in answer.get("content", {}).items()
        ]
        headers = [f"`{name}`" for name in answer.get("headers", {}) if name != "X-Request-ID"]
        phrase = http.HTTPStatus(int(status)).phrase
        rows.append(
            (
                f"{status} {phrase}",
                answer["description"],
                ", ".join(bodies) or "none",
                ", ".join(headers),
            )
        )
    return page + _table(("answer", "", "body", "headers"), rows)


def _shape(name: str, schema: dict[str, Any]) -> list[str]:
    page = [f"### {name}", "", schema.get("description", ""), ""]
    if "properties" not in schema:
        return [*page, f"{_values(schema)[0].upper()}{_values(schema)[1:]}.", ""]
    rows = [
        (
            f"`{member}`",
            _values(inner),
            "always" if member in schema["required"] else "",
            inner.get("description", ""),
        )
        for member, inner in schema["properties"].items()
    ]
    return page + _table(("member", "values", "there", "meaning"), rows)


def _values(schema: dict[str, Any]) -> str:
    """Return the values that a schema allows, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "anyOf" in schema:
        return " or ".join(_values(each) for each in schema["anyOf"])
    given = schema.get("type", "anything")
    kinds: list[str] = given if isinstance(given, list) else [given]
    words = " or ".join({"integer": "whole number"}.get(kind, kind) for kind in kinds)
    if "items" in schema:
        most = f", at most {schema['maxItems']}" if "maxItems" in schema else ""
        return f"list of {_values(schema['items'])}{most}"
    if "format" in schema:
        words += f" ({schema['format']})"
    if "minimum" in schema and "maximum" in schema:
        words += f", {schema['minimum']} to {schema['maximum']}"
    if "maxLength" in schema:
        words += f", up to {schema['maxLength']} characters"
    if "pattern" in schema:
        words += f", as `{schema['pattern']}`"
    if "default" in schema:
        words += f"; `{json.dumps(schema['default'])}` if not given"
    if "examples" in schema:
        words += f", such as {', '.join(f'`{each}`' for each in schema['examples'])}"
    return words


def _resolve(document: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in part:
        found: Any = document
        for step in part["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        part = found
    return part


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *rows]
    return [
        *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines),
        "",
    ]
