"""docs/backup.md: its commands, as they stand, save and bring back what was acknowledged."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.harness import (
    PATIENCE_S,
    ROOT,
    Postgres,
    Server,
    StartServer,
    plain_environment,
    rows,
    wait_until,
)
from tests.support.listening import Listening, check_in, reading
from tests.support.pages import commands, run_in_bash

pytestmark = pytest.mark.once

(TOOLS, EMBEDDED, SHOW, DUMP, RESTORE, ELSEWHERE, COPY, PUT_BACK, NEW, *OTHERS) = (
    block.commands for block in commands("docs/backup.md")
)
ARCHIVE, BASE, RECOVER, RESET, STANDBY, PROMOTE, REHEARSAL = OTHERS


class Operator:
    """A reader of the page in the directory of a checkout."""

    def __init__(self, here: Path, **variables: str) -> None:
        self.here = here
        here.mkdir(exist_ok=True)
        (here / ".venv").symlink_to(sys.prefix)
        activated = {"PATH": f"{here}/.venv/bin:{os.environ['PATH']}"}
        self._environment = {**plain_environment(), **activated, **variables}

    def types(self, *blocks: str) -> str:
        """Run blocks of the page in one shell; return what they say."""
        return run_in_bash("".join(blocks), self.here, self._environment)

    def stream(self, *before: str) -> tuple[str, int]:
        """The stream and its largest number."""
        said = self.types(TOOLS, *before, SHOW)
        [(stream, head)] = re.findall(r"(?m)^log (\S+)\nhead (\d+)$", said)
        return stream, int(head)


def configure(operator: Operator, server: Server) -> None:
    """Lay the running server's settings where the page's commands look for them."""
    (operator.here / "config.yaml").write_text(yaml.safe_dump(server.settings))


def recorded(server: Server) -> list[int]:
    return [event["seq"] for event in events(server)]


def events(server: Server) -> list[dict[str, int]]:
    found: list[dict[str, int]] = server.request("GET", "/api/events", cert="operator").json[
        "events"
    ]
    return found


@contextlib.contextmanager
def embedded(start: StartServer, operator: Operator) -> Iterator[Server]:
    """A server on the embedded PostgreSQL of the operator's checkout."""
    server = start(url="embedded", database={"data_dir": str(operator.here / "var" / "postgresql")})
    configure(operator, server)
    yield server
    server.stop()


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path / "here")


def test_a_dump_brings_the_embedded_database_back(
    start_server: StartServer, operator: Operator
) -> None:
    """While the server runs: the log as it was, a new stream, and check-ins go on."""
    with embedded(start_server, operator) as server:
        check_in(server, 3)
        saved = events(server)
        operator.types(TOOLS, EMBEDDED, DUMP)
        check_in(server, 2)
        assert recorded(server) == [1, 2, 3, 4, 5]
        old, head = operator.stream()
        assert head == 5
        operator.types(TOOLS, EMBEDDED, RESTORE)
        new, head = operator.stream()
        assert (new != old, head) == (True, 3)
        wait_until(lambda: server.request("POST", "/api/client").status == 204, "check-ins")
        assert recorded(server)[-1] == 4
        assert events(server)[:3] == saved
        said = operator.types(TOOLS, EMBEDDED, REHEARSAL)
        assert re.search(r"(?m)^\s+3 \| ", said)


def test_a_dump_brings_a_database_of_ones_own_back(
    start_server: StartServer, database_url: str, tmp_path: Path
) -> None:
    """With the servers stopped; a listener shows one rollback of what is lost."""
    [host] = re.findall(r"host=([^&]+)", database_url)
    name = database_url.partition("/test_")[2].partition("?")[0]
    variables = {"PGHOST": host, "PGUSER": "postgres", "PGDATABASE": f"test_{name}"}
    operator = Operator(tmp_path / "here", **variables)
    server = start_server()
    configure(operator, server)
    port = server.announce_port
    check_in(server, 3)
    operator.types(TOOLS, DUMP)
    with Listening(*reading(server, port=port)) as listener:
        check_in(server, 2)
        listener.wait_for_seq(5)
        server.stop()
        operator.types(TOOLS, RESTORE)
        new, head = operator.stream()
        assert head == 3
        announce = server.settings["announce"]
        again = start_server(server={"port": server.port}, announce=announce)
        check_in(again, 1)
        wait_until(
            lambda: listener.shown[-1].get("seq") == 4 and len(listener.shown) > 3, "number 4"
        )
        shown = [e for e in listener.shown if e["event"] not in ("check-in", "snapshot")]
        assert shown == [{"event": "rollback", "from": 4, "to": 5, "log": new}]
        assert [e["seq"] for e in listener.shown if e["event"] == "check-in"] == [4, 5, 4]
        assert recorded(again) == [1, 2, 3, 4]
        listener.stop()


def test_a_copy_of_the_files_brings_the_embedded_database_back(
    start_server: StartServer, operator: Operator
) -> None:
    """Copied while it ran, put back with the server stopped."""
    with embedded(start_server, operator) as server:
        check_in(server, 3)
        saved = events(server)
        operator.types(TOOLS, EMBEDDED, COPY)
        check_in(server, 2)
        old, _ = operator.stream()
    operator.types(TOOLS, EMBEDDED, PUT_BACK, NEW)
    new, head = operator.stream()
    assert (new != old, head) == (True, 3)
    with embedded(start_server, operator) as server:
        assert events(server) == saved
        check_in(server, 1)
        assert recorded(server) == [1, 2, 3, 4]
        assert operator.stream() == (new, 4)


def test_the_server_goes_on_with_a_promoted_standby_by_itself(
    start_server: StartServer, own_postgres: Postgres
) -> None:
    """Both are in its URL; what the standby had is kept, and a new stream begins."""
    variables = {"PGUSER": "postgres", "PGDATABASE": "postgres"}
    operator = Operator(
        own_postgres.directory.parent / "here", PGHOST=str(own_postgres.directory), **variables
    )
    operator.types(TOOLS, STANDBY)
    for socket in (operator.here / "standby").glob(".s.PGSQL.*"):
        socket.unlink()  # the primary's, which is in its data directory here
    standby = Postgres(operator.here / "standby")
    first, second = own_postgres.directory, standby.directory
    server = start_server(url=f"postgresql:///postgres?user=postgres&host={first},{second}")
    configure(operator, server)
    try:
        standby.start()
        check_in(server, 3)
        old, _ = operator.stream()
        reached = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn = sent_lsn"

        def caught_up() -> bool:
            there = "SELECT to_regclass('head') IS NOT NULL"
            return (
                rows(own_postgres.url, reached) == [(1,)]
                and rows(standby.url, there) == [(True,)]
                and rows(standby.url, "SELECT seq FROM head") == [(3,)]
            )

        wait_until(caught_up, "the standby to follow")
        own_postgres.stop()
        second_operator = Operator(
            own_postgres.directory.parent / "there", PGHOST=str(second), **variables
        )
        second_operator.types(TOOLS, PROMOTE)
        wait_until(lambda: server.request("POST", "/api/client").status == 204, "check-ins")
        assert recorded(server) == [1, 2, 3, 4]
        new, head = operator.stream()
        assert (new != old, head) == (True, 4)
        # The first comes back as the standby of the second, and nothing else changes.
        second_operator.types(TOOLS, STANDBY)
        for socket in (second_operator.here / "standby").glob(".s.PGSQL.*"):
            socket.unlink()
        shutil.rmtree(own_postgres.directory)
        (second_operator.here / "standby").rename(own_postgres.directory)
        own_postgres.start()
        check_in(server, 1)
        head_of_first = "SELECT seq, pg_is_in_recovery() FROM head"
        wait_until(lambda: rows(own_postgres.url, head_of_first) == [(5, True)], "the first")
        assert recorded(server) == [1, 2, 3, 4, 5]
        assert operator.stream() == (new, 5)
    finally:
        own_postgres.stop()  # before what it follows
        standby.stop()


def test_a_restore_without_a_new_stream_is_what_the_page_warns_of(
    start_server: StartServer, operator: Operator
) -> None:
    """The same stream, older: the command in the page is needed."""
    with embedded(start_server, operator) as server:
        check_in(server, 1)
        operator.types(TOOLS, EMBEDDED, DUMP)
        check_in(server, 1)
        old, _ = operator.stream()
        restore, _, command = RESTORE.rstrip("\n").rpartition("\n")
        assert command.endswith("log new")
        operator.types(TOOLS, EMBEDDED, restore + "\n")
        assert operator.stream() == (old, 1)


def owning(postgres: Postgres, directory: Path) -> Operator:
    """The operator of a PostgreSQL of one's own, on its machine."""
    here = {"PGHOST": str(postgres.directory), "PGDATA": str(postgres.directory)}
    return Operator(directory, PGUSER="postgres", PGDATABASE="postgres", **here)


@contextlib.contextmanager
def serving(
    start: StartServer, operator: Operator, url: str, **settings: object
) -> Iterator[Server]:
    """A server on a PostgreSQL of one's own."""
    server = start(url=url, **settings)
    configure(operator, server)
    yield server
    server.stop()


def test_a_dump_moves(start_server: StartServer, own_postgres: Postgres, tmp_path: Path) -> None:
    """From an embedded one to one of one's own, and to another embedded one: a stream in each."""
    first, second = Operator(tmp_path / "here"), owning(own_postgres, tmp_path / "there")
    with embedded(start_server, first) as server:
        check_in(server, 3)
        saved = events(server)
        first.types(TOOLS, EMBEDDED, DUMP)
        streams = [first.stream()[0]]
    moved = "export PGDATABASE=moved\n"
    (second.here / "status.dump").write_bytes((first.here / "status.dump").read_bytes())
    second.types(TOOLS, moved, ELSEWHERE)
    with serving(start_server, second, own_postgres.url.replace("/postgres?", "/moved?")) as server:
        assert events(server) == saved
        check_in(server, 1)
        streams.append(second.stream()[0])
        second.types(TOOLS, moved, DUMP)
    third = Operator(tmp_path / "3")  # a short path: the socket is in it
    (third.here / "status.dump").write_bytes((second.here / "status.dump").read_bytes())
    with embedded(start_server, third) as server:
        third.types(TOOLS, EMBEDDED, RESTORE)
        wait_until(lambda: server.request("POST", "/api/client").status == 204, "check-ins")
        assert recorded(server) == [1, 2, 3, 4, 5]
        streams.append(third.stream()[0])
    assert len(set(streams)) == 3


def test_a_copy_of_the_files_moves_to_another_machine(
    start_server: StartServer, operator: Operator, tmp_path: Path
) -> None:
    """It goes on there; without `log new` it would be the same stream twice."""
    with embedded(start_server, operator) as server:
        check_in(server, 3)
        operator.types(TOOLS, EMBEDDED, COPY)
        old, _ = operator.stream()
    there = Operator(tmp_path / "there")
    (there.here / "var" / "postgresql").mkdir(parents=True)
    (operator.here / "copy").rename(there.here / "copy")
    for name in ("config.yaml",):
        text = (operator.here / name).read_text()
        (there.here / name).write_text(text.replace(str(operator.here), str(there.here)))
    there.types(TOOLS, EMBEDDED, PUT_BACK)
    assert there.stream() == (old, 3)
    there.types(TOOLS, EMBEDDED, NEW)
    new, head = there.stream()
    assert (new != old, head) == (True, 3)
    with embedded(start_server, there) as server:
        check_in(server, 1)
        assert recorded(server) == [1, 2, 3, 4]
        assert there.stream() == (new, 4)


def test_a_copy_of_the_files_brings_a_database_of_ones_own_back(
    start_server: StartServer, own_postgres: Postgres, tmp_path: Path
) -> None:
    operator = owning(own_postgres, tmp_path / "here")
    with serving(start_server, operator, own_postgres.url) as server:
        check_in(server, 3)
        operator.types(TOOLS, COPY)
        check_in(server, 2)
        old, _ = operator.stream()
    own_postgres.stop()
    operator.types(TOOLS, PUT_BACK)
    own_postgres.start()
    operator.types(TOOLS, NEW)
    new, head = operator.stream()
    assert (new != old, head) == (True, 3)
    with serving(start_server, operator, own_postgres.url) as server:
        check_in(server, 1)
        assert recorded(server) == [1, 2, 3, 4]


def moment(url: str) -> str:
    """The database's clock, as an operator would write it down."""
    [(text,)] = rows(url, "SELECT (clock_timestamp() AT TIME ZONE 'UTC')::text || ' UTC'")
    return str(text)


def recover(when: str | None) -> str:
    """The page's block, with the moment that is wanted, or without one."""
    [example] = re.findall(r'MOMENT="(.*)"', RECOVER)
    if when is not None:
        return RECOVER.replace(example, when)
    assert "\nrecovery_target_time" in RECOVER
    return re.sub(r"(?m)^recovery_target_time.*\n", "", RECOVER)


def give_archive(operator: Operator, data_dir: Path) -> None:
    """Give it to the user that PostgreSQL runs as, which is another one if this is root."""
    owner = data_dir.stat()
    os.chown(operator.here / "archive", owner.st_uid, owner.st_gid)


def test_the_embedded_database_is_recovered_to_a_point_in_time(
    start_server: StartServer, operator: Operator
) -> None:
    """The moment before two that are unwanted: a copy, the archive behind it, a new stream."""
    with embedded(start_server, operator):
        operator.types(TOOLS, EMBEDDED, ARCHIVE)
        give_archive(operator, operator.here / "var" / "postgresql")
    with embedded(start_server, operator) as server:
        check_in(server, 3)
        operator.types(TOOLS, EMBEDDED, BASE)
        assert list((operator.here / "archive").iterdir())
        check_in(server, 2)
        saved = events(server)
        url = f"postgresql://postgres@/tornado_status?host={operator.here}/var/postgresql"
        when = moment(url)
        check_in(server, 2)
        old, head = operator.stream()
        assert head == 7
    operator.types(TOOLS, EMBEDDED, recover(when))
    with embedded(start_server, operator) as server:
        assert events(server) == saved
        new, head = operator.stream()
        assert (new != old, head) == (True, 5)
        check_in(server, 1)
        assert recorded(server) == [1, 2, 3, 4, 5, 6]
        operator.types(TOOLS, EMBEDDED, RESET)
        said = rows(url, "SELECT name FROM pg_file_settings WHERE name ~ '^(recovery|restore)_'")
        assert said == []


def test_a_database_of_ones_own_is_recovered_to_its_end_after_a_crash(
    start_server: StartServer, own_postgres: Postgres
) -> None:
    """All that was acknowledged, also what was not archived yet; a listener notices nothing."""
    operator = owning(own_postgres, own_postgres.directory.parent / "here")
    operator.types(TOOLS, ARCHIVE)
    give_archive(operator, own_postgres.directory)
    own_postgres.stop()
    own_postgres.start()
    with serving(start_server, operator, own_postgres.url) as server:
        port = server.announce_port
        check_in(server, 3)
        operator.types(TOOLS, BASE)
        check_in(server, 4)
        old, head = operator.stream()
        assert head == 7
        with Listening(*reading(server, port=port)) as listener:
            check_in(server, 1)
            listener.wait_for_seq(8)
            own_postgres.kill()
            server.stop()
            assert list((operator.here / "archive").iterdir())
            operator.types(TOOLS, recover(None))
            own_postgres.start()
            ready = "SELECT NOT pg_is_in_recovery()"
            wait_until(lambda: rows(own_postgres.url, ready) == [(True,)], "the recovery's end")
            again = {"server": {"port": server.port}, "announce": server.settings["announce"]}
            with serving(start_server, operator, own_postgres.url, **again) as second:
                check_in(second, 1)
                assert recorded(second) == list(range(1, 10))
                new, head = operator.stream()
                assert (new != old, head) == (True, 9)
                listener.wait_for_seq(9)
                assert [entry["seq"] for entry in listener.shown] == [8, 9]
                listener.stop()


# As the server starts it, but with less patience, and an archive that is slow to answer.
IMPATIENT = """
import asyncio, pathlib, sys
from tornado_status.config.settings import LoggingSettings
from tornado_status.observe import logging_setup
from tornado_status.store.embedded import postgres

async def main() -> None:
    logging_setup.configure(LoggingSettings(level="info"))
    postgres.START_TIMEOUT_S = 1.0
    database = postgres.EmbeddedPostgres(pathlib.Path(sys.argv[1]))
    await database.start()
    await database.stop()

asyncio.run(main())
"""


def test_a_recovery_may_take_longer_than_a_start(
    start_server: StartServer, operator: Operator
) -> None:
    """Not so anything else that keeps the embedded PostgreSQL from starting."""
    with embedded(start_server, operator):
        operator.types(TOOLS, EMBEDDED, ARCHIVE)
        give_archive(operator, operator.here / "var" / "postgresql")
    with embedded(start_server, operator) as server:
        operator.types(TOOLS, EMBEDDED, BASE)
        check_in(server, 3)
    slow = recover(None).replace("= 'cp ", "= 'sleep 2; cp ")
    operator.types(TOOLS, EMBEDDED, slow)
    data = operator.here / "var" / "postgresql"
    start = [sys.executable, "-W", "error", "-c", IMPATIENT, str(data)]

    def started() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            start, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    done = started()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("recovering the database from its archive") == 1
    assert not (data / "recovery.signal").exists()
    with (data / "postgresql.auto.conf").open("a") as file:
        file.write("hot_standby = off\n")
    (data / "standby.signal").touch()  # it never becomes one that can be written to
    done = started()
    assert done.returncode == 1
    assert "is not ready after 1 s" in done.stderr
