"""`tornado-status log`."""

from __future__ import annotations

import re
import subprocess
import uuid
from pathlib import Path
from typing import Any

import yaml

from tests.support.harness import run_command


def log_command(settings: dict[str, Any], directory: Path, *action: str) -> dict[str, str]:
    """Run `python -m tornado_status log` and return what it shows."""
    done = run_log_command(settings, directory, *action)
    assert done.returncode == 0, done.stderr
    shown = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    uuid.UUID(shown["log"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", shown["at"])
    return shown


def run_log_command(
    settings: dict[str, Any], directory: Path, *action: str
) -> subprocess.CompletedProcess[str]:
    config = directory / "log.yaml"
    config.write_text(yaml.safe_dump(settings))
    return run_command("--config", str(config), "log", *action)
