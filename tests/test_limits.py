"""Limits on connections and check-ins, each off or far away by default."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import StartServer
from tests.hostile_requests import CHECK_IN
from tests.support import LOOPBACK, Server, exchange, require, wait_until
from tornado_status.errors import TooFrequent
from tornado_status.limits import MAX_REMEMBERED, CheckInLimit

PLAIN = CHECK_IN + b"\r\n"


def check_in(connection: ssl.SSLSocket) -> bytes:
    connection.sendall(PLAIN)
    return connection.recv(4096)


def test_an_address_may_hold_only_so_many_connections(start_server: StartServer) -> None:
    """One more is closed before its handshake, those before it go on, and one gone makes room."""
    server = start_server(server={"max_connections_per_address": 2})
    first, second = server.connect_raw(), server.connect_raw()
    with pytest.raises(OSError):
        server.connect_raw()
    assert server.wait_event("too many connections")["client_ip"] == "127.0.0.1"
    assert check_in(first).startswith(b"HTTP/1.1 204")
    assert check_in(second).startswith(b"HTTP/1.1 204")
    first.close()

    def again() -> bool:
        try:
            with server.connect_raw() as connection:
                return check_in(connection).startswith(b"HTTP/1.1 204")
        except OSError:
            return False

    wait_until(again, "room for another connection")
    second.close()


def test_connections_beyond_the_limit_wait(start_server: StartServer) -> None:
    """They are served when another ends; those connected notice nothing."""
    server = start_server(server={"max_connections": 3})
    _fill_and_recover(server, 3)


def test_a_server_short_of_descriptors_goes_on_serving(start_server: StartServer) -> None:
    """It accepts no more connections than it can hold, says so, and recovers."""
    prlimit = shutil.which("prlimit")
    require("prlimit", prlimit is not None, "Debian: util-linux")
    server = start_server(prefix=(str(prlimit), "--nofile=70:70"))
    _fill_and_recover(server, 70 - 64)


def test_the_admin_port_waits_for_descriptors_too(start_server: StartServer) -> None:
    """Without any left it tries again now and then, not all the time, and recovers."""
    prlimit = shutil.which("prlimit")
    require("prlimit", prlimit is not None, "Debian: util-linux")
    server = start_server()
    pid = server.process.pid
    used = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()) + 1
    set_limit = [str(prlimit), f"--pid={pid}"]
    subprocess.run([*set_limit, f"--nofile={used}:"], check=True)
    with contextlib.ExitStack() as stack:
        for _ in range(used):  # those below `used` that are free, and one more
            stack.enter_context(socket.create_connection((LOOPBACK, server.admin_port)))
        before = cpu_s(pid)
        time.sleep(1)  # in which there is nothing to do
        assert cpu_s(pid) - before < 0.3
        subprocess.run([*set_limit, f"--nofile={used + 100}:"], check=True)
        assert server.admin("/healthz").status == 200
    errors = [line for line in server.log.lines if '"error"' in line]
    assert errors == []


def cpu_s(pid: int) -> float:
    """The processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _fill_and_recover(server: Server, limit: int) -> None:
    connections = [server.connect_raw() for _ in range(limit)]
    late = server.connect("operator")
    late.timeout = 0.5
    with pytest.raises(TimeoutError):
        late.connect()
    event = server.wait_event("as many connections as allowed")
    assert event["limit"] == limit
    for connection in connections:
        assert check_in(connection).startswith(b"HTTP/1.1 204")
    used = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
    assert used < limit + 64
    for connection in connections:
        connection.close()
    wait_until(lambda: server.request("POST", "/api/client").status == 204, "room again")
    late.close()


@pytest.mark.parametrize("warm_up", ["POST", "GET"])
def test_an_identity_that_checks_in_too_often_is_told_when_to_come_back(
    start_server: StartServer, warm_up: str
) -> None:
    """429 with Retry-After, on both ways; others are not affected, nothing more is recorded."""
    server = start_server(server={"check_ins_per_second": 0.01})
    connection = server.connect()
    exchange(connection, warm_up, "/api/client")  # a GET makes it an ordinary connection
    answers = [exchange(connection, "POST", "/api/client") for _ in range(3)]
    connection.close()
    refused = [answer for answer in answers if answer.status == 429]
    assert len(refused) >= 2
    assert all(0 < int(answer.headers["Retry-After"]) <= 100 for answer in refused)
    assert refused[0].detail == "More check-ins than allowed"
    assert server.request("POST", "/api/client", cert="operator").status == 204
    assert server.rows("SELECT count(*) FROM check_in") == [(2,)]


@given(
    st.sampled_from([0.1, 1.0, 2.5, 50.0]),
    st.lists(st.floats(0, 5), max_size=60),
)
def test_no_schedule_beats_the_limit(per_second: float, gaps: list[float]) -> None:
    """Never more than a burst and what the time that passed allows."""
    limit = CheckInLimit(per_second)
    now, admitted = 0.0, 0
    for gap in gaps:
        now += gap
        try:
            limit.admit("a@example.com", now)
        except TooFrequent as error:
            assert error.retry_after_s >= 1
        else:
            admitted += 1
        assert admitted <= max(1.0, per_second) + now * per_second + 1e-6


def test_who_waits_as_told_gets_in() -> None:
    """Retry-After is long enough."""
    limit = CheckInLimit(0.25)
    limit.admit("a@example.com", 0.0)
    with pytest.raises(TooFrequent) as caught:
        limit.admit("a@example.com", 1.0)
    limit.admit("a@example.com", 1.0 + caught.value.retry_after_s)


def test_remembered_identities_are_bounded() -> None:
    """However many there are."""
    limit = CheckInLimit(1)
    for number in range(MAX_REMEMBERED + 100):
        limit.admit(f"user{number}@example.com", 0.0)
    assert len(limit) == MAX_REMEMBERED
