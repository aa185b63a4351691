"""The examples of docs/api.md, unchanged, with a real server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.harness import (
    PATIENCE_S,
    ROOT,
    Lines,
    Server,
    StartServer,
    free_port,
    plain_environment,
    require,
)

pytestmark = pytest.mark.once

VALID = "valid_user@example.com"
EXAMPLES = ROOT / "docs" / "examples"
LANGUAGES = {
    "python": (sys.executable, EXAMPLES / "status.py"),
    "curl": (EXAMPLES / "status.sh",),
    "javascript": ("node", EXAMPLES / "status.mjs"),
}


@contextlib.contextmanager
def started(language: str, server: Server, *given: str) -> Iterator[subprocess.Popen[str]]:
    """Run an example; stop it at the end."""
    needed = {"curl": "curl", "javascript": "node"}.get(language)
    if needed is not None:
        require(needed, shutil.which(needed) is not None, f"install {needed}")
    process = subprocess.Popen(
        [*LANGUAGES[language], *given],
        env={
            **plain_environment(),
            "STATUS_ADDRESS": f"localhost:{server.port}",
            "STATUS_CERTS": str(server.certs),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the shell and its curl
        process.wait(PATIENCE_S)


def said(language: str, server: Server, *given: str, status: int = 0) -> str:
    """Run an example to its end; return what it prints."""
    with started(language, server, *given) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == status or (status and process.returncode), err
        return out + err


@pytest.mark.parametrize("language", LANGUAGES)
def test_one_record_and_one_history(language: str, server: Server) -> None:
    """Of a user; a sentence for an unknown user."""
    for _ in range(3):
        assert server.request("POST", "/api/client").status == 204
    here = said(language, server, "here", VALID)
    assert VALID in here
    assert re.search(r"\bnew\b|\bonline\b", here)
    history = said(language, server, "history", VALID)
    if language == "curl":
        kinds = [event["event"] for event in json.loads(history)["events"]]
    else:
        kinds = [line.split()[1] for line in history.splitlines()]
    assert kinds == ["check-in", "check-in", "new"]
    assert "No check-in is recorded" in said(language, server, "here", "nobody@a.org", status=1)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_snapshot_then_every_event_over_a_restart(
    language: str, start_server: StartServer
) -> None:
    """Each event once, also those of the time when the server was down."""
    port = free_port()
    first = start_server(server={"port": port})
    first.request("POST", "/api/client")
    with started(language, first, "follow") as process:
        out, err = Lines(process.stdout), Lines(process.stderr)
        shown = f'"users":[{{"email":"{VALID}"' if language == "curl" else "1 users"
        out.wait_for(lambda line: shown in line, "the snapshot")
        other = start_server()  # on the same database, so that something happens meanwhile
        first.request("POST", "/api/client")
        seen = '"seq":2' if language == "curl" else f"2 {VALID} check-in"
        out.wait_for(lambda line: seen in line, "the second")
        assert first.stop() == 0
        assert other.request("POST", "/api/client", cert="operator").status == 204
        start_server(server={"port": port})
        third = '"seq":3' if language == "curl" else "3 operator@example.com new"
        out.wait_for(lambda line: third in line, "the third")
        if language != "curl":
            events = [line for line in out.lines if not line.endswith(" users")]
            assert events == [seen, third]
            assert not any("Error" in line for line in err.lines), err.lines


def test_the_page_names_every_example() -> None:
    """Each file, and each question."""
    page = (ROOT / "docs" / "api.md").read_text()
    for path in EXAMPLES.iterdir():
        assert f"(examples/{path.name})" in page
    for question in ("here", "history", "follow"):
        assert re.search(rf"`[^`]*status\.\w+ {question}\b[^`]*`", page)


def test_the_shell_example_is_clean() -> None:
    require("shellcheck", shutil.which("shellcheck") is not None, "install shellcheck")
    done = subprocess.run(
        ["shellcheck", EXAMPLES / "status.sh"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
