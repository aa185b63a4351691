"""tests.support.run_tests: a test that fails beside others is retried, named and counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.harness import PATIENCE_S, ROOT, plain_environment

pytestmark = pytest.mark.once

RUN = (sys.executable, "-m", "tests.support.run_tests")

# Each test writes down that it ran. A flaky one fails the first time, a broken one always.
SUITE = """\
from pathlib import Path

import pytest


@pytest.mark.parametrize("number", range({flaky}))
def test_flaky(number):
    ran = Path("ran_" + str(number))
    again = ran.exists()
    ran.touch()
    assert again


@pytest.mark.parametrize("number", range({broken}))
def test_broken(number):
    assert not "broken"


def test_sound():
    assert not Path("sound").exists(), "what has passed is not run again"
    Path("sound").touch()
"""


@pytest.mark.parametrize(
    ("flaky", "broken", "status"),
    [(3, 0, 0), (4, 0, 1), (1, 1, 1)],
    ids=["three-flaky", "four-flaky", "failed-twice"],
)
def test_flaky_tests_are_named_and_more_than_three_fail_the_run(
    tmp_path: Path, flaky: int, broken: int, status: int
) -> None:
    """A test that fails twice fails the run, too."""
    (tmp_path / "test_suite.py").write_text(SUITE.format(flaky=flaky, broken=broken))
    done = subprocess.run(
        [*RUN, "--rootdir=.", "-q", "-n", "1", "test_suite.py"],
        cwd=tmp_path,
        env={**plain_environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    told = [line.strip() for line in done.stdout.splitlines() if line.startswith("  ")]
    expected = [f"flaky: test_suite.py::test_flaky[{n}]" for n in range(flaky)]
    expected += [f"failed twice: test_suite.py::test_broken[{n}]" for n in range(broken)]
    assert [line for line in told if "test_suite.py::" in line] == expected


def test_a_run_that_cannot_begin_is_not_retried(tmp_path: Path) -> None:
    """Its exit status is pytest's own: 4 for a wrong option."""
    done = subprocess.run(
        [*RUN, "--no-such-option"],
        cwd=tmp_path,
        env={**plain_environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 4
    assert "alone" not in done.stdout
