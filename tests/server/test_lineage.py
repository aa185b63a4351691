"""One log over every failover: who stands at or before the fork goes on, others get a rollback."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from tests.support.faults.tcp_relay import Relay
from tests.support.harness import PATIENCE_S, Heard, Server, StartServer, exchange, wait_until
from tests.support.lineage import begin_log
from tests.support.subscriber import Subscriber
from tests.support.with_constants import UNKNOWN_LOG_S


@pytest.fixture
def server(start_server: StartServer) -> Server:
    return start_server()


def check_in(server: Server, times: int = 1) -> None:
    """Check in so often; a connection that the server loses its database under gets 503."""
    connection = server.connect()
    done = 0
    while done < times:
        done += exchange(connection, "POST", "/api/client").status == 204
    connection.close()


def lineage_of(server: Server) -> dict[str, Any]:
    answer = server.request("GET", "/api/log", cert="operator")
    assert answer.status == 200
    found: dict[str, Any] = answer.json
    return found


def log_of(server: Server, after: int = 0) -> list[dict[str, Any]]:
    page = server.request("GET", f"/api/events?after={after}", cert="operator")
    found: list[dict[str, Any]] = page.json["events"]
    return found


def test_a_reader_learns_the_lineage(server: Server) -> None:
    """The newest step first, with the number at which each log parts from the one before."""
    check_in(server, 3)
    first = lineage_of(server)
    assert first["head"] == 3
    assert first["lineage"] == []
    second, third = begin_log(server), begin_log(server, 2)
    found = lineage_of(server)
    assert (found["log"], found["head"]) == (third, 2)
    steps = [(step["log"], step["parent"], step["fork"]) for step in found["lineage"]]
    assert steps == [(third, second, 2), (second, first["log"], 3)]
    assert server.request("GET", "/api/log", cert="client").status == 403


def test_an_open_stream_goes_on_in_the_new_log(server: Server) -> None:
    """No gap, nothing twice, and the id says which log it is."""
    check_in(server, 3)
    with Subscriber(server) as everything, Subscriber(server, "?event=new") as none:
        old = everything.expect("position").data["log"]
        assert none.expect("position").data["log"] == old
        new = begin_log(server)
        check_in(server, 2)
        said = everything.expect("position").data
        assert said == {"event": "position", "log": new, "seq": 3}
        assert everything.events(2) == log_of(server, 3)
        assert everything.last_id == f"{new}:5"
        assert none.expect("position").data["log"] == new


def resuming(log_id: str, seq: int, how: str, server: Server) -> Subscriber:
    """Resume at a position as a browser does, or with the parameters of the URL."""
    if how == "header":
        # The browser's URL is the first one, however old.
        return Subscriber(server, f"?after=0&log={uuid.UUID(int=0)}", last=f"{log_id}:{seq}")
    if how == "both":
        return Subscriber(server, f"?log={log_id}", last=seq)
    return Subscriber(server, f"?log={log_id}&after={seq}")


@pytest.mark.parametrize("how", ["header", "query", "both"])
def test_a_position_before_the_fork_is_resumed(server: Server, how: str) -> None:
    """Over two failovers, of which the second lost something that this client never had."""
    check_in(server, 5)
    first = lineage_of(server)["log"]
    begin_log(server)
    check_in(server, 3)
    third = begin_log(server, 6)
    check_in(server, 2)
    with resuming(first, 4, how, server) as subscriber:
        assert subscriber.events(4) == log_of(server, 4)
        assert subscriber.last_id == f"{third}:8"


@pytest.mark.parametrize("how", ["header", "query", "both"])
def test_a_position_behind_the_fork_is_rolled_back(server: Server, how: str) -> None:
    """One message names exactly the lost numbers, then come the new events of these numbers."""
    check_in(server, 5)
    first = lineage_of(server)["log"]
    new = begin_log(server, 3)
    check_in(server, 4)
    with resuming(first, 5, how, server) as subscriber:
        lost = subscriber.expect()
        assert lost.data == {"event": "rollback", "from": 4, "to": 5, "log": new}
        assert subscriber.last_id == f"{new}:3"
        assert subscriber.events(4) == log_of(server, 3)


def test_an_open_stream_is_rolled_back(server: Server) -> None:
    """Once. Then it gets the numbers again, with other events."""
    check_in(server, 5)
    with Subscriber(server, last=0) as subscriber:
        before = subscriber.events(5)
        new = begin_log(server, 3)
        check_in(server, 3)
        rollback = {"event": "rollback", "from": 4, "to": 5, "log": new}
        assert subscriber.expect().data == rollback
        assert before[:3] + subscriber.events(3) == log_of(server)


def test_the_lowest_fork_on_the_way_counts(server: Server) -> None:
    """The second failover lost more than the first."""
    check_in(server, 5)
    first = lineage_of(server)["log"]
    begin_log(server)
    new = begin_log(server, 2)
    check_in(server, 5)
    begin_log(server)
    with resuming(first, 5, "query", server) as subscriber:
        lost = subscriber.expect()
        assert (lost.data["event"], lost.data["from"], lost.data["to"]) == ("rollback", 3, 5)
        assert lost.data["log"] == lineage_of(server)["log"] != new
        assert subscriber.events(5) == log_of(server, 2)


def test_a_web_socket_learns_the_new_log(server: Server) -> None:
    """By a position before the first event of it: a client resumes with that log id."""
    check_in(server, 2)

    async def talk() -> list[dict[str, Any]]:
        request = HTTPRequest(
            f"wss://localhost:{server.port}/api/socket?after=0",
            ssl_options=server.client_context("operator"),
        )
        connection = await websocket_connect(request)
        found = [json.loads(str(await connection.read_message())) for _ in range(3)]
        found.append({"new": begin_log(server)})
        check_in(server)
        found += [json.loads(str(await connection.read_message())) for _ in range(2)]
        connection.close()
        return found

    hello, *events, new, moved, last = asyncio.run(asyncio.wait_for(talk(), PATIENCE_S))
    assert hello["event"] == "position"
    assert moved == {"event": "position", "log": new["new"], "seq": 2}
    assert [*events, last] == log_of(server)


def test_a_log_that_is_no_ancestor_is_a_gap(server: Server) -> None:
    """As of another installation."""
    check_in(server, 2)
    begin_log(server)
    with resuming(str(uuid.uuid4()), 1, "query", server) as subscriber:
        said = subscriber.expect()
        assert said.data == {"event": "gap", "from": 1, "to": 2, "log": lineage_of(server)["log"]}


def test_the_new_log_is_announced_at_once(start_server: StartServer) -> None:
    """By a heartbeat, before the first event of it."""
    server = start_server(announce={"heartbeat_s": 3600})
    with Heard(server.announce_port) as heard:
        check_in(server)
        old, new = lineage_of(server)["log"], begin_log(server)
        check_in(server)
        said: list[dict[str, Any]] = []
        while len(said) < 2:
            message = json.loads(heard.one()[0])
            said += [message] if message["log"] == new else []
        assert [len(message["events"]) for message in said] == [0, 1]
        assert said[0]["parent"] == {"log": old, "fork": 1}


def test_a_database_put_back_under_a_running_server_begins_a_new_log(server: Server) -> None:
    """The head is below the one that it knows: no number is given twice in one log."""
    check_in(server, 5)
    old = lineage_of(server)["log"]
    server.rows("DELETE FROM check_in WHERE seq > 3")
    server.rows("UPDATE head SET seq = 3")
    check_in(server)
    found = lineage_of(server)
    assert found["head"] == 4
    [step] = found["lineage"]
    assert (step["log"], step["parent"], step["fork"]) == (found["log"], old, 3)
    assert found["log"] != old
    [said] = [event for event in server.events("new log begun") if event.get("parent")]
    assert (said["parent"], said["fork"]) == (old, 3)


def test_a_restart_begins_no_log(start_server: StartServer) -> None:
    """The control: nothing has changed."""
    first = start_server()
    check_in(first, 2)
    before = lineage_of(first)
    assert first.stop() == 0
    second = start_server()
    check_in(second)
    assert lineage_of(second) == {**before, "head": 3}
    wait_until(lambda: second.events("serving"), "the start")


@pytest.mark.parametrize("patience_s", [10, 0])
def test_a_server_that_has_yet_to_notice_a_failover_declares_no_gap(
    start_server: StartServer, database_url: str, patience_s: int
) -> None:
    """Another server was faster, and its client comes here."""
    constants = {UNKNOWN_LOG_S: patience_s}
    with Relay(lambda: database_url) as relay:
        server = start_server(url=relay.url, constants=constants)
        check_in(server, 3)
        server.database_url = database_url
        with Subscriber(server) as old:
            old.expect("position")  # the server follows the old log
            relay.freeze()
            new = begin_log(server)
            with Subscriber(server, last=f"{new}:3") as subscriber:
                subscriber.expect("position")
                if patience_s == 0:
                    assert subscriber.expect().kind == "gap"
                    return
                relay.cut()
                relay.thaw()
                wait_until(lambda: server.request("POST", "/api/client").status == 204, "a 204")
                following = subscriber.expect()
        assert (following.kind, following.data["seq"]) == ("check-in", 4)
