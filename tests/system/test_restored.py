"""A database that goes back, or moves: numbers are given again, and no listener is misled."""

from __future__ import annotations

import contextlib
import shutil
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

pytestmark = pytest.mark.once


@contextlib.contextmanager
def both(server: Server, port: int) -> Iterator[tuple[Listening, Listening]]:
    """A listener that can ask the server, and one that cannot."""
    with (
        Listening(*reading(server, port=port)) as asking,
        Listening(*verifying(server.certs, port)) as alone,
    ):
        yield asking, alone


def one_gap(listener: Listening, last: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The only gap that it showed, once it has shown `last` behind it, and all that follows it."""

    def shown() -> bool:
        lines = listener.shown
        gaps = [number for number, entry in enumerate(lines) if entry["event"] == "gap"]
        return bool(gaps) and any(entry.get("seq") == last for entry in lines[gaps[0] :])

    wait_until(shown, f"a gap, and {last} behind it, in {listener.out.lines[-5:]}")
    lines = listener.shown
    [number] = [n for n, entry in enumerate(lines) if entry["event"] == "gap"]
    return lines[number], lines[number + 1 :]


def test_a_database_put_back_to_an_older_state_begins_a_new_stream(
    start_server: StartServer, own_postgres: Postgres, tmp_path: Path
) -> None:
    """By `log new`: nothing in a copy of the data says that it is one. One gap tells it."""
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
    with both(again, port) as (asking, alone):
        check_in(again, 5)
        for listener in (asking, alone):
            listener.wait_for_seq(15)
        old = log_command(again.settings, tmp_path)
        assert old["head"] == "15"
        again.stop()
        own_postgres.stop()
        shutil.rmtree(own_postgres.directory)
        backup.rename(own_postgres.directory)
        own_postgres.start()
        # Without the command it would go on as if nothing had been: the same stream, older.
        assert log_command(again.settings, tmp_path) == {
            **old,
            "head": "10",
            "at": stream_at(again),
        }
        new = log_command(again.settings, tmp_path, "new")
        assert new["log"] != old["log"]
        assert new["head"] == "10"
        assert log_command(again.settings, tmp_path, "show") == new
        third = start_server(url=own_postgres.url, server={"port": again.port}, announce=announce)
        check_in(third, 3)
        for listener in (asking, alone):
            gap, rest = one_gap(listener, 13)
            assert gap["log"] == new["log"]
            updates = [entry for entry in rest if entry["event"] != "snapshot"]
            assert updates == log_of(third, after=gap["to"])  # whatever is behind the gap, all
        gap, rest = one_gap(asking, 13)
        snapshot = [entry for entry in rest if entry["event"] == "snapshot"]
        assert len(snapshot) <= 1  # of one user, unless an update came between
        assert {entry["email"] for entry in rest} == {"valid_user@example.com"}
        for listener in (asking, alone):
            listener.stop()


def stream_at(server: Server) -> str:
    """When the newest entry of the log was made, as the database knows it."""
    [(moment,)] = server.rows(
        "SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM head"
    )
    return str(moment)


def test_a_promoted_standby_begins_a_new_stream_by_itself(
    start_server: StartServer, own_postgres: Postgres, tmp_path: Path
) -> None:
    """It had not heard the last five when the primary went: their numbers are handed out again."""
    own_postgres.stop()
    standby = Postgres(tmp_path / "standby")
    shutil.copytree(own_postgres.directory, standby.directory, symlinks=True)
    own_postgres.start()
    (standby.directory / "standby.signal").touch()
    with (standby.directory / "postgresql.auto.conf").open("a") as file:
        file.write(f"primary_conninfo = 'host={own_postgres.directory} user=postgres'\n")
    first = start_server(url=own_postgres.url)
    port = first.announce_port
    announce = {"targets": targets(port), "heartbeat_s": 1}
    try:
        standby.start()
        with both(first, port) as (asking, alone):
            check_in(first, 10)
            copied = "SELECT seq FROM head"
            wait_until(lambda: head_of(standby, copied) == 10, "the standby to follow")
            standby.stop()
            check_in(first, 5)
            for listener in (asking, alone):
                listener.wait_for_seq(15)
            old = log_command(first.settings, tmp_path)
            first.stop()
            own_postgres.stop()
            standby.start()
            rows(standby.url, "SELECT pg_promote()")
            second = start_server(url=standby.url, server={"port": first.port}, announce=announce)
            new = log_command(second.settings, tmp_path)
            assert new["log"] != old["log"]
            assert new["head"] == "10"
            check_in(second, 3)
            for listener in (asking, alone):
                gap, rest = one_gap(listener, 13)
                assert gap["log"] == new["log"]
                updates = [entry for entry in rest if entry["event"] != "snapshot"]
                assert updates == log_of(second, after=gap["to"])
                listener.stop()
            # It is the promotion that did it: a restart alone changes nothing.
            second.stop()
            third = start_server(url=standby.url)
            assert log_command(third.settings, tmp_path)["log"] == new["log"]
    finally:
        standby.stop()


def head_of(database: Postgres, sql: str) -> int:
    try:
        return int(rows(database.url, sql)[0][0])
    except (psycopg2.Error, IndexError):  # not there yet: the table, or the row
        return 0


def test_a_server_that_runs_follows_a_new_stream(start_server: StartServer, tmp_path: Path) -> None:
    """At once, and no check-in is announced, or numbered, in the old one afterwards."""
    server = start_server()
    with Heard(server.announce_port) as heard, Listening(*reading(server)) as listener:
        check_in(server, 5)
        listener.wait_for_seq(5)
        old = log_command(server.settings, tmp_path)["log"]
        new = log_command(server.settings, tmp_path, "new")["log"]
        assert new != old
        connection = server.connect()

        def accepted() -> bool:
            return exchange(connection, "POST", "/api/client").status == 204

        wait_until(accepted, "check-ins after the reconnection")
        connection.close()
        gap, _ = one_gap(listener, 6)
        assert gap["log"] == new
        listener.stop()
        streams = []
        seqs: list[int] = []
        while 6 not in seqs:
            payload, _ = heard.one()
            message = yaml.safe_load(payload)
            seqs += [update["seq"] for update in updates_in(payload)]
            streams.append(message["log"])
        assert streams[0] == old
        assert streams[-1] == new
        assert streams == sorted(streams, key=[old, new].index)


def test_the_embedded_database_shows_its_stream_running_or_not(
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
def test_no_stream_is_told_in_one_line(
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
