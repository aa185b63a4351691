"""A strict YAML loader: no key twice, and one error, with its line, for an unreadable value."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import yaml
from yaml.constructor import ConstructorError

_TAG = "tag:yaml.org,2002:"
_UNUSABLE = re.compile("[\0\ud800-\udfff]")  # system calls refuse them, and no setting needs them
_UNUSABLE_TEXT = "expected text without NUL and unpaired surrogates"
_TOO_DEEP = "nested too deeply"


class _StrictLoader(yaml.SafeLoader):
    """Raises `yaml.MarkedYAMLError` where SafeLoader raises other errors, or the last key wins."""

    def compose_scalar_node(self, anchor: dict[str, yaml.Node]) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if _UNUSABLE.search(node.value):
            raise ConstructorError(None, None, _UNUSABLE_TEXT, node.start_mark)
        return node

    def compose_mapping_node(self, anchor: dict[str, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # which construct_mapping refuses
            if key.value in lines:
                problem = f"{key.value!r} is given twice, first on line {lines[key.value]}"
                raise ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            # As `2026-99-99`, `!!int "x"`, or a number of 5,000 digits. The value stays out of the
            # message: it may be a password.
            kind = node.tag.removeprefix(_TAG)
            problem = f"expected a valid {kind}, or text in quotation marks"
            raise ConstructorError(None, None, problem, node.start_mark) from error


def parse_yaml(text: str) -> tuple[object, yaml.Node | None]:
    """Return the value and the root node of a document. Raises `yaml.YAMLError`."""
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(node), node
    except RecursionError as error:
        raise yaml.YAMLError(_TOO_DEEP) from error


def parse_json(text: str) -> object:
    """Return the value, under the same rules. Raises `ValueError`."""
    try:
        value: object = json.loads(text, object_pairs_hook=_without_repetition)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    if any(_UNUSABLE.search(each) for each in _texts(value)):
        raise ValueError(_UNUSABLE_TEXT)
    return value


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return values


def _texts(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        yield from value
        for each in value.values():
            yield from _texts(each)
