"""A database that goes back, or moves: the log goes on, or what is lost is rolled back."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import yaml

from tests.support.announced import updates_in
from tests.support.harness import (
    Heard,
    Postgres,
    Server,
    StartServer,
    exchange,
    rows,
    targets,
    wait_until,
)
from tests.support.listening import Listening, check_in, log_of, reading, verifying
from tests.support.log_command import log_command, run_log_command
from tests.support.subscriber import Subscriber
from tornado_status.store.database import parse_url
from tornado_status.store.embedded import binaries

pytestmark = pytest.mark.once


class Readers:
    """A listener that can ask the server, one that cannot, and a live stream that is resumed."""

    def __init__(self, server: Server, port: int) -> None:
        self.asking = Listening(*reading(server, port=port))
        self.alone = Listening(*verifying(server.certs, port))
        self.streamed: list[dict[str, Any]] = []
        self._last_id = str(server.request("GET", "/api/log", cert="operator").json["head"])

    def __enter__(self) -> Readers:
        self.asking.__enter__()
        self.alone.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.asking.__exit__(None, None, None)
        self.alone.__exit__(None, None, None)

    def have(self, server: Server, expected: list[dict[str, Any]]) -> None:
        """Check that each of them has shown exactly this so far, snapshots apart."""
        for listener in (self.asking, self.alone):
            show_all(listener, expected)
        with Subscriber(server, last=self._last_id) as subscriber:
            while len(self.streamed) < len(expected):
                self.streamed.append(subscriber.expect().data)
            self._last_id = subscriber.last_id
        assert self.streamed == expected


def show_all(listener: Listening, expected: list[dict[str, Any]]) -> None:
    wait_until(lambda: len(plain(listener)) >= len(expected), f"{expected[-1]}")
    assert plain(listener) == expected, listener.said.lines


def plain(listener: Listening) -> list[dict[str, Any]]:
    return [entry for entry in listener.shown if entry["event"] != "snapshot"]


def lost(first: int, last: int, log_id: str) -> dict[str, Any]:
    return {"event": "rollback", "from": first, "to": last, "log": log_id}


def test_a_database_put_back_to_an_older_state_rolls_back_what_is_lost(
    start_server: StartServer, own_postgres: Postgres, tmp_path: Path
) -> None:
    """By `log new`: nothing in a copy of the data says that it is one."""
    announce: dict[str, Any] = {"targets": targets(6667), "heartbeat_s": 1}
    first = start_server(url=own_postgres.url)
    port = first.announce_port
    announce["targets"] = targets(port)
    check_in(first, 10)
    first.stop()
    own_postgres.stop()
    backup = tmp_path / "backup"
    shutil.copytree(own_postgres.directory, backup, symlinks=True)

    own_postgres.start()
    again = start_server(url=own_postgres.url, announce=announce)
    with Readers(again, port) as readers:
        check_in(again, 5)
        before = log_of(again, after=10)
        readers.have(again, before)
        old = log_command(again.settings, tmp_path)
        assert old["head"] == "15"
        again.stop()
        own_postgres.stop()
        shutil.rmtree(own_postgres.directory)
        shutil.move(backup, own_postgres.directory)
        own_postgres.start()
        # Without the command it would go on as if nothing had been: the same log, older.
        assert log_command(again.settings, tmp_path) == {
            **old,
            "head": "10",
            "at": head_at(again),
        }
        new = log_command(again.settings, tmp_path, "new")
        assert new["log"] != old["log"]
        assert new["head"] == "10"
        assert log_command(again.settings, tmp_path, "show") == new
        third = start_server(url=own_postgres.url, server={"port": again.port}, announce=announce)
        check_in(third, 3)
        after = log_of(third, after=10)
        readers.have(third, [*before, lost(11, 15, new["log"]), *after])
        # Only what the server could say of the user before the new check-ins.
        snapshot = [entry for entry in readers.asking.shown if entry["event"] == "snapshot"]
        assert len(snapshot) <= 1
        for listener in (readers.asking, readers.alone):
            assert listener.stop().endswith(" 0 missed, lag 0.")


def head_at(server: Server) -> str:
    """When the newest entry of the log was made, as the database knows it."""
    [(moment,)] = server.rows(
        "SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM head"
    )
    return str(moment)


@pytest.fixture
def standby(own_postgres: Postgres, tmp_path: Path) -> Iterator[Postgres]:
    """A standby of `own_postgres`, not started."""
    own_postgres.stop()
    standby = Postgres(tmp_path / "standby")
    shutil.copytree(own_postgres.directory, standby.directory, symlinks=True)
    own_postgres.start()
    (standby.directory / "standby.signal").touch()
    with (standby.directory / "postgresql.auto.conf").open("a") as file:
        file.write(f"primary_conninfo = 'host={own_postgres.directory} user=postgres'\n")
    yield standby
    standby.stop()


def wait_for_head(standby: Postgres, head: int) -> None:
    wait_until(lambda: head_of(standby, "SELECT seq FROM head") == head, "the standby to follow")


@pytest.mark.parametrize("behind", [0, 5])
def test_a_promoted_standby_goes_on_with_the_log(
    start_server: StartServer,
    own_postgres: Postgres,
    standby: Postgres,
    tmp_path: Path,
    behind: int,
) -> None:
    """Readers notice nothing, or lose the last five, which the standby had not received."""
    first = start_server(url=own_postgres.url)
    port = first.announce_port
    announce = {"targets": targets(port), "heartbeat_s": 1}
    standby.start()
    with Readers(first, port) as readers:
        check_in(first, 10)
        wait_for_head(standby, 10)
        if behind:
            standby.stop()
        check_in(first, 5)
        before = log_of(first)
        readers.have(first, before)
        if not behind:
            wait_for_head(standby, 15)
        old = log_command(first.settings, tmp_path)
        first.stop()
        own_postgres.stop()
        if behind:
            standby.start()
        rows(standby.url, "SELECT pg_promote()")
        second = start_server(url=standby.url, server={"port": first.port}, announce=announce)
        new = log_command(second.settings, tmp_path)
        assert new["log"] != old["log"]
        fork = 15 - behind
        assert new["head"] == str(fork)
        [step] = second.request("GET", "/api/log", cert="operator").json["lineage"]
        assert (step["log"], step["parent"], step["fork"]) == (new["log"], old["log"], fork)
        check_in(second, 3)
        rollback = [lost(11, 15, new["log"])] if behind else []
        readers.have(second, [*before, *rollback, *log_of(second, after=fork)])
        snapshots = [entry for entry in readers.asking.shown if entry["event"] == "snapshot"]
        assert behind or snapshots == []
        for listener in (readers.asking, readers.alone):
            assert listener.stop().endswith(" 0 missed, lag 0.")
        # It is the promotion that did it: a restart alone changes nothing.
        second.stop()
        third = start_server(url=standby.url)
        assert log_command(third.settings, tmp_path)["log"] == new["log"]


def test_a_crash_and_a_promotion_of_the_same_node_lose_nothing(
    start_server: StartServer, own_postgres: Postgres, tmp_path: Path
) -> None:
    """As Patroni restarts it: the timeline moves, although no other node took over."""
    server = start_server(url=own_postgres.url, announce={"heartbeat_s": 1})
    with Readers(server, server.announce_port) as readers:
        check_in(server, 5)
        old = log_command(server.settings, tmp_path)
        own_postgres.kill()
        (own_postgres.directory / "standby.signal").touch()
        own_postgres.start()
        assert rows(own_postgres.url, "SELECT pg_promote()") == [(True,)]
        connection = server.connect()
        wait_until(
            lambda: exchange(connection, "POST", "/api/client").status == 204,
            "check-ins after the promotion",
        )
        connection.close()
        check_in(server, 4)
        new = log_command(server.settings, tmp_path)
        assert new["log"] != old["log"]
        readers.have(server, log_of(server))
        for listener in (readers.asking, readers.alone):
            assert listener.stop().endswith(" 0 missed, lag 0.")


def test_a_dump_restored_under_a_running_server_begins_a_new_log_by_itself(
    start_server: StartServer, own_postgres: Postgres, tmp_path: Path
) -> None:
    """Before it numbers anything: its head is below what it knows. `log new` then costs nothing."""
    server = start_server(url=own_postgres.url, announce={"heartbeat_s": 1})
    with Readers(server, server.announce_port) as readers:
        check_in(server, 5)
        dump = tmp_path / "status.dump"
        tools, _ = binaries.find_binaries()
        database = parse_url(own_postgres.url)
        where = ["--host", database["host"], "--username", database["user"]]
        name = database["dbname"]
        subprocess.run(
            [tools / "pg_dump", *where, "--format=custom", f"--file={dump}", name], check=True
        )
        check_in(server, 5)
        before = log_of(server)
        readers.have(server, before)
        restore = ["--clean", "--if-exists", "--no-owner", "--single-transaction"]
        subprocess.run(
            [tools / "pg_restore", *where, *restore, f"--dbname={name}", dump], check=True
        )
        connection = server.connect()
        wait_until(
            lambda: exchange(connection, "POST", "/api/client").status == 204,
            "check-ins after the restore",
        )
        connection.close()
        found = server.request("GET", "/api/log", cert="operator").json
        assert [step["fork"] for step in found["lineage"]] == [5]
        expected = [*before, lost(6, 10, found["log"]), *log_of(server, after=5)]
        readers.have(server, expected)
        log_command(server.settings, tmp_path, "new")
        connection = server.connect()
        wait_until(
            lambda: exchange(connection, "POST", "/api/client").status == 204,
            "check-ins in the next log",
        )
        connection.close()
        readers.have(server, [*expected, log_of(server)[-1]])


def head_of(database: Postgres, sql: str) -> int:
    try:
        return int(rows(database.url, sql)[0][0])
    except (psycopg2.Error, IndexError):  # not there yet: the table, or the row
        return 0


def test_a_server_that_runs_follows_a_new_log(start_server: StartServer, tmp_path: Path) -> None:
    """At once, and no check-in is announced, or numbered, in the old one afterwards."""
    server = start_server(announce={"heartbeat_s": 1})
    with Heard(server.announce_port) as heard, Readers(server, server.announce_port) as readers:
        check_in(server, 5)
        readers.have(server, log_of(server))
        old = log_command(server.settings, tmp_path)["log"]
        new = log_command(server.settings, tmp_path, "new")["log"]
        assert new != old
        connection = server.connect()

        def accepted() -> bool:
            return exchange(connection, "POST", "/api/client").status == 204

        wait_until(accepted, "check-ins after the reconnection")
        connection.close()
        readers.have(server, log_of(server))
        logs = []
        seqs: list[int] = []
        while 6 not in seqs:
            payload, _ = heard.one()
            message = yaml.safe_load(payload)
            seqs += [update["seq"] for update in updates_in(payload)]
            logs.append(message["log"])
        assert logs[0] == old
        assert logs[-1] == new
        assert logs == sorted(logs, key=[old, new].index)


def test_the_embedded_database_shows_its_log_running_or_not(
    start_server: StartServer, tmp_path: Path
) -> None:
    """Through the running one's socket, else started for the question, and stopped."""
    server = start_server(url="embedded")
    assert server.request("POST", "/api/client").status == 204
    running = log_command(server.settings, tmp_path)
    assert running["head"] == "1"
    assert server.request("POST", "/api/client").status == 204
    server.stop()
    stopped = log_command(server.settings, tmp_path)
    assert (stopped["log"], stopped["head"]) == (running["log"], "2")
    data = Path(server.settings["database"]["data_dir"])
    assert not (data / "postmaster.pid").exists()
    assert log_command(server.settings, tmp_path, "new")["log"] != running["log"]


@pytest.mark.parametrize("action", ["show", "new"])
def test_no_log_is_told_in_one_line(
    start_server: StartServer, postgres: str, tmp_path: Path, action: str
) -> None:
    """Before the first start, and where there is no database: nothing is created."""
    settings: dict[str, Any] = {"database": {"url": "embedded", "data_dir": str(tmp_path / "no")}}
    done = run_log_command(settings, tmp_path, action)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "start the server once" in done.stderr
    assert not (tmp_path / "no").exists()
    name = f"empty_{action}"
    rows(postgres, f"CREATE DATABASE {name}")
    settings = {"database": {"url": postgres.replace("/postgres?", f"/{name}?")}}
    done = run_log_command(settings, tmp_path, action)
    assert done.returncode == 2
    assert done.stderr == "tornado-status: database.url: no log yet: start the server once\n"
    settings = {"database": {"url": f"postgresql:///x?host={tmp_path}", "connect_timeout_s": 1}}
    done = run_log_command(settings, tmp_path, action)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
