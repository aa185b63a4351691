"""Alerts after a dead receiver, kill -9, and a new log."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.harness import (
    PATIENCE_S,
    StartServer,
    free_port,
    rows,
    wait_until,
)
from tests.support.webhook_receiver import (
    Receiver,
    adopted,
    alert,
    log,
    waiting,
)

pytestmark = pytest.mark.once


def test_a_return_while_the_server_was_away_counts(start_server: StartServer) -> None:
    """The log's times decide, not when they were read."""
    with Receiver() as receiver:
        settings = {"alerts": [alert(receiver.url, quiet_s=60)]}
        server = start_server(**settings)
        adopted(server)
        log(server.database_url, "offline", "ada", 40)
        wait_until(lambda: waiting(server.database_url) == 1, "one that waits")
        server.stop(signal.SIGKILL)
        rows(
            server.database_url,
            "UPDATE alert_message SET due_at = now() - interval '1 hour', next_at = now()",
        )
        rows(server.database_url, "UPDATE check_in SET at = at - interval '2 hours'")
        log(server.database_url, "back", "ada", 3630)
        log(server.database_url, "offline", "bea", 3600)
        start_server(**settings)
        receiver.wait_for(1)
    assert receiver.said == [("offline", "bea")]


def test_nothing_is_lost_by_a_dead_receiver_and_kill_dash_nine(start_server: StartServer) -> None:
    """Check-ins go on meanwhile; once it is back each message comes, and in a user's order."""
    port = free_port()
    settings = {"alerts": [alert(f"http://localhost:{port}/", events=["new", "offline", "back"])]}
    server = start_server(**settings)
    adopted(server)
    log(server.database_url, "offline", "ada")
    server.wait_event("alert not delivered, trying again")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: server.request("POST", "/api/client").status, range(40)))
    assert answers == [204] * 40
    server.stop(signal.SIGKILL)
    for number in range(20):  # other servers go on
        log(server.database_url, "offline", f"u{number}")
        log(server.database_url, "back", f"u{number}")
    crashed = 0

    def answer(count: int) -> int:
        nonlocal crashed
        if count == 15:  # in the middle, before it is noted as delivered
            again.process.kill()
            crashed = count
        return 503 if count == 5 else 204

    with Receiver(port, answer=answer) as receiver:
        again = start_server(**settings)
        wait_until(lambda: crashed, "the server is killed in the middle")
        again.process.wait(PATIENCE_S)
        start_server(**settings)
        wait_until(lambda: waiting(server.database_url) == 0 and len(receiver.received) > 40, "all")
    expected = {("offline", "ada"), ("new", "valid_user")}
    expected |= {(kind, f"u{n}") for n in range(20) for kind in ("offline", "back")}
    assert set(receiver.said) == expected
    by_id = {each.id: each.said for each in receiver.received}
    assert len(by_id) == len(expected)  # what came twice has the same id
    # Twice: what was answered 503, and what was under way when the server was killed.
    assert len(receiver.received) == len(expected) + 2
    for number in range(20):
        mine = [said[0] for said in by_id.values() if said[1] == f"u{number}"]
        assert mine == ["offline", "back"]


def test_an_alert_follows_a_new_stream(start_server: StartServer) -> None:
    """After a restore nothing is told twice or left out, also where the numbers went back."""
    with Receiver() as receiver:
        settings = {"alerts": [alert(receiver.url)]}
        server = start_server(**settings)
        adopted(server)
        url = server.database_url
        log(url, "offline", "ada")
        receiver.wait_for(1)
        wait_until(lambda: waiting(url) == 0, "it is noted as delivered")
        server.stop(signal.SIGKILL)
        rows(url, "UPDATE head SET log_id = gen_random_uuid()")
        log(url, "back", "ada")
        server = start_server(**settings)
        server.wait_event("alert continues in another log")
        receiver.wait_for(2)
        rows(url, "DELETE FROM check_in")
        rows(url, "UPDATE head SET seq = 0, log_id = gen_random_uuid()")
        wait_until(lambda: rows(url, "SELECT 1 FROM alert WHERE seq = 0"), "it follows")
        log(url, "offline", "bea")
        receiver.wait_for(3)
        assert server.stop() == 0
    assert receiver.said == [("offline", "ada"), ("back", "ada"), ("offline", "bea")]
    assert len({each.id.split("_")[1] for each in receiver.received}) == 3  # streams
