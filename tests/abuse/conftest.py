"""The population of the abuse tests: 200 users with certificates, who check in every second.

And the certificates of attackers.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.crowd import with_clients
from tests.support.harness import Server
from tests.support.population import Population, StartPopulation
from tests.support.trust_site import DAY, Site, now

NAMES = tuple(f"honest{number}" for number in range(200))
ATTACKERS = tuple(f"attacker{number}" for number in range(64))


@pytest.fixture(scope="session")
def certs(certs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The development set, certificates for `NAMES` and `ATTACKERS`, and two that are refused."""
    emails = {name: f"{name}@example.com" for name in (*NAMES, *ATTACKERS, "revoked")}
    directory = with_clients(certs, tmp_path_factory.mktemp("honest") / "certs", emails)
    site = Site(Server, directory)
    expired = site.authority.issue_client("expired@example.com", days=1, now=now() - 2 * DAY)
    (directory / "expired.key").write_bytes(expired.key_pem())
    (directory / "expired.crt").write_bytes(expired.certificate_pem())
    revoked = x509.load_pem_x509_certificate((directory / "revoked.crt").read_bytes())
    site.put_list([revoked.serial_number], number=1)
    return directory


@pytest.fixture(autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let one attacker work at a time: two would be a stronger one."""
    base = tmp_path_factory.getbasetemp()
    # Workers that run files side by side have a directory each, beside one another.
    directory = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (directory / "attacking").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def attackers() -> tuple[str, ...]:
    """The names of the attackers with a certificate."""
    return ATTACKERS


@pytest.fixture
def start_population(certs: Path) -> Iterator[StartPopulation]:
    """Start the population on a server, and return once each of it has checked in."""
    with ExitStack() as stack:

        def start(server: Server) -> Population:
            return stack.enter_context(Population(server, certs, NAMES))

        yield start
