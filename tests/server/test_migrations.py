"""The schema's history."""

from __future__ import annotations

import alembic.config
import alembic.script

from tests.support.harness import ROOT, StartServer
from tornado_status.store import migrate


def test_the_newest_migration_is_what_the_program_asks_for() -> None:
    """One line of migrations, and `REVISION` is its end."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(ROOT / "tornado_status/store/migrations"))
    script = alembic.script.ScriptDirectory.from_config(config)
    assert script.get_heads() == [migrate.REVISION]


def test_a_check_in_updates_no_index(start_server: StartServer) -> None:
    """Every update of a user's status is a HOT update: cost does not grow with the users."""
    server = start_server()
    for _ in range(30):
        assert server.request("POST", "/api/client").status == 204
    indexed = server.rows(
        "SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid"
        " AND a.attnum = ANY (i.indkey) WHERE i.indrelid = 'user_status'::regclass"
    )
    assert indexed == [("email",)]
    options = server.rows("SELECT reloptions FROM pg_class WHERE relname = 'user_status'")
    assert options == [(["fillfactor=70"],)]
