"""Reference pages from what the code itself says: settings and command lines, as Markdown."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import certs_gen.cli
import clients.cli
import listeners.options
import tornado_status.cli
from tornado_status.config.loader import PLATFORM_VARIABLES
from tornado_status.config.settings import ENVIRONMENT_PREFIX, Settings

# Each program by the name of its console script, with its module.
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

_SECTION = re.compile(r"(\w+):\s*([^#]*?)\s*(?:#\s*(.*))?$")
_KEY = re.compile(r"  (\w+):\s*([^#]*?)\s*(?:#\s*(.*))?$")
_MEMBER = re.compile(r"  (?:- |  )(\w+): (.*?)\s+# (.*)$")
_CODE = re.compile(r'"[^" ]+"|docs/\w+\.md|[A-Z]+_[A-Z_]+|[a-z_]+\.[a-z_]+|\[\]|\bnull\b')

HEAD = ("key", "meaning", "values", "default")


@dataclass(frozen=True, slots=True)
class Key:
    """One key as config.yaml describes it. A section that is a list is a key without a name."""

    section: str
    name: str
    default: str
    meaning: str
    above: tuple[str, ...] = ()  # the comments above it
    below: list[str] = field(default_factory=list)  # the lines of its list

    @property
    def path(self) -> str:
        return ".".join(filter(None, (self.section, self.name)))

    @property
    def variable(self) -> str:
        return f"{ENVIRONMENT_PREFIX}{self.path.replace('.', '__')}".upper()


@dataclass(frozen=True, slots=True)
class Member:
    """One member of the entries of a list, as the example in a comment describes it."""

    name: str
    default: str
    meaning: str


def config_page(text: str) -> str:
    """Return the page of all settings, from the text of config.yaml and the settings' model."""
    opening, sections = read(text)
    schema = Settings.model_json_schema()
    page = [
        "# Settings",
        "",
        "This reference lists each key of `config.yaml`. An unknown key is an error.",
        *_prose(opening[1:]),
        "",
        '<div class="settings" markdown>',
        "",
    ]
    for section, (remark, keys) in sections.items():
        node = schema["properties"][section]
        page += [f"## {section}", ""]
        if remark:
            page += [f"{_text(f'{remark[0].upper()}{remark[1:]}')}.", ""]
        if not keys[0].name:
            default = f"The default is `{keys[0].default}`: {keys[0].meaning}."
            page += [*_entries(keys[0], schema, node), default, ""]
            continue
        properties = _resolve(schema, node)["properties"]
        page += _table(HEAD, [_row(key, schema, properties[key.name]) for key in keys])
        for key in keys:
            if key.below:
                page += [f"### {key.path}", "", *_entries(key, schema, properties[key.name])]
                page += ["The default:", "", "```yaml", f"{key.name}:", *key.below, "```", ""]
    return "\n".join([*page, *_variables([key for _, keys in sections.values() for key in keys])])


def _row(key: Key, schema: dict[str, Any], node: dict[str, Any]) -> tuple[str, ...]:
    default = f"`{key.default}`" if key.default else f"[below](#{key.section}{key.name})"
    anchor = f"`{key.name}`{{#{key.path}}}"
    return anchor, _text(key.meaning), _values_of(key.name, schema, node), default


def _entries(key: Key, schema: dict[str, Any], node: dict[str, Any]) -> list[str]:
    """Return the comments above a list, with a table for each example of an entry."""
    page = []
    kinds = iter(node["items"].get("oneOf", [node["items"]]))
    for prose, members in examples(key):
        page += [*_prose(prose), ""]
        if members:
            properties = _resolve(schema, next(kinds))["properties"]
            rows = [_member(member, schema, properties[member.name]) for member in members]
            page += _table(HEAD, rows)
    return page


def _member(member: Member, schema: dict[str, Any], node: dict[str, Any]) -> tuple[str, ...]:
    default = "required"
    if "default" in node:
        default = "`null`" if node["default"] is None else f"`{member.default}`"
    meaning = _text(member.meaning.removesuffix("; required"))
    return f"`{member.name}`", meaning, _values_of(member.name, schema, node), default


def examples(key: Key) -> list[tuple[list[str], list[Member]]]:
    """Return the comments above a list, as pairs of some text and the example of an entry."""
    found: list[tuple[list[str], list[Member]]] = [([], [])]
    for line in key.above:
        prose, members = found[-1]
        if match := _MEMBER.match(line):
            members.append(Member(*match.groups()))
        elif members:
            found.append(([line], []))
        else:
            prose.append(line)
    return found


def _variables(keys: list[Key]) -> list[str]:
    """Return the section of environment variables, each once, and the page's end."""
    platform = {name: ".".join(path) for name, path in PLATFORM_VARIABLES.items()}
    named = platform | {key.variable: key.path for key in keys}
    rows = [(f"`{name}`", f"[{path}](#{path})") for name, path in named.items()]
    return [
        "## Environment variables",
        "",
        "An environment variable overrides the key beside it.",
        "",
        *_table(("variable", "key"), rows),
        "</div>",
        "",
    ]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *rows]
    return [
        *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines),
        "",
    ]


def cli_page() -> str:
    """Return the page of all programs, commands and options, as `--help` tells of them."""
    page = [
        "# Command lines",
        "",
        "This reference shows the `--help` of each program and of its commands.",
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


def read(text: str) -> tuple[list[str], dict[str, tuple[str, list[Key]]]]:
    """Return the comments at the beginning of config.yaml, and each section's remark and keys."""
    opening: list[str] = []
    sections: dict[str, tuple[str, list[Key]]] = {}
    above: list[str] = []
    section = ""
    for line in text.splitlines():
        if not line and not sections and above:
            opening, above = above, []
        elif line.lstrip().startswith("#"):
            above.append(line.lstrip()[1:].removeprefix(" "))
        elif match := _SECTION.match(line):
            section, default, remark = match[1], match[2], match[3] or ""
            one_key = [Key(section, "", default, remark, tuple(above))] if default else []
            sections[section] = ("" if default else remark, one_key)
            above = []
        elif match := _KEY.match(line):
            name, default, meaning = match[1], match[2], match[3] or ""
            sections[section][1].append(Key(section, name, default, meaning, tuple(above)))
            above = []
        elif line:
            sections[section][1][-1].below.append(line)
    return opening, sections


def _prose(lines: list[str]) -> list[str]:
    """Return lines of comments as Markdown, those that are indented as code."""
    found: list[str] = []
    code = False
    for line in lines:
        if line.startswith(" ") != code:
            found.append("")
            code = not code
        found.append(f"    {line.strip()}" if code else _text(line))
    return found


def _text(line: str) -> str:
    """Return a line with links to the pages that it names, and with names and values as code."""

    def mark(match: re.Match[str]) -> str:
        word = match[0]
        return f"[{word[5:-3]}]({word})" if word.startswith("docs/") else f"`{word}`"

    return _CODE.sub(mark, line)


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in node:
        found: dict[str, Any] = schema["$defs"][node["$ref"].rpartition("/")[2]]
        return found
    return node


def _values_of(name: str, schema: dict[str, Any], node: dict[str, Any]) -> str:
    """Return what the setting of this name may be, in words."""
    values = _values(schema, node)
    return _durations(values) if name.endswith("_s") or name == "retention" else values


def _values(schema: dict[str, Any], node: dict[str, Any]) -> str:
    """Return what a schema allows, in words."""
    node = _resolve(schema, node)
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_values(schema, each) for each in node["anyOf"]))
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
        "null": "`null`",
    }.get(node.get("type", ""), node.get("type", "any"))
    if node.get("format") == "path":
        kind = "path"
    limits = [
        f"{words} {node[name]:g}" for name, words in _LIMITS.items() if node.get(name) is not None
    ]
    if limits:
        return f"{kind} {' '.join(limits)}"
    if kind == "list" and "items" in node:
        inner = _values(schema, node["items"])
        return f"list of {inner}" if inner.endswith("`") else f"list of {inner}s"
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
