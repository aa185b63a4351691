"""Fixtures: a development set of certificates, a PostgreSQL, a database and a server on it."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from certs_gen.cli import main as certs_gen
from tests.support.harness import (
    WORKERS,
    Heard,
    Postgres,
    Server,
    StartServer,
    drop_database,
    rows,
    running_server,
)
from tests.support.trust_site import Site
from tornado_status.store.embedded import data_directory
from tornado_status.store.embedded.binaries import find_binaries
from tornado_status.store.embedded.run_as import choose_user

# No time limits as assertions: test machines are slow and shared.
hypothesis.settings.register_profile("tests", deadline=None, print_blob=True)
hypothesis.settings.load_profile("tests")

_numbers = itertools.count()

# Hundreds of databases are made and dropped. Tests of a disk have a PostgreSQL of their own.
MEMORY = "/dev/shm"  # noqa: S108 - a directory of its own is made in it
MEMORY_NEEDED = 2 * 1024**3


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two files of tests at once for each core: they mostly wait. No more than there are ports."""
    return min(2 * len(os.sched_getaffinity(0)), WORKERS)


# The longest first.
LONG = (
    "live_stream",
    "trust",
    "presence",
    "listeners",
    "clients",
    "connection",
    "certs_gen",
    "listener_sequence",
    "slow_senders",
    "enrolment",
    "reads",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, so that none of them is left alone at the end."""
    once = {item.path for item in items if item.get_closest_marker("once")}
    names = [f"test_{name}" for name in LONG]

    def place(item: pytest.Item) -> int:
        if item.path in once:
            return -1
        return names.index(item.path.stem) if item.path.stem in names else len(names)

    items.sort(key=place)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have measured and assert nothing about (`record_property`)."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The development set."""
    directory = tmp_path_factory.mktemp("certs")
    assert certs_gen(["--out", str(directory)]) == 0
    return directory


def database_directory() -> Path:
    """Return a new directory, in memory if there is enough.

    PostgreSQL does not run as root, who may search pytest's directories alone.
    """
    memory = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_NEEDED
    directory = Path(tempfile.mkdtemp(prefix="status-tests-", dir=MEMORY if memory else None))
    directory.chmod(0o755)
    return directory


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    """The data directory of a PostgreSQL that was made and never started, to be copied."""
    directory = database_directory() / "data"
    binaries, _ = find_binaries()
    asyncio.run(data_directory.create(directory, binaries, choose_user([directory], binaries)))
    yield directory
    shutil.rmtree(directory.parent)


@pytest.fixture(scope="session")
def postgres(template: Path) -> Iterator[str]:
    """The URL of a real PostgreSQL, one for all tests; each makes a database of its own in it."""
    server = Postgres(shutil.copytree(template, database_directory() / "data"))
    server.start()
    yield server.url
    server.discard()


@pytest.fixture
def own_postgres(template: Path) -> Iterator[Postgres]:
    """A PostgreSQL that a test may stop and start."""
    server = Postgres(shutil.copytree(template, database_directory() / "own_postgresql"))
    server.start()
    yield server
    server.discard()


@pytest.fixture
def empty_database_url(postgres: str) -> Iterator[str]:
    """An empty database."""
    name = f"test_{next(_numbers)}"
    rows(postgres, f"CREATE DATABASE {name}")
    yield postgres.replace("/postgres?", f"/{name}?")
    drop_database(postgres, name)


@pytest.fixture
def database_url(empty_database_url: str) -> str:
    """A database; in tests/server it is migrated already."""
    return empty_database_url


@pytest.fixture
def start_server(certs: Path, database_url: str, tmp_path: Path) -> Iterator[StartServer]:
    """Start servers, on one database unless told otherwise, with any settings overridden."""
    with ExitStack() as stack:

        def start(*, url: str = database_url, **overrides: Any) -> Server:
            directory = tmp_path / f"server_{next(_numbers)}"
            running: AbstractContextManager[Server] = running_server(
                directory, certs, url, **overrides
            )
            return stack.enter_context(running)

        yield start


@pytest.fixture
def server(start_server: StartServer) -> Server:
    """A server with the shipped settings, but for its ports."""
    return start_server()


@pytest.fixture
def heard(server: Server) -> Iterator[Heard]:
    """A socket in the multicast group that `server` announces to."""
    with Heard(server.announce_port) as listener:
        yield listener


@pytest.fixture
def site(certs: Path, tmp_path: Path, start_server: StartServer) -> Site:
    """A server, not yet started, with a copy of the development set that the test may change."""
    own = Path(shutil.copytree(certs, tmp_path / "certs"))

    def start(**settings: object) -> Server:
        server = start_server(**settings)
        server.certs = own
        return server

    return Site(start, own)
