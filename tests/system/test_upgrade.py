"""Upgrades: two versions on one database under load, and from each revision with rows in it."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import alembic.script
import psycopg2
import pytest
import sqlalchemy

from tests.support.faults.tcp_relay import Relay
from tests.support.fleet import SERVERS, Fleet, fleet_certs, fleet_hosts
from tests.support.harness import PATIENCE_S, ROOT, StartServer, require, rows, wait_until
from tornado_status.store import migrate

SCRIPTS = ROOT / "tornado_status" / "store" / "migrations"
NEXT = migrate.NUMBER + 1
PREFIX = f"g{migrate.GENERATION}_" if migrate.GENERATION > 1 else ""
COMPATIBLE_NEXT = f"{PREFIX}{NEXT:04}"  # a revision of the same generation

# A next version's changes that ours does not know: new columns and tables, with defaults.
COMPATIBLE = """
ALTER TABLE user_status ADD COLUMN place text;
ALTER TABLE check_in ADD COLUMN place text DEFAULT 'here', ADD COLUMN weight integer;
ALTER TABLE head ADD COLUMN place text DEFAULT 'here';
CREATE TABLE place (name text PRIMARY KEY);
"""
# And what ours could not live with.
INCOMPATIBLE = "ALTER TABLE user_status RENAME COLUMN last_seen TO seen_at;"


def next_version(directory: Path, revision: str, schema: str) -> Path:
    """Make a copy of this version with one more migration; return the directory to run it in."""
    package = directory / "tornado_status"
    shutil.copytree(ROOT / "tornado_status", package, ignore=shutil.ignore_patterns("__pycache__"))
    store = package / "store"
    source = (store / "migrate.py").read_text()
    line = f'REVISION = "{migrate.REVISION}"'
    assert line in source
    (store / "migrate.py").write_text(source.replace(line, f'REVISION = "{revision}"'))
    (store / "migrations" / "versions" / f"v{NEXT:04}_next.py").write_text(
        f'"""The next one."""\n\nfrom alembic import op\n\nrevision = "{revision}"\n'
        f'down_revision = "{migrate.REVISION}"\n\n\n'
        f'def upgrade() -> None:\n    op.execute("""{schema}""")\n'
    )
    return directory


def revision_of(url: str) -> str:
    [(revision,)] = rows(url, "SELECT version_num FROM alembic_version")
    assert isinstance(revision, str)
    return revision


# ------------------------------------------------------------------------------------- two versions


@pytest.fixture
def certs(certs: Path, tmp_path: Path) -> Path:
    return fleet_certs(certs, tmp_path / "certs")


@pytest.fixture
def fleet(
    certs: Path, database_url: str, start_server: StartServer, tmp_path: Path
) -> Iterator[Fleet]:
    with fleet_hosts() as hosts:
        yield Fleet(hosts, certs, database_url, start_server, tmp_path)


@pytest.mark.network
@pytest.mark.once
def test_servers_are_upgraded_one_by_one_under_load(
    fleet: Fleet, database_url: str, tmp_path: Path
) -> None:
    """Two versions on one database, in both orders of start: nothing acknowledged is lost."""
    new = next_version(tmp_path / "new", COMPATIBLE_NEXT, COMPATIBLE)
    one, two, three = (fleet.start(address) for address in SERVERS)
    with fleet.under_load():
        fleet.go_on("with three old ones")
        assert three.stop() == 0
        three = fleet.start(SERVERS[2], new)
        assert three.events("migrating the database")
        assert revision_of(database_url) == COMPATIBLE_NEXT
        fleet.go_on("with two old ones and a new one")
        # The old ones were not disturbed by the migration.
        assert not one.events("database lost, reconnecting")
        two.process.kill()
        two.process.wait(PATIENCE_S)
        two = fleet.start(SERVERS[1])  # the old version, on the newer database
        assert two.events("the database is newer, and compatible")
        assert revision_of(database_url) == COMPATIBLE_NEXT
        fleet.go_on("with an old one that came later")
        for address, server in zip(SERVERS[:2], (one, two), strict=True):
            assert server.stop() == 0
            fleet.start(address, new)
            fleet.go_on("with one more upgraded")
        assert three.stop() == 0
        fleet.go_on("with new ones alone")
        fleet.judge()


@pytest.mark.network
@pytest.mark.once
def test_a_new_generation_ends_the_old_ones_under_load(
    fleet: Fleet, database_url: str, tmp_path: Path
) -> None:
    """They say why and end, with status 2, rather than write in an older way."""
    revision = f"g{migrate.GENERATION + 1}_{NEXT:04}"
    # The new one must only migrate here: our code knows no other name of the column.
    new = next_version(tmp_path / "new", revision, "CREATE TABLE place (name text PRIMARY KEY);")
    one, two, three = (fleet.start(address) for address in SERVERS)
    with fleet.under_load():
        fleet.go_on("with three old ones")
        assert three.stop() == 0
        three = fleet.start(SERVERS[2], new)
        for old in (one, two):
            assert old.process.wait(PATIENCE_S) == 2
            assert f"of revision {revision}, generation" in old.log.wait_end()
        fleet.go_on("with the new one")
        again = fleet.start(SERVERS[0], wait=False)
        assert again.process.wait(PATIENCE_S) == 2
        assert f"this version can serve generation {migrate.GENERATION}" in again.log.wait_end()
        fleet.start(SERVERS[1], new)
        fleet.go_on("with another new one")
        fleet.judge()


@pytest.mark.once
def test_what_is_incompatible_would_be_felt(
    start_server: StartServer, database_url: str, tmp_path: Path
) -> None:
    """Why there are generations: declared compatible, such a migration breaks the older server."""
    old = start_server()
    assert old.request("POST", "/api/client").status == 204
    new = next_version(tmp_path / "new", COMPATIBLE_NEXT, INCOMPATIBLE)
    start_server(wait=False, prefix=("env", f"--chdir={new}")).wait_event("migrating the database")
    answers: set[int] = set()
    while answers != {503}:
        answers = {old.request("POST", "/api/client").status}
    assert old.process.poll() is None


@pytest.mark.once
def test_a_migration_behind_a_dump_stops_nobody(
    start_server: StartServer, database_url: str, tmp_path: Path
) -> None:
    """It gives way to the servers that run, and is done once pg_dump has ended."""
    old = start_server()
    new = next_version(tmp_path / "new", COMPATIBLE_NEXT, COMPATIBLE)
    dump = psycopg2.connect(database_url)
    try:
        with dump.cursor() as cursor:
            cursor.execute("LOCK TABLE head IN ACCESS SHARE MODE")
        newer = start_server(wait=False, prefix=("env", f"--chdir={new}"))
        newer.wait_event("migrating the database")
        answers = set()
        while not newer.events("migration waits for a reader such as pg_dump"):
            answers.add(old.request("POST", "/api/client").status)
        answers.add(old.request("POST", "/api/client").status)
        assert answers == {204}
        assert revision_of(database_url) == migrate.REVISION
    finally:
        dump.close()
    newer.wait_event("serving")
    assert revision_of(database_url) == COMPATIBLE_NEXT
    assert not old.events("database lost, reconnecting")


@pytest.mark.once
def test_a_migration_notices_a_vanished_database(
    start_server: StartServer, database_url: str
) -> None:
    """In seconds, as everything else does: TCP's own patience is two hours."""
    require("ss, for the kernel's timers", shutil.which("ss") is not None, "Debian: iproute2")
    other = psycopg2.connect(database_url)
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [migrate.LOCK])
        with Relay(lambda: database_url) as relay:
            server = start_server(url=relay.url, wait=False)

            def timers() -> list[str]:
                command = ("ss", "-Htno", "state", "established", "dport", f"= {relay.port}")
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                return re.findall(r"timer:\(keepalive,([^,]*),", said)

            wait_until(lambda: len(timers()) >= 2, "the migration's connection beside the first")
            assert all(re.fullmatch(r"[\d.]+m?s(ec)?", timer) for timer in timers()), timers()
            assert server.stop() == 0
    finally:
        other.close()


# ----------------------------------------------------------------------- from each earlier revision


@dataclass(frozen=True)
class Left:
    """The `rows` in a database of a revision, and those that are left after all upgrades.

    `rows` is SQL that a server of the revision could have done; `found` maps a query to its rows.
    """

    rows: str
    found: dict[str, list[tuple[Any, ...]]]


LEFT = {
    "0001": Left(
        """
        INSERT INTO check_in (seq, at, event, email, client_ip, client_port, issuer, serial) VALUES
            (1, '2026-01-01 10:00Z', 'new', 'a@example.com', '10.0.0.1', 1001, 'CN=ca', '1'),
            (2, '2026-01-01 11:00Z', 'new', 'b@example.com', '10.0.0.2', 1002, 'CN=ca', '2'),
            (3, '2026-01-01 12:00Z', 'check-in', 'a@example.com', '10.0.0.3', 1003, 'CN=ca', '3');
        INSERT INTO user_status VALUES
            ('a@example.com', 3, '2026-01-01 12:00Z', '10.0.0.3', 1003, 'CN=ca', '3'),
            ('b@example.com', 2, '2026-01-01 11:00Z', '10.0.0.2', 1002, 'CN=ca', '2');
        UPDATE head SET seq = 3, at = '2026-01-01 12:00Z',
            stream = '00000000-0000-4000-8000-000000000001';
        """,
        {
            "SELECT seq, event, email, host(client_ip), client_port, serial FROM check_in"
            " WHERE seq <= 3 ORDER BY seq": [
                (1, "new", "a@example.com", "10.0.0.1", 1001, "1"),
                (2, "new", "b@example.com", "10.0.0.2", 1002, "2"),
                (3, "check-in", "a@example.com", "10.0.0.3", 1003, "3"),
            ],
            "SELECT email, host(client_ip), client_port, issuer, serial FROM user_status"
            " WHERE email IN ('a@example.com', 'b@example.com') ORDER BY email": [
                ("a@example.com", "10.0.0.3", 1003, "CN=ca", "3"),
                ("b@example.com", "10.0.0.2", 1002, "CN=ca", "2"),
            ],
            "SELECT log_id::text FROM head": [("00000000-0000-4000-8000-000000000001",)],
            # The columns for presence of old entries, made by 0003.
            "SELECT seq, previous FROM check_in WHERE seq <= 3 ORDER BY seq": [
                (1, None),
                (2, None),
                (3, 1),
            ],
            "SELECT email, first_seen = '2026-01-01 10:00Z' FROM user_status"
            " WHERE email = 'a@example.com'": [("a@example.com", True)],
        },
    ),
    "0002": Left(
        "INSERT INTO announcer VALUES ('0123456789abcdef', 'a certificate', now());",
        {
            "SELECT certificate FROM announcer WHERE kid = '0123456789abcdef'": [
                ("a certificate",)
            ],
        },
    ),
    "0003": Left(
        """
        INSERT INTO check_in (seq, at, event, email, previous, last_seen) VALUES
            (4, '2026-01-01 14:00Z', 'offline', 'b@example.com', 2, '2026-01-01 11:00Z');
        UPDATE user_status SET seq = 4, offline = true,
            devices = '[{"issuer": "CN=ca", "serial": "9", "client_ip": "10.0.0.9",
                         "client_port": 9, "microseconds": 1767261600000000}]'
        WHERE email = 'b@example.com';
        UPDATE head SET seq = 4, at = '2026-01-01 14:00Z', swept = 2,
            swept_at = '2026-01-01 14:00Z';
        """,
        {
            "SELECT event, email, previous, last_seen = '2026-01-01 11:00Z' FROM check_in"
            " WHERE seq = 4": [("offline", "b@example.com", 2, True)],
            "SELECT offline, devices->0->>'serial' FROM user_status"
            " WHERE email = 'b@example.com'": [(True, "9")],
        },
    ),
    "0004": Left(
        """
        INSERT INTO alert (name, stream, seq, leased_until)
            SELECT 'plant', stream, 4, now() FROM head;
        INSERT INTO alert_message (name, stream, seq, event, email, at, due_at, next_at)
            SELECT 'plant', stream, 4, 'offline', 'b@example.com', at, now(), now() FROM head;
        """,
        {
            "SELECT seq, event, email FROM alert_message WHERE name = 'plant'": [
                (4, "offline", "b@example.com")
            ],
            "SELECT seq FROM alert WHERE name = 'plant'": [(4,)],
        },
    ),
    "0005": Left(
        """
        INSERT INTO check_in (seq, at, event, email) VALUES
            (5, '2026-01-01 15:00Z', 'enrolled', 'c@example.com');
        INSERT INTO user_status (email, seq) VALUES ('c@example.com', 5);
        INSERT INTO unannounced VALUES (5);
        UPDATE head SET seq = 5, at = '2026-01-01 15:00Z', interval_s = 60, offline_after_s = 180;
        """,
        {
            "SELECT event, email FROM check_in WHERE seq = 5": [("enrolled", "c@example.com")],
            "SELECT email, seq, last_seen FROM user_status WHERE email = 'c@example.com'": [
                ("c@example.com", 5, None)
            ],
        },
    ),
    "0006": Left(
        """
        INSERT INTO presence_mark (watched_ms, seq, at) VALUES (1000, 5, '2026-01-01 15:00Z');
        UPDATE head SET watched_ms = 1000;
        """,
        # Those are of a time that is over: the marks begin anew, and the count goes on.
        {"SELECT count(*) FROM presence_mark WHERE watched_ms <= 1000": [(0,)]},
    ),
    "0007": Left(
        "INSERT INTO crl VALUES ('\\x01', 'CN=ca', 7, 1767261600, '\\x02');",
        {"SELECT name, number::int FROM crl WHERE ca = '\\x01'": [("CN=ca", 7)]},
    ),
    "0008": Left(
        "INSERT INTO group_key VALUES (7, '\\x01', '2026-01-01 15:00Z', '\\x02');",
        {"SELECT secret = '\\x01' FROM group_key WHERE epoch = 7": [(True,)]},
    ),
    "g2_0009": Left(
        """
        INSERT INTO log_step
            SELECT log_id, '00000000-0000-4000-8000-000000000000', 3, '2026-01-01 13:00Z' FROM head;
        """,
        {
            "SELECT log_id::text, fork FROM log_step"
            " WHERE parent = '00000000-0000-4000-8000-000000000000'": [
                ("00000000-0000-4000-8000-000000000001", 3)
            ],
        },
    ),
}


def revisions() -> list[str]:
    """Return all revisions, oldest first."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(SCRIPTS))
    script = alembic.script.ScriptDirectory.from_config(config)
    return [each.revision for each in script.walk_revisions()][::-1]


def test_each_revision_says_what_it_leaves() -> None:
    """With a new migration, add the rows that it makes possible to `LEFT`."""
    assert list(LEFT) == revisions()


def test_revisions_are_named_by_generation_and_number() -> None:
    """One by one, in files of the same number; a generation never falls."""
    named = [migrate.parse(revision) for revision in revisions()]
    assert [number for _, number in named] == list(range(1, len(named) + 1))
    assert [generation for generation, _ in named] == sorted(generation for generation, _ in named)
    for path in (SCRIPTS / "versions").glob("v*.py"):
        found = re.fullmatch(r"v(\d{4})_\w+", path.stem)
        assert found is not None
        module = importlib.import_module(f"tornado_status.store.migrations.versions.{path.stem}")
        assert migrate.parse(module.revision)[1] == int(found[1])


def migrated(url: str, revision: str) -> None:
    """Bring a database to a revision, as a server of that time did."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(SCRIPTS))
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg2://", 1))
    with engine.begin() as session:
        config.attributes["connection"] = session
        alembic.command.upgrade(config, revision)
    engine.dispose()


@pytest.mark.parametrize("revision", list(LEFT))
def test_a_database_of_each_revision_is_served_with_all_that_it_holds(
    start_server: StartServer, database_url: str, revision: str
) -> None:
    """The server brings it up to date, goes on with its numbers, and loses no row."""
    held = list(LEFT)[: list(LEFT).index(revision) + 1]
    for each in held:
        migrated(database_url, each)
        rows(database_url, LEFT[each].rows)
    [(head, events)] = rows(database_url, "SELECT seq, (SELECT count(*) FROM check_in) FROM head")
    assert head == events > 0
    # No user is found offline, and nothing pruned, meanwhile: the entries are old.
    server = start_server(history={"retention": "3650d"}, alerts=[])
    assert revision_of(database_url) == migrate.REVISION
    assert server.request("POST", "/api/client").status == 204
    for each in held:
        for query, found in LEFT[each].found.items():
            assert server.rows(query) == found, query
    log = server.request("GET", "/api/events?after=0", cert="operator").json["events"]
    assert [entry["seq"] for entry in log] == list(range(1, len(log) + 1))
    newest = {entry["email"]: entry["seq"] for entry in log}
    assert newest["valid_user@example.com"] > head
    history = server.request("GET", "/api/users/a@example.com/history", cert="operator").json
    assert {1, 3} <= {entry["seq"] for entry in history["events"]}
