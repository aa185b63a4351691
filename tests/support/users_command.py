"""`tornado-status users`, and what it prints."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.support.harness import Server, run_command


def run_users(
    server: Server | dict[str, Any], directory: Path, *words: str, given: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `tornado-status users` with a server's settings."""
    config = directory / "users.yaml"
    settings = server.settings if isinstance(server, Server) else server
    config.write_text(yaml.safe_dump(settings))
    return run_command("users", *words, "--config", str(config), given=given)


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines of a command that succeeded."""
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()
