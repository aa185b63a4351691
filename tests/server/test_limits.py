"""Limits on connections and check-ins, each far away for honest clients."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    ROOT,
    Lines,
    Server,
    StartServer,
    exchange,
    require,
    wait_until,
)
from tests.support.hostile_requests import CHECK_IN
from tornado_status.config.settings import AlertSettings, NatsTarget, Settings
from tornado_status.errors import TooFrequent
from tornado_status.model.check_in_rate_limit import BURST_S, MAX_REMEMBERED, CheckInRateLimit
from tornado_status.observe.management import MAX_CONNECTIONS

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
    assert server.wait_event("connection limit of an address reached")["client_ip"] == "127.0.0.1"
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


def test_a_server_short_of_descriptors_goes_on_serving(start_server: StartServer) -> None:
    """It accepts no more connections than it can hold, says so, and serves each new one."""
    prlimit = shutil.which("prlimit")
    require("prlimit", prlimit is not None, "Debian: util-linux")
    server = start_server(prefix=(str(prlimit), "--nofile=70:70"))
    limit = 70 - 64
    connections = []
    for _ in range(3 * limit):
        connections.append(server.connect_raw())
        assert check_in(connections[-1]).startswith(b"HTTP/1.1 204")
        assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) < limit + 64
    assert server.wait_event("connection limit reached")["limit"] == limit
    for connection in connections:
        connection.close()


def test_the_management_port_waits_for_descriptors_too(start_server: StartServer) -> None:
    """Without any left it pauses between attempts, logs one line, and recovers."""
    prlimit = shutil.which("prlimit")
    require("prlimit", prlimit is not None, "Debian: util-linux")
    server = start_server()
    pid = server.process.pid
    used = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()) + 1
    set_limit = [str(prlimit), f"--pid={pid}"]
    subprocess.run([*set_limit, f"--nofile={used}:"], check=True)
    with contextlib.ExitStack() as stack:
        for _ in range(used):  # those below `used` that are free, and one more
            stack.enter_context(socket.create_connection((LOOPBACK, server.management_port)))
        before = cpu_s(pid)
        time.sleep(1)  # in which there is nothing to do
        assert cpu_s(pid) - before < 0.3
        subprocess.run([*set_limit, f"--nofile={used + 100}:"], check=True)
        assert server.management("/healthz").status == 200
    [error] = server.events("cannot accept connections")
    assert error["port"] == server.management_port
    errors = [line for line in server.log.lines if '"error"' in line]
    assert len(errors) == 1


# Tornado's own way to accept, for what the test below would find without ours.
STOCK_SERVER = """
import asyncio
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

async def main():
    server = HTTPServer(lambda request: None)
    [listening] = bind_sockets(0, "127.0.0.1")
    server.add_socket(listening)
    print(listening.getsockname()[1], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.contextmanager
def out_of_descriptors(pid: int, port: int) -> Iterator[None]:
    """Leave a process no descriptor for those who connect to `port`, and let some try."""
    prlimit = shutil.which("prlimit")
    require("prlimit", prlimit is not None, "Debian: util-linux")
    set_limit = [str(prlimit), f"--pid={pid}"]
    used = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()) + 1
    subprocess.run([*set_limit, f"--nofile={used}:"], check=True)
    with contextlib.ExitStack() as stack:
        for _ in range(used):  # those below `used` that are free, and more
            connection = stack.enter_context(socket.create_connection((LOOPBACK, port)))
            connection.sendall(b"\x16")  # the first byte of a handshake
        try:
            yield
        finally:
            subprocess.run([*set_limit, f"--nofile={used + 200}:"], check=True)


def test_running_out_of_descriptors_is_survived(start_server: StartServer) -> None:
    """Those connected are served, the processor is left alone, a line is logged; then all is well.

    The limit is lowered under a running server, so nothing that it reckoned at its start helps.
    """
    server = start_server()
    pid = server.process.pid
    connected = [server.connect_raw() for _ in range(3)]
    for connection in connected:
        assert check_in(connection).startswith(b"HTTP/1.1 204")
    with out_of_descriptors(pid, server.port):
        assert server.wait_event("cannot accept connections")["reason"] == "Too many open files"
        lines, before = len(server.log.lines), cpu_s(pid)
        for _ in range(4):
            for connection in connected:
                assert check_in(connection).startswith(b"HTTP/1.1 204")
            time.sleep(0.25)
        assert cpu_s(pid) - before < 0.3
        assert len(server.log.lines) - lines <= 2
    # Those who tried have gone, but for what the server still has to find out.
    assert server.request("POST", "/api/client").status == 204
    for connection in connected:
        assert check_in(connection).startswith(b"HTTP/1.1 204")
        connection.close()
    assert len(server.events("cannot accept connections")) == 1
    assert not [line for line in server.log.lines if "Traceback" in line]


def test_without_our_accepting_it_would_not_be() -> None:
    """Tornado's own, in the same place, burns the processor and fills the log."""
    with subprocess.Popen(
        [sys.executable, "-c", STOCK_SERVER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            log = Lines(process.stderr)
            with out_of_descriptors(process.pid, port):
                log.wait_for(lambda line: "Too many open files" in line, "the error")
                wait_until(lambda: cpu_s(process.pid) > 1.0, "a second of the processor")
                assert len([line for line in log.lines if "Too many open files" in line]) > 100
        finally:
            process.kill()
            process.wait()


def test_the_management_port_takes_a_few_connections(start_server: StartServer) -> None:
    """A crowd there takes no descriptor from those who check in."""
    server = start_server()
    pid = server.process.pid
    before = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    with contextlib.ExitStack() as stack:
        for _ in range(3 * MAX_CONNECTIONS):
            stack.enter_context(
                socket.create_connection((LOOPBACK, server.management_port), PATIENCE_S)
            )
        assert server.management("/healthz").status == 200
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) < before + MAX_CONNECTIONS + 16
        assert server.request("POST", "/api/client").status == 204


def test_nobody_is_slowed_down_by_default(server: Server) -> None:
    """64 connections of one address and of one identity check in as fast as they can."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(server.connect_raw()) for _ in range(64)]
        for connection in connections:
            connection.sendall(PLAIN * 20)
        for connection in connections:
            answers = b""
            while answers.count(b"HTTP/1.1 ") < 20 or not answers.endswith(b"\r\n\r\n"):
                answers += connection.recv(4096)
            assert answers.count(b"HTTP/1.1 204") == 20
    assert server.rows("SELECT count(*) FROM check_in") == [(64 * 20,)]


def cpu_s(pid: int) -> float:
    """The processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
    limit = CheckInRateLimit(per_second)
    now, admitted = 0.0, 0
    for gap in gaps:
        now += gap
        try:
            limit.allow("a@example.com", now)
        except TooFrequent as error:
            assert error.retry_after_s >= 1
        else:
            admitted += 1
        assert admitted <= max(1.0, per_second * BURST_S) + now * per_second + 1e-6


def test_who_waits_as_told_gets_in() -> None:
    """Retry-After is long enough."""
    limit = CheckInRateLimit(0.25)
    for _ in range(int(0.25 * BURST_S)):
        limit.allow("a@example.com", 0.0)
    with pytest.raises(TooFrequent) as caught:
        limit.allow("a@example.com", 1.0)
    limit.allow("a@example.com", 1.0 + caught.value.retry_after_s)


def test_remembered_identities_are_bounded() -> None:
    """However many there are."""
    limit = CheckInRateLimit(1)
    for number in range(MAX_REMEMBERED + 100):
        limit.allow(f"user{number}@example.com", 0.0)
    assert len(limit) == MAX_REMEMBERED


# ------------------------------------------------------------------------------------- the table


def documented() -> dict[str, float]:
    """The tables of docs/limits.md: the default by key, or by module and constant."""
    rows = [line.split(" | ") for line in (ROOT / "docs/limits.md").read_text().splitlines()]
    found: dict[str, float] = {}
    for row in rows:
        if len(row) != 5 or "`" not in row[1]:
            continue
        key, default = row[1].strip("`"), re.fullmatch(r"(\d+(?:\.\d+)?)( s| bytes)?", row[2])
        assert default, row
        assert key not in found
        assert all(cell.strip(" |") for cell in row)
        assert bool(default[2]) == key.lower().endswith(
            ("_s", "_bytes", "_head", "_body", "_rest", "_ignored", "_waiting")
        ), row
        found[key] = float(default[1])
    return found


def limits_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    """The keys of a section that limit something, by their names, with their defaults."""
    known: dict[str, object] = {}  # a default may depend on those before it
    for name, field in model.model_fields.items():
        inner = field.annotation
        if not field.is_required():
            known[name] = field.get_default(call_default_factory=True, validated_data=known)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from limits_of(inner, f"{prefix}{name}.")
        elif re.search(r"^max_|_timeout_s$|^timeout_s$|_per_second$", name):
            yield prefix + name, known.get(name)


def configured() -> dict[str, object]:
    return {
        **dict(limits_of(Settings)),
        **dict(limits_of(AlertSettings, "alerts.")),
        **dict(limits_of(NatsTarget, "announce.targets.")),
    }


def test_every_limit_in_the_config_is_in_the_table_with_its_default() -> None:
    """An operator finds all of them in one place."""
    table = documented()
    assert len(configured()) > 10
    assert configured() == {key: table.get(key) for key in configured()}


def test_every_limit_in_the_table_is_one_and_has_that_value() -> None:
    """A key of the config, or a constant of the module that is named."""
    keys = configured()
    for key, default in documented().items():
        if key not in keys:
            module, _, constant = key.rpartition(".")
            assert constant.isupper(), key
            assert getattr(importlib.import_module(f"tornado_status.{module}"), constant) == default


# ----------------------------------------------------------------------------------------- sizes


def said(connection: socket.socket, request: bytes) -> bytes:
    """Return the answer to a request after which the sender closes its side."""
    answers = b""
    with contextlib.suppress(OSError):  # a reset, where not all was read
        connection.sendall(request)
        while data := connection.recv(4096):
            answers += data
    return answers


def test_heads_and_bodies_have_a_size(start_server: StartServer) -> None:
    """On both ports, up to the last byte of what is allowed; nothing beyond it is recorded."""
    server = start_server()
    close = b"Connection: close\r\n"
    begin = CHECK_IN + close + b"X-A: "
    healthy = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + close

    def check_in_said(request: bytes) -> bytes:
        with server.connect_raw() as connection:
            return said(connection, request)

    def admin_said(request: bytes) -> bytes:
        with socket.create_connection((LOOPBACK, server.management_port), PATIENCE_S) as connection:
            return said(connection, request)

    def head(begin: bytes, size: int) -> bytes:
        return begin + b"a" * (size - len(begin) - 4) + b"\r\n\r\n"

    def body(begin: bytes, size: int) -> bytes:
        return begin + b"Content-Length: %d\r\n\r\n" % size + b"x" * size

    def chunks(begin: bytes, size: int) -> bytes:
        chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size)
        return begin + b"Transfer-Encoding: chunked\r\n\r\n" + chunk

    assert b" 204 " in check_in_said(head(begin, 8191))
    assert check_in_said(head(begin, 8192)) == b""
    assert b" 204 " in check_in_said(body(CHECK_IN + close, 4096))
    assert b" 413 " in check_in_said(body(CHECK_IN + close, 4097))
    assert b" 204 " in check_in_said(chunks(CHECK_IN + close, 4096))
    assert b" 400 " in check_in_said(chunks(CHECK_IN + close, 4097))
    assert server.rows("SELECT count(*) FROM check_in") == [(3,)]

    # A head without an end is not read to it.
    assert check_in_said(CHECK_IN + b"X-A: " + b"a" * 5_000_000) == b""
    assert admin_said(healthy + b"X-A: " + b"a" * 5_000_000) == b""

    assert b" 200 " in admin_said(head(healthy + b"X-A: ", 8192))
    assert admin_said(head(healthy + b"X-A: ", 8193)) == b""
    for framed in (body, chunks):
        assert b" 200 " in admin_said(framed(healthy, 4096))
        assert b" 400 " in admin_said(framed(healthy, 4097))
