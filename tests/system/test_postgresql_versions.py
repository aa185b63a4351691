"""Any PostgreSQL from 15 to 18 will do, not only the embedded one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.harness import Heard, Postgres, StartServer, require
from tornado_status.store.embedded.binaries import SUPPORTED_MAJORS

pytestmark = pytest.mark.once

INSTALLED = sorted(
    path
    for path in Path("/usr/lib/postgresql").glob("*/bin")
    if (path / "initdb").exists() and int(path.parent.name) in SUPPORTED_MAJORS
)


@pytest.mark.parametrize("binaries", INSTALLED or [None], ids=lambda path: str(path))
def test_a_check_in_is_recorded_and_announced_with_every_installed_version(
    start_server: StartServer, tmp_path: Path, binaries: Path | None
) -> None:
    """Migrated from nothing, numbered, announced, read back, and kept over a restart."""
    require("another PostgreSQL", binaries is not None, "Debian: postgresql")
    database = Postgres(tmp_path / "data", binaries)
    database.start()
    try:
        for seq, event in ((1, "new"), (2, "check-in")):
            server = start_server(url=database.url)
            with Heard(server.announce_port) as listener:
                assert server.request("POST", "/api/client").status == 204
                [update] = listener.updates(1)
            assert (update["seq"], update["event"]) == (seq, event)
            page = server.request("GET", "/api/events", cert="operator").json
            assert page["events"][-1] == update
            assert server.stop() == 0
            database.stop()
            database.start()
    finally:
        database.stop()
