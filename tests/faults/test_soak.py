"""The soak, in short, and that it finds out who is wrong."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.support.faults import soak, soak_report

pytestmark = pytest.mark.once

CALM = (soak.slow_readers, soak.streams_come_and_go)


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")  # short: it holds sockets


def test_every_fault_once(directory: Path, tmp_path: Path) -> None:
    """Every promise is kept, and the report says what was done."""
    outcome = soak.run(directory, seconds=0)
    assert outcome.violations == []
    assert len(outcome.recoveries) == len(soak.RESTARTS + soak.FAULTS)
    assert outcome.events == outcome.followed
    assert outcome.statuses[204] <= outcome.events
    soak_report.write(outcome, tmp_path, soak.BOUNDS)
    page = (tmp_path / "soak.md").read_text()
    assert all(f"| {name} |" in page for name in outcome.recoveries)
    plot = ElementTree.parse(tmp_path / "soak.svg").getroot()  # noqa: S314 - our own
    assert len(plot.findall(".//{*}polyline")) == 4


@pytest.mark.parametrize(
    ("wrong", "faults", "sentence"),
    [
        ("acknowledge_early", (soak.network_cut,), "missing: "),
        ("keep_memory", CALM, "memory grew by "),
        ("keep_descriptors", CALM, "descriptors grew by "),
        ("recover_slowly", (soak.postgresql_stopped,), "recovery from postgresql stopped took "),
    ],
)
def test_who_is_wrong_is_found_out(
    directory: Path, wrong: str, faults: tuple[soak.Fault, ...], sentence: str
) -> None:
    """The controls: servers that lose or keep what they should not."""
    outcome = soak.run(directory, seconds=12, wrong=wrong, faults=faults)
    assert any(each.startswith(sentence) for each in outcome.violations), outcome.violations
