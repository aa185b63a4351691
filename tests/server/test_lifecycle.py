"""Starting, stopping, and what happens when something is missing, taken or killed."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    Postgres,
    StartServer,
    exchange,
    free_port,
    require,
    rows,
    run_command,
    wait_until,
)
from tornado_status import __version__


def one_line_error(result: subprocess.CompletedProcess[str]) -> str:
    """Check that a run ended as a command line error does, and return its line."""
    assert (result.returncode, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_a_signal_right_after_the_start_ends_it(start_server: StartServer) -> None:
    """At any point of the start: the database driver loses no cancellation."""
    for _ in range(5):
        assert start_server().stop() == 0


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


def test_the_log_says_which_database_is_away_and_when_it_is_back(
    start_server: StartServer, own_postgres: Postgres
) -> None:
    """With host, port and database, and how long it was away; at the start and later."""

    def told(times: int) -> None:
        wait_until(lambda: len(server.events("database is back")) == times, "the line")

    own_postgres.stop()
    url = own_postgres.url.replace("@", ":s3cret@", 1)
    server = start_server(url=url, wait=False, server={"port": free_port()})
    away = server.wait_event("database away, trying again")
    socket_path = own_postgres.directory / ".s.PGSQL.5432"
    assert away["reason"].startswith(f"{socket_path}, database postgres: No such file")
    assert away["away_s"] == 0
    wait_until(lambda: server.management("/readyz").status == 503, "the management port")
    assert server.management("/readyz").json["problems"] == [away["reason"]]
    for times in (1, 2):
        own_postgres.start()
        wait_until(lambda: server.management("/readyz").status == 200, "the recovery")
        told(times)
        assert server.events("database is back")[-1]["away_s"] > 0
        own_postgres.stop()
        assert server.request("POST", "/api/client").status == 503  # it notices now, not at a sweep
        wait_until(lambda: server.management("/readyz").status == 503, "the outage")
    assert server.stop() == 0
    assert "s3cret" not in server.log.wait_end()


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
    line = one_line_error(run_command("--config", str(config)))
    assert message in line
    assert "secret" not in line


def test_a_missing_configuration_is_one_line_and_exit_2(tmp_path: Path) -> None:
    """It names the file."""
    line = one_line_error(run_command("--config", str(tmp_path / "nowhere.yaml")))
    assert "nowhere.yaml: cannot read the configuration: No such file or directory" in line


def test_a_key_of_another_certificate_is_one_line(certs: Path, start_server: StartServer) -> None:
    """tls.private_key is named."""
    server = start_server(wait=False, tls={"private_key": str(certs / "client.key")})
    assert server.process.wait(PATIENCE_S) == 2
    assert "tls.private_key: " in server.log.wait_end()


def test_a_taken_port_is_one_line_and_exit_2(start_server: StartServer) -> None:
    """It names the program and its process id: never a random port instead."""
    me = f"{Path('/proc/self/comm').read_text().strip()}, process {os.getpid()}"
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        for section in ("server", "management"):
            server = start_server(wait=False, **{section: {"host": LOOPBACK, "port": port}})
            assert server.process.wait(PATIENCE_S) == 2
            message = f"{section}.port: {port} is taken by {me}: stop it, or set another port"
            assert message in server.log.wait_end()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((LOOPBACK, 0))
        port = taken.getsockname()[1]
        server = start_server(wait=False, announce={"source_port": port})
        assert server.process.wait(PATIENCE_S) == 2
        message = f"announce.source_port: UDP port {port} is taken by {me}: stop it, or"
        assert message in server.log.wait_end()


def test_a_second_server_names_the_first(start_server: StartServer) -> None:
    """Rather than "another program": it runs in another terminal."""
    first = start_server(prefix=("env",))  # not forked: it is known by its command line
    second = start_server(wait=False, server={"port": first.port})
    assert second.process.wait(PATIENCE_S) == 2
    message = f"taken by another tornado-status server, process {first.process.pid}: stop it"
    assert message in second.log.wait_end()


def test_a_privileged_port_says_how_to_have_it(start_server: StartServer) -> None:
    """And blames server.port, not server.host."""
    require("setpriv", os.geteuid() == 0, "run the tests as root")
    prefix = ("setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service")
    server = start_server(wait=False, prefix=prefix, server={"port": 443})
    assert server.process.wait(PATIENCE_S) == 2
    said = server.log.wait_end()
    assert "server.port: this user may not listen on 443: grant CAP_NET_BIND_SERVICE" in said
    assert "`sysctl net.ipv4.ip_unprivileged_port_start=443`" in said


def test_an_address_of_another_machine_is_blamed_on_the_host(start_server: StartServer) -> None:
    """It names the command that shows this machine's."""
    server = start_server(wait=False, server={"host": "192.0.2.1"})
    assert server.process.wait(PATIENCE_S) == 2
    message = "server.host: this machine has no address 192.0.2.1: `ip address` shows"
    assert message in server.log.wait_end()


def test_several_servers_announce_from_one_port(start_server: StartServer) -> None:
    """The source port is shared by those who know how to share it."""
    source_port = free_port(socket.SOCK_DGRAM)
    first = start_server(announce={"source_port": source_port})
    second = start_server(announce={"source_port": source_port})
    for server in (first, second):
        assert server.request("POST", "/api/client").status == 204


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        ("g3_9999", "generation 3, and this version can serve generation 2"),
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
    result = run_command(word)
    assert result.returncode == 0
    assert result.stdout == f"tornado-status {__version__}\n"
