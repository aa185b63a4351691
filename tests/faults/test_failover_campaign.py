"""Three PostgreSQL machines under Patroni, set up as docs/high-availability.md says, fail over."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.database_machines import (
    DatabaseMachines,
    block,
    database_machines,
    newest_postgresql,
    type_on,
)
from tests.support.faults.failover_campaign import FAULTS, campaign
from tests.support.harness import PATIENCE_S, rows
from tests.support.pages import BASH, pattern, shown

pytestmark = pytest.mark.once

PAGE = "docs/high-availability.md"


@pytest.fixture(scope="module")
def machines() -> Iterator[DatabaseMachines]:
    directory = Path(tempfile.mkdtemp(prefix="status-tests-"))
    directory.chmod(0o755)  # PostgreSQL's user reads there
    with database_machines(directory) as running:
        yield running
    shutil.rmtree(directory)


def test_no_failover_loses_an_acknowledged_check_in(
    machines: DatabaseMachines,
    certs: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Switchover, kill -9, a lost machine, a partition: all in the log, and told without a gap."""
    with campaign(machines, certs, tmp_path) as running:
        for fault in FAULTS:
            record_property("failover", str(running.fail_over(fault)))
        assert running.verdict() == []
        assert running.told() == []
    head, _, _ = shown(PAGE, "Sync Standby").partition("\n")
    listed = type_on(machines.machines["db1"], block("patronictl -c /etc/patroni/config.yml list"))
    assert pattern(head).search(listed)
    assert listed.count("Sync Standby") == 1


def test_the_leader_is_backed_up_whichever_it_is(machines: DatabaseMachines) -> None:
    """The page's dump finds it by itself."""
    tools = f"/usr/lib/postgresql/{newest_postgresql()}/bin"
    text = block("export PGHOST") + "pg_restore --list status.dump"
    done = subprocess.run(
        [*machines.with_names, *BASH, text],
        cwd=machines.directory,
        env={"PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert "TABLE DATA public" in done.stdout


def test_what_an_asynchronous_failover_loses_is_rolled_back(
    machines: DatabaseMachines, certs: Path, tmp_path: Path
) -> None:
    """One `rollback` names exactly the lost numbers; the judge misses exactly their check-ins."""
    machines.empty()
    machines.patronictl("edit-config", "--force", "--set", "synchronous_mode=false")
    machines.wait_whole(synchronous=False)
    with campaign(machines, certs, tmp_path) as running:
        loss = running.lose_the_newest()
        verdict = running.verdict()
        lost = [event for event in loss.old if event["seq"] > loss.fork]
        assert lost
        assert {each.partition(":")[0] for each in verdict} == {"missing"}
        assert len(verdict) == len(lost)  # each has an id of its own
        new = [event for event in running.log() if event["seq"] > loss.fork]
        [(log,)] = rows(machines.writable_url, "SELECT log_id::text FROM head")
        last = loss.old[-1]["seq"]
        rollback = {"event": "rollback", "from": loss.fork + 1, "to": last, "log": log}
        old = [event for event in loss.old if event["seq"] > running.began_at]
        assert running.told(*old, rollback, *new) == []
