"""Programs that start quickly: forked from one that is imported, on a database that is migrated."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator

import psycopg2.extensions
import pytest

from tests.support.forked_program import forking
from tests.support.harness import FORKS, drop_database, rows
from tornado_status.store import migrate

_numbers = itertools.count()


@pytest.fixture(scope="session")
def forks() -> Iterator[socket.socket]:
    """The socket for requests. It outlives the programs of the session, which are forked, too."""
    with forking() as requests:
        yield requests


@pytest.fixture(scope="package", autouse=True)
def forked_programs(forks: socket.socket) -> Iterator[None]:
    """Fork the programs of these tests, unless a test wants another interpreter."""
    FORKS.append(forks)
    yield
    FORKS.remove(forks)


@pytest.fixture(scope="session")
def migrated(postgres: str) -> str:
    """The name of a database to copy: migrated, and used by no server yet."""
    rows(postgres, "CREATE DATABASE migrated")
    url = postgres.replace("/postgres?", "/migrated?")
    migrate._upgrade(psycopg2.extensions.parse_dsn(url), own_pid=0)
    return "migrated"


@pytest.fixture
def database_url(postgres: str, migrated: str) -> Iterator[str]:
    """A migrated database of a new log."""
    name = f"copy_{next(_numbers)}"
    rows(postgres, f"CREATE DATABASE {name} TEMPLATE {migrated}")
    url = postgres.replace("/postgres?", f"/{name}?")
    rows(url, "UPDATE head SET log_id = gen_random_uuid(), at = clock_timestamp()")
    yield url
    drop_database(postgres, name)
