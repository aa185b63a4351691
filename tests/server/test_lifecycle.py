"""Starting, stopping, and what happens when something is missing, taken or killed."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from certs_gen.cli import main as certs_gen
from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    ROOT,
    Postgres,
    Server,
    StartServer,
    exchange,
    free_port,
    plain_environment,
    require,
    rows,
    running_server,
    wait_until,
)
from tornado_status import __version__

EMBEDDED = "embedded"


def run(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m tornado_status` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "tornado_status", *arguments],
        cwd=cwd,
        env={**plain_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def one_line_error(result: subprocess.CompletedProcess[str]) -> str:
    """Check that a run ended as a command line error does, and return its line."""
    assert (result.returncode, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def postmaster(server: Server) -> int:
    path = Path(server.settings["database"]["data_dir"]) / "postmaster.pid"
    return int(path.read_text().split("\n", 1)[0])


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_its_postgresql(
    start_server: StartServer, signum: signal.Signals
) -> None:
    """Exit 0, and nothing that it started is left."""
    server = start_server(url=EMBEDDED)
    assert server.request("POST", "/api/client").status == 204
    pid = postmaster(server)
    assert not is_gone(pid)
    assert server.stop(signum) == 0
    assert is_gone(pid)


def test_a_signal_right_after_the_start_ends_it(start_server: StartServer) -> None:
    """Whatever it does first: no cancellation gets lost in the database's driver."""
    for _ in range(5):
        assert start_server().stop() == 0


def test_a_signal_during_the_start_ends_it_too(start_server: StartServer) -> None:
    """Also while initdb runs: exit 0, nothing left half made."""
    server = start_server(url=EMBEDDED, wait=False)
    server.wait_event("creating the database")
    assert server.stop() == 0
    data_dir = Path(server.settings["database"]["data_dir"])
    assert [path for path in data_dir.parent.iterdir() if "initdb" in path.name] == []


def test_kill_dash_nine_leaves_no_postgresql_and_loses_nothing(
    start_server: StartServer, tmp_path: Path
) -> None:
    """The embedded PostgreSQL ends by itself; the next start finds every acknowledged check-in."""
    data_dir = str(tmp_path / "kept")
    server = start_server(url=EMBEDDED, database={"data_dir": data_dir})
    for _ in range(3):
        assert server.request("POST", "/api/client").status == 204
    pid = postmaster(server)
    server.stop(signal.SIGKILL)
    # At once, while the old PostgreSQL still stops.
    again = start_server(url=EMBEDDED, database={"data_dir": data_dir})
    assert is_gone(pid)
    page = again.request("GET", "/api/events", cert="operator").json
    assert [event["seq"] for event in page["events"]] == [1, 2, 3]
    assert again.request("POST", "/api/client").status == 204


def test_after_a_power_cut_it_starts(start_server: StartServer, tmp_path: Path) -> None:
    """Both were killed: the file in which the old PostgreSQL said "ready" is still there."""
    data_dir = tmp_path / "kept"
    server = start_server(url=EMBEDDED, database={"data_dir": str(data_dir)})
    assert server.request("POST", "/api/client").status == 204
    pid = postmaster(server)
    server.process.send_signal(signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    server.stop(signal.SIGKILL)
    # A process whose parent has not asked for its status still has its number.
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "PostgreSQL to be gone")
    assert "ready" in (data_dir / "postmaster.pid").read_text()
    again = start_server(url=EMBEDDED, database={"data_dir": str(data_dir)})
    assert again.request("POST", "/api/client").status == 204
    events = again.request("GET", "/api/events", cert="operator").json["events"]
    assert [event["seq"] for event in events] == [1, 2]


def test_a_killed_embedded_postgresql_is_started_again(start_server: StartServer) -> None:
    """The server notices, restarts it and goes on; nothing acknowledged is lost."""
    server = start_server(url=EMBEDDED)
    assert server.request("POST", "/api/client").status == 204
    os.kill(postmaster(server), signal.SIGKILL)
    server.wait_event("embedded PostgreSQL died, restarting")
    wait_until(lambda: server.request("POST", "/api/client").status == 204, "a check-in")
    events = server.request("GET", "/api/events", cert="operator").json["events"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert len(events) >= 2


def test_a_drain_answers_what_was_begun(start_server: StartServer) -> None:
    """SIGTERM under load: every request that was sent is answered, and each 204 is recorded."""
    server = start_server()
    acknowledged: list[int] = []
    started = threading.Barrier(9)

    def check_in_until_refused() -> None:
        connection = server.connect()
        count = 0
        try:
            while True:
                answer = exchange(connection, "POST", "/api/client")
                assert answer.status == 204
                count += 1
                if count == 1:
                    started.wait(PATIENCE_S)
        except OSError:
            pass  # closed between two requests
        finally:
            connection.close()
            acknowledged.append(count)

    threads = [threading.Thread(target=check_in_until_refused) for _ in range(8)]
    for thread in threads:
        thread.start()
    started.wait(PATIENCE_S)
    assert server.stop() == 0
    for thread in threads:
        thread.join(PATIENCE_S)
    recorded = server.rows("SELECT count(*) FROM check_in")[0][0]
    assert len(acknowledged) == 8
    # Up to one a connection may be recorded whose answer the close overtook.
    assert sum(acknowledged) <= recorded <= sum(acknowledged) + 8


def test_without_its_database_the_server_says_so_and_recovers(
    start_server: StartServer, own_postgres: Postgres
) -> None:
    """Down at start: not ready, 503. Up: 204. Down again: 503. Up again: 204, all by itself."""
    own_postgres.stop()
    server = start_server(url=own_postgres.url, wait=False, server={"port": free_port()})
    assert server.wait_event("database away, trying again")["reason"]
    wait_until(lambda: server.management("/readyz").status == 503, "the management port")
    assert server.management("/healthz").status == 200

    def check_in() -> int:
        answer = server.request("POST", "/api/client")
        if answer.status == 503:
            assert int(answer.headers["Retry-After"]) >= 1
            assert answer.detail is not None
            assert answer.detail.startswith("Not known to be recorded")
        return answer.status

    assert check_in() == 503
    for _ in range(2):
        own_postgres.start()
        wait_until(lambda: check_in() == 204, "a check-in")
        assert server.management("/readyz").status == 200
        own_postgres.stop()
        wait_until(lambda: check_in() == 503, "a refusal")
        assert server.management("/readyz").status == 503
    own_postgres.start()
    wait_until(lambda: check_in() == 204, "a check-in")
    log = rows(own_postgres.url, "SELECT seq, event FROM check_in ORDER BY seq")
    assert [seq for seq, _ in log] == list(range(1, len(log) + 1))
    assert [event for _, event in log].count("new") == 1


def test_it_starts_from_any_directory(
    start_server: StartServer, certs: Path, tmp_path: Path
) -> None:
    """Relative paths in the configuration are relative to it, not to the current directory."""
    home = tmp_path / "home"
    shutil.copytree(certs, home / "certs")
    config = home / "config.yaml"
    config.write_text((ROOT / "config.yaml").read_text())
    process = subprocess.Popen(
        [sys.executable, "-m", "tornado_status", "--config", str(config)],
        cwd="/",
        env={
            **plain_environment(),
            "TORNADO_STATUS_SERVER__PORT": "0",
            "TORNADO_STATUS_MANAGEMENT__PORT": "0",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        last = process.stdout.readline()
        assert last.startswith("Serving on https://localhost:")
        assert "multicast 239.255.66.66:6667 and broadcast 127.255.255.255:6667" in last
        assert f"--ca {home}/certs/ca.crt" in last
        assert (home / "var" / "postgresql" / "PG_VERSION").exists()
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        process.stdout.close()  # type: ignore[union-attr] # a pipe: asked for above


@pytest.mark.parametrize("listed", [True, False])
def test_in_a_folder_without_a_configuration_the_defaults_apply(
    certs: Path, tmp_path: Path, listed: bool
) -> None:
    """A revoked certificate gets 403; without a CRL it gets 204, with one warning in the log."""
    home = tmp_path / "home"
    shutil.copytree(certs, home / "certs")
    if listed:
        assert certs_gen(["revoke", "valid_user@example.com", "--out", str(home / "certs")]) == 0
    else:
        (home / "certs" / "ca.crl").unlink()
    process = subprocess.Popen(
        [sys.executable, "-m", "tornado_status"],
        cwd=home,
        env={
            **plain_environment(),
            "TORNADO_STATUS_SERVER__PORT": "0",
            "TORNADO_STATUS_MANAGEMENT__PORT": "0",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port, *_ = re.findall(r"https://localhost:(\d+)", process.stdout.readline())
        context = ssl.create_default_context(cafile=home / "certs" / "ca.crt")
        context.load_cert_chain(home / "certs" / "client.crt", home / "certs" / "client.key")
        connection = http.client.HTTPSConnection("localhost", int(port), context=context)
        connection.request("POST", "/api/client")
        assert connection.getresponse().status == (403 if listed else 204)
        connection.close()
    finally:
        process.terminate()
        _, log = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert len(re.findall("no config.yaml, the defaults apply", log)) == 1
    assert len(re.findall("tls.crl: no CRL, revoked certificates are accepted", log)) == (
        not listed
    )


@pytest.mark.parametrize("user", [65534, 123456])
def test_an_ordinary_user_can_run_it_all(certs: Path, user: int) -> None:
    """No root needed, with the embedded PostgreSQL; nor a name, as containers may have none."""
    require("root, to become an ordinary user", os.geteuid() == 0, "run as root, or see the others")
    setpriv = shutil.which("setpriv")
    require("setpriv", setpriv is not None, "Debian: util-linux")
    assert setpriv is not None
    directory = Path("/tmp") / f"tornado_status-{os.getpid()}-{user}"  # noqa: S108 - theirs, and 0700
    directory.mkdir(mode=0o700)
    try:
        theirs = directory / "certs"
        shutil.copytree(certs, theirs)
        for path in (directory, theirs, *theirs.iterdir()):
            os.chown(path, user, user)
        home = directory / "home"
        home.mkdir()
        os.chown(home, user, user)
        prefix = (setpriv, f"--reuid={user}", f"--regid={user}", "--clear-groups")
        can_run = [*prefix, sys.executable, "-c", "import pydantic"]
        if subprocess.run(can_run, check=False, capture_output=True).returncode != 0:
            # A Python or a checkout in root's own home: nothing that could be installed.
            pytest.skip(f"needs a Python that others may run: {sys.executable} is not")
        with running_server(
            home, theirs, EMBEDDED, prefix=prefix, environment={"HOME": str(home)}
        ) as server:
            assert server.request("POST", "/api/client").status == 204
            owner = Path(f"/proc/{postmaster(server)}").stat().st_uid
            assert owner == user
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"server": {"prot": 1}}, "server.prot: unknown key"),
        ({"server": {"port": "http"}}, "server.port: "),
        ({"announce": {"targets": [{"kind": "pigeon", "address": "10.0.0.1"}]}}, "targets[0].kind"),
        ({"database": {"url": "mysql://root:secret@db/x"}}, "database.url: expected 'embedded' or"),
        ({"tls": {"certificate": "/nowhere/server.crt"}}, "tls.certificate: no file"),
        ({"announce": {"targets": [{"kind": "multicast", "address": "239.1.1.1",
                                    "interfaces": ["nonesuch0"]}]}}, "'nonesuch0' does not exist"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_line_and_exit_2(
    certs: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    """The line names the key and what was expected, and shows no secret."""
    import yaml

    base: dict[str, Any] = {
        "tls": {
            "certificate": str(certs / "server.crt"),
            "private_key": str(certs / "server.key"),
            "client_ca": str(certs / "ca.crt"),
        },
        "server": {"port": 0, "host": LOOPBACK},
        "announce": {"signing_key": str(certs / "announcer.key")},
    }
    for section, values in settings.items():
        base[section] = {**base.get(section, {}), **values}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(base))
    line = one_line_error(run("--config", str(config)))
    assert message in line
    assert "secret" not in line


def test_a_missing_configuration_is_one_line_and_exit_2(tmp_path: Path) -> None:
    """It names the file."""
    line = one_line_error(run("--config", str(tmp_path / "nowhere.yaml")))
    assert "nowhere.yaml: cannot read the configuration: No such file or directory" in line


def test_a_key_of_another_certificate_is_one_line(certs: Path, start_server: StartServer) -> None:
    """tls.private_key is named."""
    server = start_server(wait=False, tls={"private_key": str(certs / "client.key")})
    assert server.process.wait(PATIENCE_S) == 2
    assert "tls.private_key: " in server.log.wait_end()


def test_a_taken_port_is_one_line_and_exit_2(start_server: StartServer) -> None:
    """The check-in port, and the UDP port of announcements: never a random one instead."""
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        server = start_server(wait=False, server={"port": port})
        assert server.process.wait(PATIENCE_S) == 2
        assert f"server.port: {port} is taken by another program" in server.log.wait_end()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((LOOPBACK, 0))
        port = taken.getsockname()[1]
        server = start_server(wait=False, announce={"source_port": port})
        assert server.process.wait(PATIENCE_S) == 2
        message = f"announce.source_port: UDP port {port} is taken by another program"
        assert message in server.log.wait_end()


def test_several_servers_announce_from_one_port(start_server: StartServer) -> None:
    """The source port is shared by those who know how to share it."""
    source_port = free_port(socket.SOCK_DGRAM)
    first = start_server(announce={"source_port": source_port})
    second = start_server(announce={"source_port": source_port})
    for server in (first, second):
        assert server.request("POST", "/api/client").status == 204


def test_a_data_directory_of_another_major_is_never_touched(
    start_server: StartServer, tmp_path: Path
) -> None:
    """One clear line instead of an initdb."""
    data_dir = tmp_path / "old"
    data_dir.mkdir()
    (data_dir / "PG_VERSION").write_text("9.6\n")
    server = start_server(url=EMBEDDED, wait=False, database={"data_dir": str(data_dir)})
    assert server.process.wait(PATIENCE_S) == 2
    assert "belongs to PostgreSQL 9.6" in server.log.wait_end()
    assert [path.name for path in data_dir.iterdir()] == ["PG_VERSION"]


def test_a_data_directory_with_other_files_is_never_touched(
    start_server: StartServer, tmp_path: Path
) -> None:
    """A mistyped path costs nobody their files."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    data_dir = str(tmp_path / "photos")
    server = start_server(url=EMBEDDED, wait=False, database={"data_dir": data_dir})
    assert server.process.wait(PATIENCE_S) == 2
    assert "is not empty and no PostgreSQL data directory" in server.log.wait_end()


def test_a_long_path_to_the_data_directory_works(start_server: StartServer, tmp_path: Path) -> None:
    """Unix sockets have short names only; the path of the data may be long."""
    data_dir = tmp_path / ("deep" * 20) / "postgresql"
    server = start_server(url=EMBEDDED, database={"data_dir": str(data_dir)})
    assert server.request("POST", "/api/client").status == 204


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        ("g2_9999", "generation 2, and this version can serve generation 1"),
        ("a1b2c3d4e5f6", "belongs to another program"),
    ],
)
def test_a_database_of_a_newer_generation_is_refused(
    start_server: StartServer, database_url: str, revision: str, said: str
) -> None:
    """Rather than written to in an older way; and so is another program's."""
    server = start_server()
    assert server.request("POST", "/api/client").status == 204
    server.stop()
    rows(database_url, "UPDATE alembic_version SET version_num = %s", revision)
    server = start_server(wait=False)
    assert server.process.wait(PATIENCE_S) == 2
    assert said in server.log.wait_end()
    assert rows(database_url, "SELECT count(*) FROM check_in") == [(1,)]


@pytest.mark.parametrize("word", ["version", "--version"])
def test_version_is_printed(word: str) -> None:
    """As a command, and as the option that most programs have."""
    result = run(word)
    assert result.returncode == 0
    assert result.stdout == f"tornado_status {__version__}\n"
