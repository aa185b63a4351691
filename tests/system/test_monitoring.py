"""The dashboard and the alerts use metrics that the server has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.harness import PATIENCE_S, ROOT, Server, require

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "tornado_status.json"
NAME = re.compile(r"\b(?:tornado_status|process)_[a-z0-9_]+\b")
LABELS = re.compile(r"\b(?:by|without) \(([a-z_, ]+)\)")
ADDED = {"instance", "job", "le"}  # labels that Prometheus adds, and that of buckets


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def dashboard_expressions() -> Iterator[str]:
    for panel in panels():
        for target in panel.get("targets", ()):
            yield target["expr"]


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def expressions() -> list[str]:
    return [*dashboard_expressions(), *(rule["expr"] for rule in rules())]


def promtool(*arguments: str, cwd: Path = PROMETHEUS) -> subprocess.CompletedProcess[str]:
    require("promtool", shutil.which("promtool") is not None, "Debian's package prometheus")
    return subprocess.run(
        ["promtool", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


def known_names(metrics: str) -> set[str]:
    """The names of all series that these metrics can have, also of those without one yet."""
    names = set()
    for family in text_string_to_metric_families(metrics):
        suffixes = {
            "counter": ("_total",),
            "histogram": ("_bucket", "_sum", "_count"),
            "info": ("_info",),
        }.get(family.type, ("",))
        names |= {family.name + suffix for suffix in suffixes}
        names |= {sample.name for sample in family.samples}
    return names


def test_every_metric_that_is_watched_is_there(server: Server) -> None:
    """In /metrics of a running server, whatever the dashboard and the alerts name."""
    known = known_names(server.management("/metrics").body.decode())
    watched = {name for text in expressions() for name in NAME.findall(text)}
    watched -= {"tornado_status"}
    assert watched - known == set()
    assert len(watched) > 15
    assert "tornado_status_no_such_thing_total" not in known


def test_every_label_that_is_grouped_by_is_there(server: Server) -> None:
    """Of some sample, or documented for those that have none yet."""
    nobody = {"target", "errno", "reason", "method", "code", "state"}  # appear with what they count
    text = server.management("/metrics").body.decode()
    known = {
        label
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for label in sample.labels
    }
    grouped = {
        label.strip()
        for text in expressions()
        for labels in LABELS.findall(text)
        for label in labels.split(",")
    }
    assert grouped - known - ADDED - nobody == set()
    documented = (ROOT / "docs" / "metrics.md").read_text()
    for label in nobody:
        assert re.search(rf"\{{[a-z_,]*\b{label}\b[a-z_,]*\}}", documented), label


@pytest.mark.once
def test_the_alerts_are_what_they_say() -> None:
    """promtool's unit tests: each is silent first, then it fires, with its sentence."""
    assert promtool("check", "config", "prometheus.yml").returncode == 0
    done = promtool("test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    tested = {
        (case["alertname"], bool(case["exp_alerts"]))
        for test in tests
        for case in test["alert_rule_test"]
    }
    assert tested == {(rule["alert"], fires) for rule in rules() for fires in (False, True)}


@pytest.mark.once
def test_an_alert_that_is_wrong_fails_its_test(tmp_path: Path) -> None:
    """The test above can fail."""
    text = (PROMETHEUS / "alerts.yml").read_text()
    (tmp_path / "alerts.yml").write_text(text.replace("_ready == 0", "_ready == 1"))
    shutil.copy(PROMETHEUS / "alerts_test.yml", tmp_path)
    assert promtool("test", "rules", "alerts_test.yml", cwd=tmp_path).returncode != 0


@pytest.mark.once
def test_every_expression_of_the_dashboard_is_valid(tmp_path: Path) -> None:
    """As Prometheus reads it, once Grafana has put in its variables."""
    filled = [
        {"record": f"panel:{number}", "expr": text.replace("$__rate_interval", "1m")}
        for number, text in enumerate(dashboard_expressions())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": filled}]}))
    done = promtool("check", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    filled[0]["expr"] += " ("
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": filled}]}))
    assert promtool("check", "rules", str(path)).returncode != 0


def test_the_panels_do_not_overlap() -> None:
    """Each has its place, a title and a number of its own; those that show something say what."""
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
        assert panel["title"]
        assert panel["type"] == "row" or (panel["description"] and panel["targets"])
    numbers = [panel["id"] for panel in panels()]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_tells_what_to_do(rule: dict[str, Any]) -> None:
    """How bad it is, where, and what it means; and the documentation names it."""
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description"}
    assert f"`{rule['alert']}`" in (ROOT / "docs" / "metrics.md").read_text()
