"""Load the settings from config.yaml and the environment. Opens no other file.

The later one wins: the default, config.yaml, the platforms' `PORT` and
`DATABASE_URL`, `TORNADO_STATUS_SECTION__KEY`. Every error is one line that names the place and the
key; all of them are reported at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tornado_status.config.error_messages import Origins, describe
from tornado_status.config.settings import ENVIRONMENT_PREFIX, Settings
from tornado_status.config.strict_yaml import parse_json, parse_yaml
from tornado_status.errors import ConfigError

PLATFORM_VARIABLES = {"PORT": ("server", "port"), "DATABASE_URL": ("database", "url")}
DEFAULT_FILE = Path("config.yaml")
DEFAULT = "default"  # the origin of a setting without a value in the file and the environment


def find_file(given: Path | None) -> Path | None:
    """Return the file to read: the given one, else config.yaml in the current folder, else None."""
    return given or (DEFAULT_FILE if os.path.lexists(DEFAULT_FILE) else None)


def load(path: Path | None, environment: Mapping[str, str]) -> Settings:
    """Read `path`, if there is one, lay the environment over it, and validate.

    Relative paths in the result are relative to the folder of `path`, without one to the current
    folder. Raises `ConfigError`.
    """
    found = Origins(path)
    values = {} if path is None else _read_yaml(path, found)
    for name, keys, value in _variables(environment):
        _overlay(values, name, keys, value)
        found.add_variable(tuple(keys), name)
    for section in Settings.model_fields:
        if values.get(section) is None:  # left out, or a heading with nothing below it
            values[section] = [] if section == "alerts" else {}
    try:
        directory = (path or DEFAULT_FILE).absolute().parent
        return Settings.model_validate(values, context={"directory": directory})
    except ValidationError as error:
        raise ConfigError(describe(error, Settings, found, ENVIRONMENT_PREFIX)) from error


def origins(path: Path | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Return where each setting comes from, by `section.key`, or `section` without keys.

    An origin is `path` or the name of a variable; other keys have their default. Raises
    `ConfigError`.
    """
    found: dict[str, str] = {}

    def add(section: str, value: object, origin: str) -> None:
        keys = [f"{section}.{key}" for key in value] if isinstance(value, dict) else [section]
        found.update(dict.fromkeys(keys, origin))

    for section, value in ({} if path is None else _read_yaml(path)).items():
        add(str(section), value, str(path))
    for name, (section, *keys), value in _variables(environment):
        if keys:
            found[f"{section}.{keys[0]}"] = name
            continue
        for known in [each for each in found if each.partition(".")[0] == section]:
            del found[known]  # the section is replaced as a whole
        add(section, value, name)
    return found


def _variables(environment: Mapping[str, str]) -> Iterator[tuple[str, list[str], object]]:
    """Yield name, keys and value of each variable that is a setting; the later one wins."""
    for name, (section, key) in PLATFORM_VARIABLES.items():
        if environment.get(name):
            yield name, [section, key], environment[name]
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX):
            keys = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            yield name, keys, _environment_value(name, environment[name])


def _read_yaml(path: Path, found: Origins | None = None) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text") from error
    try:
        values, node = parse_yaml(text)
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{where}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections such as 'server:', got a {_kind(values)}")
    if found is not None:
        found.add_file(node)
    return values


def _environment_value(name: str, text: str) -> object:
    if not text.startswith(("[", "{")):
        return text
    try:
        return parse_json(text)
    except ValueError as error:
        raise ConfigError(f"{name}: expected JSON: {error}") from error


def _overlay(values: dict[str, Any], name: str, keys: list[str], value: object) -> None:
    section = values
    for key in keys[:-1]:
        inner = section.get(key)
        if inner is None:
            inner = section[key] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{name}: {key} is not a section")
        section = inner
    section[keys[-1]] = value


def _kind(value: object) -> str:
    return "list" if isinstance(value, list) else type(value).__name__
