"""`tornado-status init`: files to begin with, also where there is no checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.harness import ROOT, run_command
from tornado_status.config import loader

ORIGINALS = {
    "config.yaml": ROOT / "config.yaml",
    "tornado-status.service": ROOT / "deploy" / "tornado-status.service",
}


def init(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run_command("init", *words, cwd=directory)


@pytest.mark.parametrize("words", [(), ("new/site",)])
def test_init_writes_what_is_shipped(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Into the current directory or another one, which it makes; and says what to do next."""
    done = init(tmp_path, *words)
    assert (done.returncode, done.stderr) == (0, "")
    wrote, then = done.stdout.splitlines()
    assert wrote.startswith("Wrote ")
    assert "status-certs" in then
    directory = tmp_path.joinpath(*words)
    assert {path.name for path in directory.iterdir()} == set(ORIGINALS)
    for name, original in ORIGINALS.items():
        assert (directory / name).read_bytes() == original.read_bytes()
    loader.load(directory / "config.yaml", {})


@pytest.mark.parametrize("name", ORIGINALS)
def test_init_overwrites_nothing(tmp_path: Path, name: str) -> None:
    """If one of the files exists, it stays, and the other one is not written either."""
    (tmp_path / name).write_text("mine")
    done = init(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"tornado-status: {name} exists already; nothing was written\n"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_init_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = init(tmp_path, "file/below")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "tornado-status: file/below: cannot write there: Not a directory\n"
