"""A virtual environment for the Python peers: exactly what requirements.txt says, by hash."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.peers.base import run_tool
from benchmarks.places import BENCHMARKS

REQUIREMENTS = BENCHMARKS / "requirements.txt"


def make_environment(build: Path) -> Path:
    """Make it below `build`, unless it is there, and return its Python."""
    directory = build / f"venv-{sys.version_info.major}.{sys.version_info.minor}"
    python = directory / "bin" / "python"
    mark = directory / "installed.txt"
    wanted = REQUIREMENTS.read_text()
    if mark.exists() and mark.read_text() == wanted:
        return python
    run_tool([sys.executable, "-m", "venv", "--clear", directory], "making a virtual environment")
    run_tool(
        [python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", REQUIREMENTS],
        "installing the Python peers",
        PIP_DISABLE_PIP_VERSION_CHECK="1",
    )
    mark.write_text(wanted)
    return python
