"""docs/log-messages.md lists the events of the server's log and the warnings of a listener."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.harness import ROOT

pytestmark = pytest.mark.once

PAGE = (ROOT / "docs" / "log-messages.md").read_text("utf-8")
LEVELS = ("debug", "info", "warning", "error", "exception", "critical")
LEFT_OUT = {"suppressed", "request_id", "trace_id", "exc_info"}  # the page says so once
DYNAMIC = "ingress/refusals.py"  # hands on events of `count`, which are found where it is called
# The lines of `rejoin`, which a listener's receiver hands on as they are.
REJOINED = {"joined … on … again", "no longer in … on …: …"}

Event = tuple[str, str]  # its name and its level


def events_in(name: str, text: str) -> dict[Event, set[str]]:
    """Return the events that a module logs, with their fields."""
    found: defaultdict[Event, set[str]] = defaultdict(set)
    tree = ast.parse(text)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if not isinstance(call.func, ast.Attribute):
            continue
        method, of = call.func.attr, ast.unparse(call.func.value)
        if method in LEVELS and (re.search(r"(^|[._])log(ger)?$", of) or "get_logger()" in of):
            event, level = call.args[0], "error" if method == "exception" else method
        elif method == "count" and len(call.args) == 2 and isinstance(call.args[1], ast.Constant):
            event, level = call.args[1], level_of(call)  # Refusals.count(reason, event, ...)
        else:
            assert method != "log" or not of.endswith("log") or name.endswith(DYNAMIC), name
            continue
        where = f"{name}:{call.lineno}: an event is a constant"
        assert isinstance(event, ast.Constant) and isinstance(event.value, str), where
        found[event.value, level] |= set(fields_of(call, tree)) - LEFT_OUT
    return found


def level_of(call: ast.Call) -> str:
    """Return the level that `Refusals.count` is given."""
    given = [each.value for each in call.keywords if each.arg == "level"]
    return ast.unparse(given[0]).removeprefix("logging.").lower() if given else "info"


def fields_of(call: ast.Call, tree: ast.Module) -> Iterator[str]:
    """Yield the names of a call's fields, those in a dict that is built before it included."""
    for each in call.keywords:
        if each.arg is not None:
            if each.arg not in ("level", "per"):
                yield each.arg
            continue
        places: Iterable[ast.AST] = [each.value]
        if isinstance(each.value, ast.Name):
            places = assigned(each.value.id, enclosing(call, tree))
        for node in (inner for place in places for inner in ast.walk(place)):
            keys = node.keys if isinstance(node, ast.Dict) else []
            if isinstance(node, ast.Subscript):
                keys = [node.slice]
            for key in keys:
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield key.value


def enclosing(call: ast.Call, tree: ast.Module) -> ast.AST:
    """Return the innermost function that contains a call."""
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any(inner is call for inner in ast.walk(node))
    ]
    return functions[-1]


def assigned(name: str, function: ast.AST) -> Iterator[ast.AST]:
    """Yield what a function assigns to a name, or to a key of it."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and target.id == name:
                    yield node.value
                elif isinstance(target, ast.Subscript) and ast.unparse(target.value) == name:
                    yield target


def warnings_in(text: str) -> set[str]:
    """Return the warnings of a listener's module, `…` for what is variable."""
    found = set()
    for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("warn", "_warn"):
            found.add(template(call.args[0]))
        elif isinstance(call.func, ast.Attribute) and call.func.attr == "warn_limited":
            found.add(f"{template(call.args[0])}: {template(call.args[2])}")
    return {sentence for sentence in found if re.search(r"\w", sentence)}  # others are handed on


def template(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    return str(node.value) if isinstance(node, ast.Constant) else "…"


def sources(package: str) -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        yield path, path.read_text("utf-8")


def documented_events(page: str) -> dict[Event, set[str]]:
    """Return the events of the page, with their fields. Each has one row of five cells."""
    rows = re.findall(
        rf"(?m)^\| `([^`]+)` \| ({'|'.join(LEVELS)}) \| ([^|]*)\| [^|]+ \| [^|]+ \|$", page
    )
    assert len({(event, level) for event, level, _ in rows}) == len(rows), "an event twice"
    return {(event, level): set(re.findall(r"`(\w+)`", fields)) for event, level, fields in rows}


def documented_warnings(page: str) -> set[str]:
    section = page.partition("\n## Warnings of status-listener\n")[2].partition("\n## ")[0]
    return set(re.findall(r"(?m)^\| `([^`]+)` \| [^|]+ \| [^|]+ \|$", section))


def merged(found: Iterable[Mapping[Event, set[str]]]) -> dict[Event, set[str]]:
    every: defaultdict[Event, set[str]] = defaultdict(set)
    for each in found:
        for event, fields in each.items():
            every[event] |= fields
    return dict(every)


def test_the_page_has_every_event_with_its_level_and_fields_and_no_other() -> None:
    code = merged(events_in(str(path), text) for path, text in sources("tornado_status"))
    assert documented_events(PAGE) == code
    assert len(code) > 50


def test_the_page_has_every_warning_of_a_listener_and_no_other() -> None:
    code = set[str]().union(*(warnings_in(text) for _, text in sources("listeners")))
    assert documented_warnings(PAGE) == code | REJOINED
    assert len(code) > 10


def test_a_new_event_is_found() -> None:
    """Of each kind: a plain one, one with fields that are built, one that is counted, a warning."""
    code = """
def run(self):
    fields = {"kind": kind}
    fields["hint"] = hint
    log.info("plain")
    self._log.exception("raised", part=part, suppressed=1)
    structlog.get_logger().warning("built", **fields)
    self.refusals.count(kind, "counted", per=peer, level=logging.WARNING, client_ip=ip)
    self.refusals.count("only counted")
    term.warning(now)
"""
    assert events_in("module.py", code) == {
        ("plain", "info"): set(),
        ("raised", "error"): {"part"},
        ("built", "warning"): {"kind", "hint"},
        ("counted", "warning"): {"client_ip"},
    }
    row = "| `raised` | error | `part` | It failed. | Nothing. |\n"
    assert documented_events(row) == {("raised", "error"): {"part"}}
    with pytest.raises(AssertionError, match="constant"):
        events_in("module.py", "log.info(str(error))")
    assert warnings_in(
        'self._warn(f"{a} again")\nw.warn_limited("the server", "b", f"no {c}")'
    ) == {
        "… again",
        "the server: no …",
    }
