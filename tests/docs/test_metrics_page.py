"""docs/metrics.md lists the metrics of the code, with their types and labels, and no other."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.harness import ROOT

pytestmark = pytest.mark.once

TYPES = {
    **{"gauge": "gauge", "gauges": "gauge", "counter": "counter", "counters": "counter"},
    **{"histogram": "histogram", "InfoMetricFamily": "gauge"},
}
# Names and labels that are made at run time.
MADE = {
    "{}_expiry_timestamp_seconds": (
        "certificate_expiry_timestamp_seconds",
        "crl_expiry_timestamp_seconds",
    ),
}

Metric = tuple[str, str, tuple[str, ...]]  # its name without the prefix, its type and its labels

BUILD: Metric = ("build_info", "gauge", ("version", "python"))


def in_code(text: str) -> set[Metric]:
    """Return the metrics that a module makes with the helpers of `observe.metrics`."""
    found: set[Metric] = set()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if not isinstance(node.func.value, ast.Name) or node.func.value.id != "metrics":
            continue
        kind = TYPES.get(node.func.attr)
        if kind is None:
            continue
        labels = next((arg for arg in node.args if isinstance(arg, ast.List)), ast.List([]))
        of = tuple(ast.literal_eval(labels))
        for name in names(node.args[0]):
            found.add((name + "_total" * (kind == "counter"), kind, of))
    return found


def names(node: ast.expr) -> tuple[str, ...]:
    if isinstance(node, ast.JoinedStr):
        parts = (str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
        return MADE["".join(parts)]
    return (str(ast.literal_eval(node)),)


def in_page(text: str) -> list[Metric]:
    """Return the metrics of the page's tables."""
    rows = re.findall(
        r"(?m)^\| `(\w+)(?:\{([a-z_,]+)\})?` \| (counter|gauge|histogram) \| [^|]+ \| [^|]+ \|$",
        text,
    )
    return [(name, kind, tuple(filter(None, of.split(",")))) for name, of, kind in rows]


def test_the_page_has_every_metric_once_and_no_other() -> None:
    code: set[Metric] = {BUILD}
    for path in (ROOT / "tornado_status").rglob("*.py"):
        code |= in_code(path.read_text("utf-8"))
    page = in_page((ROOT / "docs" / "metrics.md").read_text("utf-8"))
    assert sorted(page) == sorted(code)
    assert len(code) > 20


def test_a_new_metric_is_found() -> None:
    """Its name, type and labels, also where the name is made at run time."""
    code = """
metrics.counters("new", "A sentence", ["a", "b"], counts)
metrics.gauge("other", "A sentence", 1.0)
metrics.gauges(f"{kind}_expiry_timestamp_seconds", "A sentence", ["file"], [])
"""
    assert in_code(code) == {
        ("new_total", "counter", ("a", "b")),
        ("other", "gauge", ()),
        ("certificate_expiry_timestamp_seconds", "gauge", ("file",)),
        ("crl_expiry_timestamp_seconds", "gauge", ("file",)),
    }
    assert in_page("| `new_total{a,b}` | counter | things | what it counts |\n") == [
        ("new_total", "counter", ("a", "b"))
    ]
