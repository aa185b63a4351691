"""The first hour: mistakes that newcomers make, and the sentence that helps each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.harness import PATIENCE_S, ROOT, plain_environment, require, running_server
from tornado_status import startup_banner
from tornado_status.config import loader

pytestmark = pytest.mark.once


def run(
    *command: str | Path, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**plain_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


# ---------------------------------------------------------------------- outside its environment


@pytest.mark.parametrize(
    ("module", "program"),
    [
        ("tornado_status", "tornado-status"),
        ("listeners", "status-listener"),
        ("certs_gen", "status-certs"),
    ],
)
@pytest.mark.parametrize("installed", [False, True])
def test_a_python_without_the_packages_says_what_to_run(
    tmp_path: Path, module: str, program: str, installed: bool
) -> None:
    """In a checkout with the system's Python: one line, before and after `make run`."""
    for package in ("tornado_status", "listeners", "certs_gen", "clients"):
        shutil.copytree(ROOT / package, tmp_path / package)
    if installed:
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
        (tmp_path / ".venv" / "bin" / program).touch()
    # -S: without the packages of the environment.
    done = run(sys.executable, "-S", "-m", module, cwd=tmp_path)
    assert done.returncode == 1
    remedy = f"run .venv/bin/{program}"
    if not installed:
        remedy = f"run `make run` once, then .venv/bin/{program}"
    assert done.stderr.startswith(f"{program}: {sys.executable} does not have the package ")
    assert done.stderr.endswith(f": {remedy}\n")
    assert done.stderr.count("\n") == 1


def test_the_client_needs_no_packages(tmp_path: Path) -> None:
    """The standard library is enough."""
    shutil.copytree(ROOT / "clients", tmp_path / "clients")
    done = run(sys.executable, "-S", "-m", "clients", "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: status-client ")


# ---------------------------------------------------------------------------------- wrong options


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--port", "9000"),
            "--port is no option: set server.port in config.yaml, or the environment variable "
            "TORNADO_STATUS_SERVER__PORT=9000; or management.port",
        ),
        (("serve", "--port=9000"), "the environment variable TORNADO_STATUS_SERVER__PORT=9000"),
        (
            ("--database-url", "embedded"),
            "--database-url is no option: set database.url in config.yaml, or the environment "
            "variable TORNADO_STATUS_DATABASE__URL=embedded",
        ),
        (("--drain-timeout", "5"), "TORNADO_STATUS_SERVER__DRAIN_TIMEOUT_S=5"),
        (("--nonsense",), "unrecognized arguments: --nonsense"),
        (("nonsense",), "invalid choice: 'nonsense'"),
    ],
)
def test_an_option_that_is_a_setting_is_explained(arguments: tuple[str, ...], said: str) -> None:
    """Rather than `invalid choice: '9000'`."""
    done = run(sys.executable, "-m", "tornado_status", *arguments)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert done.stderr.startswith("usage: tornado-status ")


# --------------------------------------------------------------------------------------- banner


def test_the_banner_shows_a_command_that_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a checkout by its path: the second terminal may have another PATH. Else by its name."""
    settings = loader.load(ROOT / "config.yaml", {})
    url = "https://localhost:8443"
    scripts = tmp_path / ".venv" / "bin"
    scripts.mkdir(parents=True)
    client = scripts / "status-client"
    client.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(scripts / "python"))
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert startup_banner._try_next(settings, url) == str(client)
    monkeypatch.setenv("PATH", f"{scripts}:/usr/bin:/bin")
    assert startup_banner._try_next(settings, url) == "status-client"
    monkeypatch.chdir(tmp_path)
    assert startup_banner._try_next(settings, url).startswith(".venv/bin/status-client --cert ")


# --------------------------------------------------------------------------- the embedded database


def serve_in(directory: Path, certs: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Start a server in a file system view of its own, which `script` has prepared."""
    require("a view of the file system", os.geteuid() == 0, "run the tests as root")
    shutil.copytree(certs, directory / "certs", dirs_exist_ok=True)
    shutil.copy(ROOT / "config.yaml", directory)
    start = f"{script} && exec {sys.executable} -m tornado_status --config {directory}/config.yaml"
    return run(
        *("unshare", "--mount", "sh", "-c", start),
        TORNADO_STATUS_SERVER__PORT="0",
        TORNADO_STATUS_MANAGEMENT__PORT="0",
        TORNADO_STATUS_ANNOUNCE__TARGETS="[]",
    )


@pytest.mark.parametrize("size", ["20m", "40m"])
def test_a_full_disk_at_the_first_start_is_named(tmp_path: Path, certs: Path, size: str) -> None:
    """Within initdb, and after it; rather than the line about initdb's clean-up."""
    (tmp_path / "var").mkdir()
    mount = f"mount -t tmpfs -o size={size} none {tmp_path}/var"
    done = serve_in(tmp_path, certs, mount)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("tornado-status: database")
    # The second of half a page that still fitted in.
    assert "No space left on device" in last or "Check free disk space" in last
    assert str(tmp_path / "var") in last


@pytest.mark.parametrize("again", [False, True])
def test_a_read_only_checkout_is_one_sentence(tmp_path: Path, certs: Path, again: bool) -> None:
    """At the first start, and where the database is there already."""
    if again:
        with running_server(tmp_path / "first", certs, "embedded") as server:
            data_dir = server.settings["database"]["data_dir"]
            server.stop()
        shutil.copytree(data_dir, tmp_path / "var" / "postgresql")
    read_only = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path}"
    done = serve_in(tmp_path, certs, read_only)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("tornado-status: database.data_dir: cannot ")
    assert str(tmp_path / "var" / "postgresql") in last
    assert last.endswith("Read-only file system")
