"""The Makefile: which Python it takes, and what it says of one that is not tested."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.harness import PATIENCE_S, ROOT, plain_environment

pytestmark = pytest.mark.once

OURS = "{}.{}".format(*sys.version_info)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose environment stands and whose programs do nothing."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements").mkdir()
    for name in ("requirements/run.txt", "pyproject.toml", "certs_gen.py", "tornado_status.py"):
        (tmp_path / name).touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / ".venv" / ".run").touch()
    for path in (".venv/bin", "requirements/run.txt", "pyproject.toml"):
        os.utime(tmp_path / path, (0, 0))  # older than .run, which make does not renew then
    return tmp_path


@pytest.mark.parametrize(
    ("tested", "said"),
    [
        (f"9.9 {OURS}", ""),
        ("9.9 9.8", f"Python {OURS} is not tested; tested: 9.9 9.8\n"),
    ],
    ids=["tested", "other"],
)
def test_make_run_names_a_python_that_is_not_tested(checkout: Path, tested: str, said: str) -> None:
    """It runs all the same: one line says so."""
    done = subprocess.run(
        ["make", "--silent", "run", f"TESTED={tested}"],
        cwd=checkout,
        env={**plain_environment(), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", said)


def test_a_python_that_is_missing_is_named() -> None:
    """The run on the other Pythons goes on without it, and says that it is untested."""
    done = subprocess.run(
        [ROOT / "tests" / "on_each_python.sh", "9.9"],
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "== Python 9.9: untested here, no interpreter\n"
