"""`tornado-status users`, and what it prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.harness import (
    PATIENCE_S,
    ROOT,
    Server,
    plain_environment,
)

USERS = ("-m", "tornado_status", "users")


def run_users(
    server: Server | dict[str, Any], directory: Path, *words: str, given: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `tornado-status users` with a server's settings."""
    config = directory / "users.yaml"
    settings = server.settings if isinstance(server, Server) else server
    config.write_text(yaml.safe_dump(settings))
    return subprocess.run(
        [sys.executable, "-W", "error", *USERS, *words, "--config", str(config)],
        cwd=ROOT,
        env=plain_environment(),
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENCE_S,
    )


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines of a command that succeeded."""
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()
