"""Fixtures of the fault tests: several clients, and PostgreSQLs to break, of one template."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.crowd import with_clients
from tests.support.faults.judge import Listener
from tests.support.faults.ledger import Load
from tests.support.faults.trial import NAMES, MakePostgres, StartTrial, Trial
from tests.support.harness import Postgres, StartServer, free_port

_numbers = itertools.count()


@pytest.fixture(scope="session")
def certs(certs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The development set, and a certificate for each of `NAMES`."""
    emails = {name: f"{name.partition('_')[0]}@example.com" for name in NAMES}
    return with_clients(certs, tmp_path_factory.mktemp("crowd") / "certs", emails)


@pytest.fixture
def make_postgres(
    template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakePostgres]:
    """Start PostgreSQLs that a test may break. Their paths are short: they hold sockets."""
    with contextlib.ExitStack() as stack:

        def make(directory: Path | None = None, **options: Any) -> Postgres:
            if directory is None:
                directory = tmp_path_factory.mktemp("pg") / "data"
                stack.callback(shutil.rmtree, directory.parent)  # they are large
            shutil.copytree(template, directory)
            postgres = Postgres(directory, **options)
            stack.callback(postgres.stop)
            postgres.start()
            return postgres

        yield make


@pytest.fixture
def start_trial(start_server: StartServer, certs: Path) -> Iterator[StartTrial]:
    """Start a server on a database, or a `wrong` one, with a load of check-ins on it.

    It gives up on a commit after `patience_s`, to have the tests wait for less.
    """
    with contextlib.ExitStack() as stack:

        def start(
            url: str,
            *,
            wrong: str | None = None,
            patience_s: float = 1.0,
            pipeline: int = 1,
            names: tuple[str, ...] = NAMES,
            fresh: tuple[str, ...] = NAMES[1::2],
            **settings: Any,
        ) -> Trial:
            module: tuple[str, ...] = ("tornado_status",)
            if wrong is not None:
                module = ("tests.support.faults.wrong_server", wrong)
            database = {"commit_timeout_s": patience_s, "connect_timeout_s": 1}
            settings["database"] = {**database, **settings.get("database", {})}
            settings["server"] = {"port": free_port(), **settings.get("server", {})}
            server = start_server(url=url, module=module, **settings)
            port = server.announce_port
            listener = stack.enter_context(Listener(port, certs=certs))
            broadcasts = stack.enter_context(Listener(port, certs=certs, group=None))
            running = server.process
            load = Load(
                certs,
                server.port,
                names,
                fresh=fresh,
                pipeline=pipeline,
                while_up=lambda: running.poll() is None,
            )
            stack.enter_context(load)
            return Trial(server, load, listener, broadcasts)

        yield start
