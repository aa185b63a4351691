"""Programs where Python has no more than on Windows: an emulation, see `tests.support.windows`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.certs_tool import ROOT, Result, certificate_of
from tests.support.harness import LOOPBACK, PATIENCE_S, Server, wait_until
from tornado_status import cli


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.windows", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str | Path) -> Result:
    process = start(*arguments)
    out, err = process.communicate(timeout=PATIENCE_S)
    return Result(process.returncode, out, err)


def check_in(server: Server) -> Result:
    files = [f"--{name}={server.certs / file}" for name, file in CLIENT.items()]
    return run("clients", "--url", f"{server.url}/api/client", *files)


CLIENT = {"cert": "client.crt", "key": "client.key", "ca": "ca.crt"}


def test_the_emulation_takes_away_what_the_server_needs() -> None:
    """It can fail: the server's own modules do."""
    done = run("tornado_status.runtime.http_timeouts")
    assert done.status == 1
    assert "import of fcntl halted" in done.err


def test_status_certs_issues_replaces_revokes_and_copies(tmp_path: Path) -> None:
    certs, copies = tmp_path / "certs", tmp_path / "copies"
    for arguments in (
        (),
        ("--force",),
        ("client", "a@example.com", "b@example.com", "--pkcs12"),
        ("client", "a@example.com", "--force"),
        ("server", "--name", "status.example.com", "--force"),
        ("revoke", "b@example.com"),
        ("crl", "--days", "90"),
        ("copy", "client", copies, "--email", "a@example.com"),
    ):
        done = run("certs_gen", *arguments, "--out", certs)
        assert (done.status, done.err) == (0, ""), arguments
    assert (copies / "client.crt").read_bytes() == (certs / "a@example.com.crt").read_bytes()
    assert certificate_of(certs / "ca.crt").subject == certificate_of(certs / "server.crt").issuer


def test_status_client_checks_in(server: Server) -> None:
    done = check_in(server)
    assert (done.status, done.out, done.err) == (0, "Success! (204 No Content)\n", "")


def test_status_listener_verifies_and_shows(server: Server) -> None:
    listener = start(
        *("listeners", "--count", "1", "--timeout", str(PATIENCE_S), "--interface", LOOPBACK),
        *("--port", str(server.announce_port), "--url", server.url),
        *("--announcer", server.certs / "announcer.crt", "--ca", server.certs / "ca.crt"),
        *("--cert", server.certs / "operator.crt", "--key", server.certs / "operator.key"),
    )
    assert listener.stderr is not None
    assert listener.stderr.readline().startswith("Listening on ")
    wait_until(lambda: check_in(server).status == 0 and listener.poll() is not None, "an update")
    out, err = listener.communicate()
    assert listener.returncode == 0, err
    assert "valid_user@example.com" in out


@pytest.mark.parametrize("platform", ["win32", "darwin"])
@pytest.mark.parametrize("arguments", [[], ["doctor"], ["users", "list"]])
def test_the_server_says_that_it_runs_on_linux(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    arguments: list[str],
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err == (
        "tornado-status: the server runs on Linux; this system has status-client, "
        "status-listener and status-certs\n"
    )
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])


def test_so_does_it_where_modules_are_missing() -> None:
    done = run("tornado_status")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("tornado-status: the server runs on Linux; ")
