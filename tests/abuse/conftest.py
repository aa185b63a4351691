"""The population of the abuse tests: 200 users with certificates, who check in every second."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from certs_gen.authority import Authority
from tests.support.harness import Server
from tests.support.population import Population, StartPopulation

NAMES = tuple(f"honest{number}" for number in range(200))


@pytest.fixture(scope="session")
def certs(certs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The development set, and a certificate for each of `NAMES`."""
    directory = Path(shutil.copytree(certs, tmp_path_factory.mktemp("honest") / "certs"))
    authority = Authority.load(directory)
    for name in NAMES:
        credential = authority.issue_client(f"{name}@example.com")
        (directory / f"{name}.key").write_bytes(credential.key_pem())
        (directory / f"{name}.crt").write_bytes(credential.certificate_pem())
    return directory


@pytest.fixture
def start_population(certs: Path) -> Iterator[StartPopulation]:
    """Start the population on a server, and return once each of it has checked in."""
    with ExitStack() as stack:

        def start(server: Server) -> Population:
            return stack.enter_context(Population(server, certs, NAMES))

        yield start
