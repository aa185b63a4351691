"""docs/deploy.md's section on systemd, followed on a machine of its own where systemd is PID 1."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tornado_status
from tests.support.harness import PATIENCE_S, ROOT, Lines, require, wait_until
from tests.support.machines import BOOT_PATIENCE_S, Machine, machine, need_machine
from tests.support.pages import BASH, commands, shown

pytestmark = [pytest.mark.once, pytest.mark.network]

UNIT = "tornado-status"
HERE = "/root/tornado_status"
PYTHON = "/opt/tornado_status/bin/python"
DROP_IN = f"/run/systemd/system/{UNIT}.service.d/test.conf"
COPIED = (
    *("certs_gen", "clients", "listeners", "tornado_status", "deploy"),
    *("config.yaml", "pyproject.toml", "README.md", "LICENSE", "requirements/run.txt"),
)


def blocks() -> list[str]:
    """Return the page's commands, block by block."""
    page = (ROOT / "docs" / "deploy.md").read_text()
    section = page.partition("\n## Run under systemd\n")[2].partition("\n## ")[0]
    return [block.commands for block in commands("docs/deploy.md", section)]


def wheels(directory: Path) -> None:
    """Fetch what the page installs: the machine has no network."""
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    ensurepip = [
        str(python),
        "-c",
        "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))",
    ]
    there = python is not None and subprocess.run(ensurepip, check=False).returncode == 0
    require(
        "the machine's python3, 3.11 or newer, with venv", there, "apt-get install python3-venv"
    )
    subprocess.run([str(python), "-m", "venv", directory / "venv"], check=True)
    fetch = [
        "download",
        "--quiet",
        "--require-hashes",
        "--requirement",
        f"{ROOT}/requirements/run.txt",
    ]
    subprocess.run(
        [directory / "venv" / "bin" / "pip", *fetch, "--dest", directory / "wheels"],
        check=True,
        timeout=BOOT_PATIENCE_S,
    )
    shutil.rmtree(directory / "venv")


def run_block(there: Machine, block: str) -> str:
    """Run a block of the page as it stands."""
    done = there.run(
        *(*BASH, block),
        cwd=HERE,
        environment={
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": "/root/wheels",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        },
        patience_s=BOOT_PATIENCE_S,
    )
    return done.stdout


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine on which the page was followed up to the start."""
    need_machine()
    directory = tmp_path_factory.mktemp("machine")
    wheels(directory)
    with machine(directory) as there:
        shutil.copytree(directory / "wheels", there.root / "root" / "wheels")
        source = there.root / HERE.removeprefix("/")
        source.mkdir()
        for name in COPIED:
            if (ROOT / name).is_dir():
                unwanted = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, source / name, ignore=unwanted)
            else:
                (source / name).parent.mkdir(exist_ok=True)
                shutil.copy(ROOT / name, source / name)
        install, certificates, environment, *_ = blocks()
        for block in (install, certificates, environment):
            run_block(there, block)
        yield there


@pytest.fixture
def serving(booted: Machine) -> Iterator[Machine]:
    """It serves, as the unit stands and for the first time; whatever a test changed is undone."""
    run_block(booted, blocks()[3])
    yield booted
    (booted.root / DROP_IN.removeprefix("/")).unlink(missing_ok=True)
    booted.run("systemctl", "daemon-reload")
    booted.run("systemctl", "stop", UNIT)
    booted.run("systemctl", "reset-failed", UNIT, check=False)


def changed(there: Machine, *lines: str) -> None:
    """Start it anew, with lines of the unit changed."""
    there.put(DROP_IN, "\n".join(["[Service]", *lines, ""]))
    there.run("systemctl", "daemon-reload")
    there.run("systemctl", "restart", UNIT)


def check_in(there: Machine, port: int = 8443) -> str:
    """Check in with curl, and return the status of the answer."""
    certs = ("--cacert", "certs/ca.crt", "--cert", "certs/client.crt", "--key", "certs/client.key")
    url = f"https://localhost:{port}/api/client"
    options = ("--silent", "--show-error", "--output", "/dev/null", "--write-out", "%{http_code}")
    done = there.run("curl", *options, *certs, "-X", "POST", url, cwd=HERE, check=False)
    return done.stdout.strip()


def journal(there: Machine) -> list[dict[str, Any]]:
    """Return what the server has said since the unit was last started."""
    started = there.shows(UNIT, "InvocationID")
    said = there.run(
        "journalctl", "--output=cat", f"_SYSTEMD_INVOCATION_ID={started}", check=False
    ).stdout
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def events(there: Machine) -> list[str]:
    return [line["event"] for line in journal(there)]


def test_systemd_is_pid_1_and_starts_it_at_each_boot(serving: Machine) -> None:
    assert serving.run("cat", "/proc/1/comm").stdout.strip() == "systemd"
    assert serving.run("systemctl", "is-enabled", UNIT).stdout.strip() == "enabled"


def test_start_returns_when_the_server_serves(serving: Machine) -> None:
    """No waiting between the two."""
    assert check_in(serving) == "204"
    serving.run("systemctl", "stop", UNIT)
    assert check_in(serving) != "204"
    serving.run("systemctl", "start", UNIT)
    assert check_in(serving) == "204"
    status = serving.run("systemctl", "status", "--no-pager", UNIT).stdout
    assert "active (running)" in status
    assert 'Status: "recording check-ins"' in status


def test_the_journal_is_for_machines(serving: Machine) -> None:
    """Each line of the server is one object, as the page's environment says."""
    started = serving.shows(UNIT, "InvocationID")
    pid = serving.shows(UNIT, "MainPID")
    said = serving.run(
        "journalctl", "--output=cat", f"_SYSTEMD_INVOCATION_ID={started}", f"_PID={pid}"
    ).stdout.splitlines()
    assert "serving" in [json.loads(line)["event"] for line in said]


def test_reload_returns_when_a_renewed_certificate_is_served(serving: Machine) -> None:
    """With the page's commands after a renewal."""

    def shown() -> str:
        ask = "echo | openssl s_client -connect localhost:8443 2>&1 | openssl x509 -serial -noout"
        return serving.run("bash", "-c", ask).stdout.strip()

    before = shown()
    assert "serial=" in before
    pid = serving.shows(UNIT, "MainPID")
    serving.run("/opt/tornado_status/bin/status-certs", "server", "--force", cwd=HERE)
    assert shown() == before  # it is not in place yet
    copy, install = blocks()[1].strip().splitlines()[1:]
    run_block(serving, f"{copy}\n{install}\n{blocks()[4]}")
    assert shown() not in ("", before)
    assert (serving.shows(UNIT, "MainPID"), serving.shows(UNIT, "NRestarts")) == (pid, "0")
    assert check_in(serving) == "204"


@pytest.mark.parametrize(
    ("signal", "result"), [("SIGKILL", "signal"), ("SIGSTOP", "watchdog"), ("SIGTERM", "success")]
)
def test_what_ends_unasked_is_started_again(serving: Machine, signal: str, result: str) -> None:
    """Killed, or turning no more; but not after an orderly end. Nothing acknowledged is lost."""
    changed(serving, "WatchdogSec=2s")
    assert check_in(serving) == "204"
    before = serving.shows(UNIT, "MainPID")
    serving.run("systemctl", "kill", "--kill-whom=main", f"--signal={signal}", UNIT)
    if result == "success":
        wait_until(lambda: serving.shows(UNIT, "ActiveState") == "inactive", "its end")
        assert serving.shows(UNIT, "NRestarts") == "0"
        return

    def again() -> bool:
        # In this order: what is active may still be the one before.
        if serving.shows(UNIT, "MainPID") in (before, "0"):
            return False
        return serving.shows(UNIT, "ActiveState") == "active"

    wait_until(again, "another server")
    assert serving.shows(UNIT, "NRestarts") == "1"
    said = serving.run("journalctl", "--output=cat", f"UNIT={UNIT}.service", "_PID=1").stdout
    assert f"Failed with result '{result}'" in said
    assert check_in(serving) == "204"
    answer = serving.run(
        *("curl", "--silent", "--cacert", "certs/ca.crt", "--cert", "certs/operator.crt"),
        *("--key", "certs/operator.key", "https://localhost:8443/api/events?after=0"),
        cwd=HERE,
    ).stdout
    log = json.loads(answer)["events"]
    assert [entry["seq"] for entry in log] == list(range(1, len(log) + 1))
    assert len(log) >= 2


def test_the_next_version_takes_its_place(serving: Machine) -> None:
    """With the page's commands, in a newer copy of the project."""
    assert check_in(serving) == "204"
    program = serving.root / "root/tornado_status/tornado_status/__init__.py"
    before = program.read_text()
    newer = before.replace(tornado_status.__version__, "99.1")
    assert newer != before
    pid = serving.shows(UNIT, "MainPID")
    program.write_text(newer)
    try:
        run_block(serving, blocks()[5])
    finally:
        program.write_text(before)
    assert serving.shows(UNIT, "MainPID") not in ("0", pid)
    ask = ("curl", "--silent", "http://127.0.0.1:9464/metrics")
    assert 'version="99.1"' in serving.run(*ask).stdout
    assert check_in(serving) == "204"


def test_a_low_port_takes_what_the_page_says(serving: Machine) -> None:
    """And not less: without the capability it ends, and says why."""
    lines = shown("docs/deploy.md", "[Service]").partition("\n")[2]
    changed(serving, lines)
    assert check_in(serving, 443) == "204"
    status = serving.run("cat", f"/proc/{serving.shows(UNIT, 'MainPID')}/status").stdout
    assert re.search(r"CapEff:\t0+400\n", status)  # this one, and no other
    serving.put(DROP_IN, f"[Service]\n{lines.splitlines()[0]}\n")
    serving.run("systemctl", "daemon-reload")
    assert serving.run("systemctl", "restart", UNIT, check=False).returncode != 0
    said = serving.run("journalctl", "--output=cat", "-u", UNIT).stdout
    assert "this user may not listen on 443: grant CAP_NET_BIND_SERVICE" in said


def test_what_it_cannot_start_with_is_tried_again_until_it_has_passed(serving: Machine) -> None:
    """A wrong setting, then a taken port: the journal says what is wrong, and no count ends it."""
    often = "[Service]\nRestartSec=100ms\n"
    serving.put(DROP_IN, f"{often}Environment=TORNADO_STATUS_SERVER__PORT=99999\n")
    serving.run("systemctl", "daemon-reload")
    assert serving.run("systemctl", "restart", UNIT, check=False).returncode != 0
    assert serving.shows(UNIT, "ExecMainStatus") == "2"
    # More than systemd's own limit of five in ten seconds.
    wait_until(lambda: int(serving.shows(UNIT, "NRestarts")) > 7, "restarts")
    assert "server.port: " in serving.run("journalctl", "--output=cat", "-u", UNIT).stdout
    serving.run("systemctl", "stop", UNIT)
    python = ("/opt/tornado_status/bin/python", "-m", "http.server", "8443")
    serving.run("systemd-run", "--unit=taken", *python)
    wait_until(
        lambda: ":20FB " in serving.run("cat", "/proc/net/tcp").stdout, "the port to be taken"
    )
    serving.put(DROP_IN, often)
    serving.run("systemctl", "daemon-reload")
    assert serving.run("systemctl", "restart", UNIT, check=False).returncode != 0
    wait_until(lambda: int(serving.shows(UNIT, "NRestarts")) > 1, "restarts")
    assert "8443 is taken" in serving.run("journalctl", "--output=cat", "-u", UNIT).stdout
    serving.run("systemctl", "stop", "taken")
    wait_until(lambda: serving.shows(UNIT, "ActiveState") == "active", "it to serve")
    assert check_in(serving) == "204"


def test_waiting_for_its_database_it_is_not_killed(serving: Machine) -> None:
    """Longer than systemd waits for a start, as another unit with the same limit shows."""
    away = "Environment=DATABASE_URL=postgresql://nobody@localhost:1/nothing"
    serving.run("systemctl", "stop", UNIT)
    serving.put(DROP_IN, f"[Service]\n{away}\nTimeoutStartSec=12s\n")
    mute = "[Service]\nType=notify\nExecStart=/bin/sleep infinity\nTimeoutStartSec=12s\n"
    serving.put("/run/systemd/system/mute.service", mute)
    serving.run("systemctl", "daemon-reload")
    serving.run("systemctl", "start", "--no-block", UNIT)
    wait_until(lambda: "database away, trying again" in events(serving), "the server to wait")
    serving.run("systemctl", "start", "mute", check=False)
    assert serving.shows("mute", "Result") == "timeout"
    assert serving.shows(UNIT, "ActiveState") == "activating"
    assert "Connection refused" in serving.shows(UNIT, "StatusText")
    serving.run("systemctl", "reset-failed", "mute")


# Begins a check-in, and ends it when told.
HALF = """
import http.client, ssl, sys
context = ssl.create_default_context(cafile="certs/ca.crt")
context.load_cert_chain("certs/client.crt", "certs/client.key")
connection = http.client.HTTPSConnection("localhost", 8443, context=context)
connection.putrequest("POST", "/api/client")
connection.putheader("Content-Length", "1")
connection.endheaders()
print("begun", flush=True)
sys.stdin.readline()
connection.send(b"x")
print(connection.getresponse().status, flush=True)
"""


@pytest.mark.parametrize(
    ("lines", "answer"),
    [((), "204"), (("KillMode=control-group",), "503")],
    ids=["unit", "control"],
)
def test_stop_finishes_what_was_begun(
    serving: Machine, lines: tuple[str, ...], answer: str
) -> None:
    """The embedded PostgreSQL lives as long as it is needed, which the unit's KillMode sees to."""
    changed(serving, *lines)
    postgresql = serving.root / "var/lib/tornado-status/postgresql/postmaster.pid"
    assert postgresql.exists()
    enter = ("nsenter", "--target", str(serving.pid), "--all", "--wd=/")
    client = subprocess.Popen(
        [*enter, "env", f"--chdir={HERE}", PYTHON, "-c", HALF],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = Lines(client.stdout)
    assert client.stdin is not None
    try:
        said.wait_for(lambda line: line == "begun", "a check-in that has begun")
        serving.run("systemctl", "stop", "--no-block", UNIT)
        wait_until(lambda: "stopping" in events(serving), "the server to stop")
        if lines:
            wait_until(lambda: not postgresql.exists(), "PostgreSQL to end too early")
        print(file=client.stdin, flush=True)
        assert client.wait(PATIENCE_S) == 0, said.wait_end()
    finally:
        client.stdin.close()
        client.kill()
        client.wait()
    assert said.wait_end().splitlines()[-1] == answer
    wait_until(lambda: serving.shows(UNIT, "ActiveState") == "inactive", "its end")
    assert serving.shows(UNIT, "Result") == "success"
    assert not postgresql.exists()


# Writes what a program can do, as JSON, to the file in its argument.
PROBE = """
import ctypes, json, mmap, os, pathlib, socket, sys

def works(action):
    try:
        action()
    except OSError:
        return False
    return True

status = dict(
    line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines()
)
libc = ctypes.CDLL(None, use_errno=True)
def unshare():
    if libc.unshare(0x10000000) != 0:
        raise OSError(ctypes.get_errno(), "unshare")

can = {
    "write the system": not os.statvfs("/opt").f_flag & os.ST_RDONLY,
    "write /etc": not os.statvfs("/etc/tornado-status").f_flag & os.ST_RDONLY,
    "write its state": works(lambda: pathlib.Path("/var/lib/tornado-status/x").touch()),
    "see homes": works(lambda: os.stat("/home/somebody")),
    "see others' temporary files": works(lambda: os.stat("/tmp/somebodys")),
    "see others' processes": works(lambda: os.stat("/proc/1/status")),
    "make memory executable": works(lambda: mmap.mmap(-1, 4096, prot=7)),
    "send raw frames": works(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    "set the host's name": works(lambda: socket.sethostname(socket.gethostname())),
    "have capabilities": int(status["CapBnd"], 16) != 0,
    "gain privileges": status["NoNewPrivs"].strip() == "0",
    "call whatever it wants": status["Seccomp"].strip() == "0",
    "be root": os.getuid() == 0,
    "make namespaces": works(unshare),
}
pathlib.Path(sys.argv[1]).write_text(json.dumps(can))
"""


def test_the_unit_holds_the_server_in(serving: Machine) -> None:
    """The unit's options hold from within; without them all of it can be done."""
    serving.put("/opt/probe.py", PROBE)
    serving.put("/home/somebody", "")
    serving.put("/tmp/somebodys", "")  # noqa: S108 - the machine's own
    result = "/var/lib/tornado-status/probe.json"
    changed(serving, f"ExecStartPre={PYTHON} /opt/probe.py {result}")
    confined = json.loads(serving.run("cat", result).stdout)
    assert [name for name, can in confined.items() if can] == ["write its state"]
    free = ("systemd-run", "--quiet", "--wait", PYTHON, "/opt/probe.py", "/root/probe.json")
    serving.run(*free)
    assert all(json.loads(serving.run("cat", "/root/probe.json").stdout).values())


def test_only_its_user_can_read_what_it_must(serving: Machine) -> None:
    """Other users cannot read keys, settings and the environment."""
    program = "setpriv --reuid={} --regid={} --clear-groups cat {}"
    files = {
        "/etc/tornado-status/config.yaml": 0,
        "/etc/tornado-status/certs/server.key": 0,
        "/etc/tornado-status/environment": 1,  # systemd reads it, as root
    }
    for path, code in files.items():
        mine = serving.run(*program.format(UNIT, UNIT, path).split(), check=False)
        assert mine.returncode == code, path
        others = serving.run(*program.format("nobody", "nogroup", path).split(), check=False)
        assert others.returncode == 1, path
    state = serving.run("stat", "--format=%U %a", "/var/lib/tornado-status").stdout.strip()
    assert state == "tornado-status 700"


def test_the_doctor_finds_the_installation_well(serving: Machine) -> None:
    """As the server sees it: with the unit's environment, in its confinement."""
    doctor = f"{PYTHON} -m tornado_status doctor --config /etc/tornado-status/config.yaml"
    done = serving.run(
        *("systemd-run", "--quiet", "--wait", "--pipe", "--property=User=tornado-status"),
        "--property=EnvironmentFile=/etc/tornado-status/environment",
        *doctor.split(),
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "\nNo problems found." in done.stdout or done.stdout.endswith("All is well.\n")
