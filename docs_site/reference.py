"""Reference pages from what the code itself says: settings and command lines, as Markdown."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import certs_gen.cli
import clients.cli
import listeners.options
import tornado_status.cli
from tornado_status.config import ENVIRONMENT_PREFIX, Settings

# As a user calls them; the same programs are modules for `python -m`.
PROGRAMS = {
    "tornado-status": ("tornado_status", tornado_status.cli.make_parser),
    "status-listener": ("listeners", listeners.options.make_parser),
    "status-client": ("clients", clients.cli._parser),
    "status-certs": ("certs_gen", lambda: certs_gen.cli._parser("status-certs")),
}

# Pydantic writes a limit behind a validator under its own name, another under JSON schema's.
_LIMITS = {
    **{"ge": "from", "minimum": "from", "gt": "above", "exclusiveMinimum": "above"},
    **{"le": "to", "maximum": "to", "lt": "below", "exclusiveMaximum": "below"},
}

_SECTION = re.compile(r"(\w+):\s*(?:#\s*(.*))?$")
_KEY = re.compile(r"  (\w+):\s*(.*?)\s*(?:\s#\s*(.*))?$")


@dataclass(frozen=True, slots=True)
class Key:
    """One setting as config.yaml tells of it: what stands above it and what behind it."""

    section: str
    name: str
    above: tuple[str, ...]
    behind: str


def config_page(text: str) -> str:
    """Return the page of all settings, from the text of config.yaml and the settings' model."""
    opening, sections, closing = _read(text)
    schema = Settings.model_json_schema()
    defaults = Settings().model_dump(mode="json")
    page = ["# Settings", "", *(line.replace("this file", "config.yaml") for line in opening), ""]
    for section, (remark, keys) in sections.items():
        page += [f"## {section}", ""]
        if remark:
            page += [f"{remark[0].upper()}{remark[1:]}.", ""]
        page += ["| key | values | default | meaning |", "|---|---|---|---|"]
        properties = _resolve(schema, schema["properties"][section])["properties"]
        for key in keys:
            values = _values(schema, properties[key.name])
            if key.name.endswith("_s"):
                values = _durations(values)
            default = json.dumps(defaults[section][key.name], ensure_ascii=False)
            cells = (f"`{key.name}`", values, f"`{default}`", _meaning(key))
            page.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        for key in keys:
            page += _members(schema, properties[key.name], key.name)
        example = f"{ENVIRONMENT_PREFIX}{section}__{keys[0].name}".upper()
        page += ["", f"From the environment: `{example}` and so on.", ""]
    return "\n".join([*page, *closing, ""])


def cli_page() -> str:
    """Return the page of all programs, commands and options, as `--help` tells of them."""
    page = [
        "# Command lines",
        "",
        "What each program says when it is called with `--help`. In a checkout the same are",
        "`.venv/bin/python -m tornado_status`, `listeners`, `clients` and `certs_gen`.",
        "",
    ]
    with _columns(90):
        for program, (module, make_parser) in PROGRAMS.items():
            parser = make_parser()
            parser.prog = program
            page += [f"## {program}", "", f"Also `python -m {module}`.", "", *_help(parser)]
            for name, command in sorted(_commands(parser).items()):
                command.prog = f"{program} {name}"
                page += [f"### {program} {name}", "", *_help(command)]
    return "\n".join(page)


def _read(text: str) -> tuple[list[str], dict[str, tuple[str, list[Key]]], list[str]]:
    """Return what stands before the first section, the sections, and what stands behind them."""
    opening: list[str] = []
    sections: dict[str, tuple[str, list[Key]]] = {}
    remarks: list[str] = []
    above: list[str] = []
    section = ""
    for line in text.splitlines():
        if line.startswith("#"):
            (remarks if sections else opening).append(line.removeprefix("#").strip())
        elif match := _SECTION.match(line):
            section = match[1]
            sections[section] = (match[2] or "", [])
        elif line.startswith("  #"):
            above.append(line.strip().removeprefix("#").removeprefix(" "))
        elif match := _KEY.match(line):
            sections[section][1].append(Key(section, match[1], tuple(above), match[3] or ""))
            above = []
    return _prose(opening), sections, _prose(remarks)


def _prose(lines: list[str]) -> list[str]:
    """Return lines of comments as Markdown: what is indented, or looks like a setting, as code."""
    found: list[str] = []
    for line in lines:
        if re.match(r"[A-Z_]+=", line.strip()):
            found += ["", f"    {line.strip()}", ""]
        else:
            found.append(re.sub(r"\b([A-Z]+_[A-Z_]+|[a-z]+\.[a-z_]+)\b", r"`\1`", line))
    return found


def _meaning(key: Key) -> str:
    parts = [f"`{line.strip()}`" if line.startswith(" ") else line for line in key.above]
    if key.behind:
        parts.append(key.behind)
    return " ".join(parts)


def _members(schema: dict[str, Any], node: dict[str, Any], name: str) -> list[str]:
    """Return the table of what an entry of a list of maps may have; nothing for other settings."""
    items = node.get("items", {})
    page: list[str] = []
    for each in items.get("oneOf", [items]):  # several, where entries are of several kinds
        entry = _resolve(schema, each)
        if "properties" not in entry:
            continue
        page += ["", f"Each of the `{name}`:" if not page else "Or:", ""]
        page += ["| key | values | default |", "|---|---|---|"]
        for key, member in entry["properties"].items():
            given = "default" in member
            default = f"`{json.dumps(member['default'])}`" if given else "must be given"
            page.append(f"| `{key}` | {_values(schema, member)} | {default} |")
    return page


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in node:
        found: dict[str, Any] = schema["$defs"][node["$ref"].rpartition("/")[2]]
        return found
    return node


def _values(schema: dict[str, Any], node: dict[str, Any]) -> str:
    """Return what a setting may be, in words."""
    node = _resolve(schema, node)
    if "anyOf" in node:
        return " or ".join(_values(schema, each) for each in node["anyOf"])
    if "oneOf" in node:
        return "map"
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    kind: str = {
        "object": "map",
        "array": "list",
        "integer": "whole number",
        "null": "nothing",
    }.get(node.get("type", ""), node.get("type", "any"))
    if node.get("format") == "path":
        kind = "path"
    limits = [
        f"{words} {node[name]:g}" for name, words in _LIMITS.items() if node.get(name) is not None
    ]
    if limits:
        return f"{kind} {' '.join(limits)}"
    if kind == "list" and "items" in node:
        return f"list of {_values(schema, node['items'])}s"
    return kind


def _durations(values: str) -> str:
    """Return values of a key in seconds with that unit, and long limits in days."""
    days = re.sub(r"[0-9.]+e\+[0-9]+", lambda match: f"{float(match[0]) / 86400:.0f} days", values)
    return days.replace("number", "seconds", 1)


def _help(parser: argparse.ArgumentParser) -> list[str]:
    return ["```text", parser.format_help().rstrip(), "```", ""]


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


@contextmanager
def _columns(width: int) -> Iterator[None]:
    """Make argparse as wide as the page, whatever the terminal is."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
