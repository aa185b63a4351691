"""Errors of the settings in words: the place, what was expected, the nearest key. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

Place = tuple[str | int, ...]  # of a value: ("announce", "targets", 0, "port")

# Errors quote the value, unless it may hold a password.
_MAY_HOLD_PASSWORD = (".url", ".secret", ".endpoint")
_MAX_SHOWN = 80  # characters of a wrong value
_MAX_DEPTH = 6  # of a value in the settings; an alias of YAML may contain itself

_EXPECTED = {
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "dict_type": "expected a section with keys below it",
    "finite_number": "expected a finite number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "greater_than": "expected more than {gt:g}",
    "greater_than_equal": "expected at least {ge:.15g}",
    "int_from_float": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_parsing_size": "expected a smaller number",
    "int_type": "expected a whole number",
    "less_than": "expected less than {lt:g}",
    "less_than_equal": "expected at most {le:.15g}",
    "literal_error": "expected {expected}",
    "missing": "missing",
    "model_attributes_type": "expected a section with keys below it",
    "model_type": "expected a section with keys below it",
    "path_type": "expected the name of a file",
    "string_type": "expected text",
    "too_short": "expected at least one",
    "tuple_type": "expected a list",
}


class Origins:
    """The origin of each value: a line of the file, or an environment variable."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lines: dict[Place, int] = {}
        self._variables: dict[Place, str] = {}

    def add_file(self, node: yaml.Node | None) -> None:
        """Note the line of each key and list entry below the root of the file."""
        if node is not None:
            self._add(node, ())

    def add_variable(self, place: Place, name: str) -> None:
        """Note that a variable sets this value, and with it all values below."""
        for known in [each for each in self._variables if each[: len(place)] == place]:
            del self._variables[known]
        self._variables[place] = name

    def variables(self, place: Place) -> list[tuple[str, Place]]:
        """Return the variables that set this value, or parts of it, and the rest of their keys."""
        for length in range(len(place), 0, -1):
            if place[:length] in self._variables:
                return [(self._variables[place[:length]], ())]
        if place in self._lines:
            return []
        return [
            (name, keys[len(place) :])
            for keys, name in self._variables.items()
            if keys[: len(place)] == place
        ]

    def of(self, place: Place) -> str:
        """Return where to look for a value, or for the section that lacks it."""
        found = self.variables(place)
        if found:
            return " and ".join(name for name, _ in found)
        for length in range(len(place), 0, -1):
            if place[:length] in self._lines:
                return f"{self._path}, line {self._lines[place[:length]]}"
        return str(self._path or "environment")

    def _add(self, node: yaml.Node, place: Place) -> None:
        if len(place) == _MAX_DEPTH:
            return
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                below = (*place, str(getattr(key, "value", "")))
                self._lines[below] = key.start_mark.line + 1
                self._add(value, below)
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                self._lines[(*place, number)] = value.start_mark.line + 1
                self._add(value, (*place, number))


def describe(error: ValidationError, model: type[BaseModel], origins: Origins, prefix: str) -> str:
    """Return all errors, a line each. `prefix` begins the names of environment variables."""
    lines = [
        _line(each, model, origins, prefix)
        for each in error.errors(include_url=False)
        if each["type"] != "default_factory_not_called"  # another error is why
    ]
    return "\n".join(dict.fromkeys(lines))


def _line(problem: Mapping[str, Any], model: type[BaseModel], origins: Origins, prefix: str) -> str:
    place: Place = problem["loc"]
    if place[:2] == ("announce", "targets") and len(place) > 3:
        place = (*place[:3], *place[4:])  # without the class that it was read as
    if problem["type"] == "invalid_key":  # a number
        place = (*place[:-1], str(place[-1]))
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        message = _unknown(place, model, origins, prefix)
    else:
        place, message = _message(problem, place, model)
    return " ".join(f"{origins.of(place)}: {_dotted(place)}: {message}".split())


def _message(problem: Mapping[str, Any], place: Place, model: type[BaseModel]) -> tuple[Place, str]:
    context = problem.get("ctx", {})
    if problem["type"] in _EXPECTED:
        message = _EXPECTED[problem["type"]].format(**context).replace("'", "")
    else:
        message = str(problem["msg"]).removeprefix("Value error, ")
        message = f"{message[0].lower()}{message[1:]}"
    value = problem["input"]
    if problem["type"] == "missing":
        return place, message
    named = re.match(r"([a-z_]+): (.+)", message)
    if named is not None and named[1] in _keys(model, place):
        return (*place, named[1]), named[2]  # a section's own check of one of its keys
    if isinstance(value, str | int | float) and not _may_hold_secret(_dotted(place), value):
        shown = repr(value)
        shown = shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."
        message = f"{message}, got {shown}"
    return place, message


def _unknown(place: Place, model: type[BaseModel], origins: Origins, prefix: str) -> str:
    key, section = str(place[-1]), place[:-1]
    known = _keys(model, section)
    if key in known:
        return "not a field of this kind of target"
    close = [(*section, each) for each in difflib.get_close_matches(key, known, n=1)]
    if not close:  # of another section, perhaps
        close = [
            (*above, key)
            for above in ((), *((name,) for name in model.model_fields))
            if key in _keys(model, above)
        ]
    variables = origins.variables(place)
    if variables and any(keys or len(place) <= 2 for _, keys in variables):
        rest = variables[0][1]
        names = [prefix + "__".join(map(str, (*each, *rest))).upper() for each in close]
    else:
        names = [_dotted(each) for each in close]
    return f"unknown key; did you mean {' or '.join(names)}?" if names else "unknown key"


def _keys(model: type[BaseModel], place: Iterable[str | int]) -> list[str]:
    """Return the keys that a section may have, of all its kinds."""
    models = [model]
    for part in place:
        if isinstance(part, int):
            continue
        fields = [each.model_fields[part] for each in models if part in each.model_fields]
        models = [inner for field in fields for inner in _models(field.annotation)]
    return list(dict.fromkeys(key for each in models for key in each.model_fields))


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _dotted(place: Iterable[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def _may_hold_secret(key: str, value: object) -> bool:
    return key.endswith(_MAY_HOLD_PASSWORD) or (key.endswith(".address") and "@" in str(value))
