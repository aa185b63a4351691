"""docs/backup.md: its commands, as they stand, save and bring back what was acknowledged."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import StartServer
from tests.pages import commands, run_in_bash
from tests.support import Postgres, Server, plain_environment, rows, wait_until
from tests.test_listener_cli import Listening, check_in, reading

pytestmark = pytest.mark.once

TOOLS, EMBEDDED, SHOW, DUMP, RESTORE, COPY, PUT_BACK, STANDBY, PROMOTE, REHEARSAL = (
    block.commands for block in commands("docs/backup.md")
)


class Operator:
    """Somebody in the directory of a checkout, with the page in their hands."""

    def __init__(self, here: Path, **variables: str) -> None:
        self.here = here
        here.mkdir(exist_ok=True)
        (here / ".venv").symlink_to(sys.prefix)
        self._environment = {**plain_environment(), **variables}

    def types(self, *blocks: str) -> str:
        """Run blocks of the page in one shell; return what they say."""
        return run_in_bash("".join(blocks), self.here, self._environment)

    def stream(self, *before: str) -> tuple[str, int]:
        """The stream and its largest number."""
        said = self.types(TOOLS, *before, SHOW)
        [(stream, head)] = re.findall(r"(?m)^stream (\S+)\nhead (\d+)$", said)
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
    """With the servers stopped; a listener shows one gap, and everybody's record behind it."""
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
        listener.wait_for_seq(4)
        wait_until(lambda: any(e["event"] == "gap" for e in listener.shown), "a gap")
        [gap] = [entry for entry in listener.shown if entry["event"] == "gap"]
        assert gap["stream"] == new
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
    operator.types(TOOLS, EMBEDDED, PUT_BACK)
    new, head = operator.stream()
    assert (new != old, head) == (True, 3)
    with embedded(start_server, operator) as server:
        assert events(server) == saved
        check_in(server, 1)
        assert recorded(server) == [1, 2, 3, 4]
        assert operator.stream() == (new, 4)


def test_the_server_goes_on_with_a_promoted_standby_by_itself(
    start_server: StartServer, own_postgres: Postgres, tmp_path: Path
) -> None:
    """Both are in its URL; what the standby had is kept, and a new stream begins."""
    variables = {"PGUSER": "postgres", "PGDATABASE": "postgres"}
    operator = Operator(tmp_path / "here", PGHOST=str(own_postgres.directory), **variables)
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
        second_operator = Operator(tmp_path / "there", PGHOST=str(second), **variables)
        second_operator.types(TOOLS, PROMOTE)
        wait_until(lambda: server.request("POST", "/api/client").status == 204, "check-ins")
        assert recorded(server) == [1, 2, 3, 4]
        new, head = operator.stream()
        assert (new != old, head) == (True, 4)
    finally:
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
        assert command.endswith("stream new")
        operator.types(TOOLS, EMBEDDED, restore + "\n")
        assert operator.stream() == (old, 1)
