"""A PostgreSQL that does not tell which one it is, as managed ones may: served, with a warning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.doctor_setup import DoctorSetup
from tests.support.harness import Heard, Server, StartServer, rows
from tests.support.log_command import log_command, run_log_command

pytestmark = pytest.mark.once

CONTROL = "pg_control_system()"
WAL = "pg_walfile_name(pg_lsn)"
IDENTIFIER_UNTOLD = "does not tell its system identifier"
TIMELINE_UNTOLD = "does not tell its timeline"

# By name, what an administrator has done, and what is untold by it.
UNTOLD = {
    "no permission": ([f"REVOKE EXECUTE ON FUNCTION {CONTROL} FROM PUBLIC"], [IDENTIFIER_UNTOLD]),
    "no function": (
        ["ALTER FUNCTION pg_control_system() RENAME TO pg_no_such_system"],
        [IDENTIFIER_UNTOLD],
    ),
    "neither told": (
        [f"REVOKE EXECUTE ON FUNCTION {each} FROM PUBLIC" for each in (CONTROL, WAL)],
        [IDENTIFIER_UNTOLD, TIMELINE_UNTOLD],
    ),
    "all told": ([], []),
}


class Managed:
    """A database and the role that owns it, which is no superuser; and its administrator."""

    def __init__(self, admin_url: str, name: str) -> None:
        self.admin_url = admin_url
        rows(admin_url, f"CREATE ROLE {name} LOGIN")
        rows(admin_url, f"ALTER DATABASE {name.removeprefix('role_')} OWNER TO {name}")
        rows(admin_url, f"ALTER SCHEMA public OWNER TO {name}")
        user = admin_url.partition("//")[2].partition("@")[0]
        self.url = admin_url.replace(f"//{user}@", f"//{name}@", 1)

    def do(self, *statements: str) -> None:
        for statement in statements:
            rows(self.admin_url, statement)


@pytest.fixture
def managed(database_url: str) -> Managed:
    [(name,)] = rows(database_url, "SELECT current_database()")
    return Managed(database_url, f"role_{name}")


def warnings(server: Server) -> list[str]:
    ready = server.management("/readyz")
    assert ready.status == 200
    found: list[str] = ready.json["checks"]["database"]["reasons"]
    return found


def identity(managed: Managed) -> tuple[str, int | None, int | None]:
    [found] = rows(
        managed.admin_url, "SELECT log_id::text, system_identifier, timeline_id FROM head"
    )
    return found


@pytest.mark.parametrize("case", UNTOLD)
def test_it_is_served_and_what_is_untold_is_said(
    managed: Managed, start_server: StartServer, certs: Path, tmp_path: Path, case: str
) -> None:
    """In the log, in readiness and by the doctor; where all is told, nothing is said."""
    done, untold = UNTOLD[case]
    managed.do(*done)
    server = start_server(url=managed.url)
    for _ in range(2):
        assert server.request("POST", "/api/client").status == 204
    for sentences in (
        [event["reason"] for event in server.events("the database does not identify itself")],
        warnings(server),
    ):
        assert len(sentences) == len(untold)
        for sentence, expected in zip(sentences, untold, strict=True):
            assert expected in sentence
    stored = identity(managed)[1:]
    assert (stored[0] is None, stored[1] is None) == (
        IDENTIFIER_UNTOLD in untold,
        TIMELINE_UNTOLD in untold,
    )
    site = DoctorSetup(tmp_path / "site", certs, managed.url)
    site.well(*untold)
    said = site.ask().stdout
    assert said.count("does not tell its") == len(untold)


def test_the_stream_stays_over_restarts_and_is_renewed_by_hand(
    managed: Managed, start_server: StartServer, tmp_path: Path
) -> None:
    """Not told is no reason for a new one each time; `log new` works without being told."""
    managed.do(*UNTOLD["neither told"][0])
    server = start_server(url=managed.url)
    assert server.request("POST", "/api/client").status == 204
    before = identity(managed)
    assert server.stop() == 0
    server = start_server(url=managed.url)
    assert identity(managed) == before
    settings = {**server.settings, "database": {"url": managed.url}}
    assert run_log_command(settings, tmp_path, "show").returncode == 0
    shown = log_command(settings, tmp_path, "new")
    assert identity(managed) == (shown["log"], None, None)
    assert shown["log"] != before[0]
    assert server.request("POST", "/api/client").status in (204, 503)  # it was disconnected


def test_what_was_told_and_is_no_longer_begins_one_new_stream(
    managed: Managed, start_server: StartServer
) -> None:
    """The dump of a database that told, in one that does not: it may be another one."""
    server = start_server(url=managed.url)
    told = identity(managed)
    assert None not in told
    assert server.stop() == 0
    managed.do(*UNTOLD["neither told"][0])
    assert start_server(url=managed.url).stop() == 0
    untold = identity(managed)
    assert untold[0] != told[0]
    assert untold[1:] == (None, None)
    assert start_server(url=managed.url).stop() == 0
    assert identity(managed) == untold
    # Told again, nothing is known to have changed.
    managed.do(f"GRANT EXECUTE ON FUNCTION {CONTROL} TO PUBLIC")
    assert start_server(url=managed.url).stop() == 0
    assert identity(managed) == (untold[0], told[1], None)


def test_no_two_servers_number_in_different_streams(
    managed: Managed, start_server: StartServer
) -> None:
    """A server connected before a new log began goes on in it; its clients notice nothing."""
    before = start_server(url=managed.url)
    assert before.request("POST", "/api/client").status == 204
    old = identity(managed)[0]
    managed.do(*UNTOLD["neither told"][0])
    after = start_server(url=managed.url)
    new = identity(managed)[0]
    assert new != old
    for server in (after, before, after):
        with Heard(server.announce_port) as heard:
            assert server.request("POST", "/api/client").status == 204
            assert json.loads(heard.one()[0])["log"] == new
    [lost] = before.events("database lost, reconnecting")
    assert lost["reason"] == "a new log begins"
    assert identity(managed)[0] == new
