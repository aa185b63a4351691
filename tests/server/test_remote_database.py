"""A database on another machine: verified by its certificate, and it never sees the password.

`LOCAL` is empty in these servers, so loopback counts as another machine.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from certs_gen.authority import Authority
from tests.support.faults.tcp_relay import Relay
from tests.support.harness import (
    LOOPBACK,
    Postgres,
    Server,
    StartServer,
    rows,
)
from tests.support.posing_postgres import PosingPostgres, TlsPostgres
from tests.support.with_constants import LOCAL
from tornado_status.commands.doctor.check_database import examine
from tornado_status.config.settings import DatabaseSettings, Settings
from tornado_status.store import remote_database
from tornado_status.store.remote_database import authenticated, is_local

PASSWORD = "s3cr3t-w0rd"  # noqa: S105 - for tests only
REMOTE: dict[str, object] = {LOCAL: []}
CLEAR = (
    'authentication method requirement "scram-sha-256" failed: '
    "server requested a cleartext password"
)


def reason(server: Server) -> str:
    """Why the database is away, without its place."""
    found: str = server.wait_event("database away, trying again")["reason"]
    return found.partition(": ")[2]


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("", "server does not support SSL, but SSL was required"),
        ("?sslmode=disable", CLEAR),
        ("?sslmode=prefer", CLEAR),
    ],
)
def test_who_poses_as_the_database_gets_no_password(
    query: str, why: str, start_server: StartServer, tmp_path: Path, certs: Path
) -> None:
    with PosingPostgres() as posing:
        url = f"postgresql://somebody:{PASSWORD}@{LOOPBACK}:{posing.port}/name{query}"
        if not query:
            url += f"?sslrootcert={certs / 'ca.crt'}"
        server = start_server(url=url, wait=False, constants=REMOTE)
        assert why in reason(server)
        assert posing.asked.is_set()
        assert posing.passwords == []


def test_without_the_rule_it_gets_the_password(start_server: StartServer) -> None:
    """As a local one does: whoever has its port is on this machine."""
    with PosingPostgres() as posing:
        url = f"postgresql://somebody:{PASSWORD}@{LOOPBACK}:{posing.port}/name"
        reason(start_server(url=url, wait=False))
        assert posing.passwords[:1] == [PASSWORD]


@pytest.fixture
def scram(own_postgres: Postgres) -> Postgres:
    """A PostgreSQL that asks the role `tester` for its password, by SCRAM."""
    rows(own_postgres.url, f"CREATE ROLE tester LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
    rules = own_postgres.directory / "pg_hba.conf"
    rules.write_text(f"local all tester scram-sha-256\n{rules.read_text()}")
    rows(own_postgres.url, "SELECT pg_reload_conf()")
    return own_postgres


def test_a_database_with_a_certificate_of_the_named_ca_is_used(
    scram: Postgres, certs: Path, start_server: StartServer
) -> None:
    """By migrations, commits and reads alike."""
    with TlsPostgres(scram.url, certs) as database:
        place = f"postgresql://tester:{PASSWORD}@localhost:{database.port}/postgres"
        server = start_server(url=f"{place}?sslrootcert={certs / 'ca.crt'}", constants=REMOTE)
        assert server.request("POST", "/api/client").status == 204
        assert server.request("GET", "/api/users", cert="operator").status == 200


def test_without_a_certificate_scram_is_enough_if_the_url_says_so(
    scram: Postgres, start_server: StartServer
) -> None:
    """As in docker-compose.yml."""
    with Relay(lambda: scram.url) as database:
        place = f"postgresql://tester:{PASSWORD}@localhost:{database.port}/postgres"
        server = start_server(url=f"{place}?sslmode=disable", constants=REMOTE)
        assert server.request("POST", "/api/client").status == 204


@pytest.mark.parametrize(
    ("host", "other_ca", "role", "why"),
    [
        ("localhost", True, "tester", "certificate verify failed"),
        ("127.0.0.2", False, "tester", 'does not match host name "127.0.0.2"'),
        ("localhost", False, "postgres", "server did not complete authentication"),
    ],
)
def test_another_database_is_refused(
    host: str,
    other_ca: bool,
    role: str,
    why: str,
    scram: Postgres,
    certs: Path,
    tmp_path: Path,
    start_server: StartServer,
) -> None:
    """Of another CA, of another name, or one that asks for no password and so proves nothing."""
    ca = certs / "ca.crt"
    if other_ca:
        ca = tmp_path / "other.crt"
        ca.write_bytes(Authority.create(name="Another CA").certificate_pem())
    with TlsPostgres(scram.url, certs) as database:
        place = f"postgresql://{role}:{PASSWORD}@{host}:{database.port}/postgres"
        address = f"&hostaddr={LOOPBACK}" if host != "localhost" else ""
        url = f"{place}?sslrootcert={ca}{address}"
        assert why in reason(start_server(url=url, wait=False, constants=REMOTE))


@pytest.mark.parametrize(
    ("query", "level", "said"),
    [
        ("sslrootcert={ca}", "ok", "is verified"),
        ("sslmode=require", "note", "sslmode=require: the certificate of localhost:"),
        ("sslrootcert={ca}.gone", "problem", "A database on another machine must show"),
    ],
)
def test_the_doctor_says_whether_it_is_verified(
    query: str,
    level: str,
    said: str,
    scram: Postgres,
    certs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote_database, "LOCAL", ())
    monkeypatch.setattr(remote_database, "LOCAL_NAMES", ())
    with TlsPostgres(scram.url, certs) as database:
        place = f"postgresql://tester:{PASSWORD}@localhost:{database.port}/postgres"
        url = f"{place}?{query.format(ca=certs / 'ca.crt')}"
        findings = asyncio.run(examine(Settings(database=DatabaseSettings(url=url))))
    assert findings[0].level == level
    assert said in f"{findings[0].sentence} {findings[0].advice}"


@pytest.mark.parametrize(
    ("parameters", "local"),
    [
        ({}, True),
        ({"host": "/run/postgresql"}, True),
        ({"host": "localhost"}, True),
        ({"host": "db.example.com", "hostaddr": "127.0.0.1"}, True),
        ({"host": "::1"}, True),
        ({"host": "::ffff:127.0.0.1"}, True),
        ({"host": "localhost", "hostaddr": "192.0.2.1"}, False),
        ({"host": "db"}, False),
        ({"host": "fe80::1%eth0"}, False),
        ({"service": "status"}, False),
    ],
)
def test_local_is_a_unix_socket_or_loopback(
    parameters: dict[str, str], local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGSSLMODE", "PGREQUIREAUTH"):
        monkeypatch.delenv(name, raising=False)
    assert is_local(parameters) == local
    expected = {"sslmode": "verify-full", "require_auth": "scram-sha-256"}
    assert authenticated(parameters) == {**parameters, **({} if local else expected)}


def test_the_operators_word_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the URL, then in libpq's variables."""
    monkeypatch.setenv("PGHOST", "db")
    monkeypatch.setenv("PGSSLMODE", "require")
    monkeypatch.setenv("PGREQUIREAUTH", "none")
    assert authenticated({}) == {"sslmode": "require", "require_auth": "none"}
    assert authenticated({"sslmode": "verify-ca"})["sslmode"] == "verify-ca"
    assert remote_database.sslmode({}) == "require"
