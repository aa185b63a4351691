"""A slow sender is cut off at any stage of a request; a quiet connection is not."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.harness import LOOPBACK, PATIENCE_S, Server, StartServer, rows, running_server
from tests.support.hostile_requests import CHECK_IN, HOST
from tests.support.raw_http import GET, PLAIN, STATUS, read_answers
from tests.support.with_constants import BODY_TIMEOUT_S

PAUSE_S = 0.05  # between two bytes
TIMEOUT_S = 0.5

LONG_HEADER = b"X-Padding: " + b"a" * 1200 + b"\r\n"  # more than the check-in path reads by itself

# The bytes sent before the sender slows down, and those it then sends one by one for ever.
HEADS = {
    "request line": (b"", b"POST /api/client HTTP/1.1"),
    "path": (b"POST /", b"a"),
    "header name": (CHECK_IN + b"X-", b"a"),
    "header value": (CHECK_IN + b"Accept: ", b"a"),
    "between headers": (CHECK_IN, b"X-A: b\r\n"),
    "behind a long head": (CHECK_IN + LONG_HEADER, b"X-A: b\r\n"),
    "last line feed": (CHECK_IN + b"\r", b""),
}
BODIES = {
    "body": (b"Content-Length: 4000\r\n\r\n", b"x"),
    "mute": (b"Content-Length: 4000\r\n\r\n", b""),
    "chunk size": (b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "chunk extension": (b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
    "chunk data": (b"Transfer-Encoding: chunked\r\n\r\nfff\r\n", b"x"),
    "chunks": (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "trailer": (b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-A: b\r\n"),
    "expected": (b"Content-Length: 4000\r\nExpect: 100-continue\r\n\r\n", b"x"),
}
ENDLESS = 600.0  # of settings that are not what a test is about


def drip(connection: socket.socket, slowly: bytes) -> bytes:
    """Send `slowly` byte by byte, again and again, until the server closes; return its words."""
    connection.settimeout(PAUSE_S)
    said = b""
    sent = 0
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            data = connection.recv(4096)
        except TimeoutError:
            if not slowly:
                continue
            try:
                connection.send(slowly[sent % len(slowly) :][:1])
            except OSError:
                continue  # what was said before is still to be read
            sent += 1
        except OSError:
            return said
        else:
            if not data:
                return said
            said += data
    raise AssertionError("still open")


def at_each_stage(
    stages: Mapping[str, tuple[bytes, bytes]], send: Callable[[bytes, bytes], bytes]
) -> dict[str, bytes]:
    """Return what `send` returns of each, all at the same time."""
    with ThreadPoolExecutor(len(stages)) as pool:
        answers = pool.map(lambda stage: send(*stage), stages.values())
        return dict(zip(stages, answers, strict=True))


@pytest.fixture(scope="module")
def hurried(
    postgres: str,
    certs: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A server with short deadlines for heads and bodies, and none to speak of for idleness."""
    rows(postgres, "CREATE DATABASE slow_senders")
    url = postgres.replace("/postgres?", "/slow_senders?")
    settings = {
        "header_timeout_s": TIMEOUT_S,
        "idle_timeout_s": ENDLESS,
    }
    constants: dict[str, object] = {BODY_TIMEOUT_S: TIMEOUT_S}
    directory = tmp_path_factory.mktemp("slow")
    with running_server(directory, certs, url, constants=constants, server=settings) as server:
        yield server


def connect_admin(server: Server) -> socket.socket:
    return socket.create_connection((LOOPBACK, server.management_port), timeout=PATIENCE_S)


# ----------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("before", [b"", PLAIN, GET], ids=["first", "after a check-in", "ordinary"])
def test_a_head_has_to_be_whole_in_time(hurried: Server, before: bytes) -> None:
    """Else 408 in a sentence and the end, also on a connection that was served before."""

    def send(at_once: bytes, slowly: bytes) -> bytes:
        with hurried.connect_raw() as connection:
            if before:
                connection.sendall(before)
                read_answers(connection, 1)
            connection.sendall(at_once)
            return drip(connection, slowly)

    for stage, said in at_each_stage(HEADS, send).items():
        assert STATUS.findall(said) == [b"408"], stage
        assert b"\r\nConnection: close\r\n" in said
        assert b"The head of the request took too long" in said
    metrics = hurried.management("/metrics").body.decode()
    [late] = [
        line for line in metrics.splitlines() if 'refused_total{reason="head-timeout"}' in line
    ]
    assert float(late.split()[-1]) >= len(HEADS)
    assert hurried.request("POST", "/api/client").status == 204


def test_so_it_has_on_the_management_port(hurried: Server) -> None:
    """For any client that reaches it."""

    def send(at_once: bytes, slowly: bytes) -> bytes:
        with connect_admin(hurried) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n")
            assert b" 200 " in connection.recv(4096)
            connection.sendall(at_once)
            return drip(connection, slowly)

    for stage, said in at_each_stage(HEADS, send).items():
        assert STATUS.findall(said)[-1:] == [b"408"], stage
    assert hurried.management("/healthz").status == 200


def test_a_head_begun_behind_another_request_has_its_deadline_too(hurried: Server) -> None:
    """Those before it are answered, then it is told that it is late."""
    cases = {
        f"{len(rest)} behind {begun!r}": (begun, rest)
        for begun in (PLAIN, PLAIN * 3, GET, GET + PLAIN)
        for rest in (b"P", CHECK_IN, CHECK_IN + LONG_HEADER)
    }

    def send(begun: bytes, rest: bytes) -> bytes:
        with hurried.connect_raw() as connection:
            connection.sendall(begun + rest)
            return drip(connection, b"")

    for name, said in at_each_stage(cases, send).items():
        statuses = STATUS.findall(said)
        assert len(statuses) == cases[name][0].count(b"HTTP/1.1") + 1, name
        assert statuses[-1] == b"408", name


@pytest.mark.parametrize("before", [b"", PLAIN, GET], ids=["first", "after a check-in", "ordinary"])
def test_who_is_quiet_between_requests_may_be(hurried: Server, before: bytes) -> None:
    """The deadline begins with a head's first byte: the control of the tests above."""
    with hurried.connect_raw() as connection, hurried.connect_raw() as late:
        if before:
            connection.sendall(before)
            read_answers(connection, 1)
        late.sendall(b"P")
        drip(late, b"")  # the deadline of a head that began at the same time passes
        connection.sendall(PLAIN)
        assert STATUS.findall(read_answers(connection, 1))[-1] == b"204"


EMPTY_LINES = [b"\r\n", b"\n", b"\r"]


@pytest.mark.parametrize("before", [b"", PLAIN, GET], ids=["first", "after a check-in", "ordinary"])
def test_an_empty_line_begins_no_head(hurried: Server, before: bytes) -> None:
    """Old clients send one behind a request: they are as quiet as others, and as welcome."""
    with contextlib.ExitStack() as stack:
        late = stack.enter_context(hurried.connect_raw())
        connections = []
        for line, together in itertools.product(EMPTY_LINES, [True, False]):
            connection = stack.enter_context(hurried.connect_raw())
            connections.append(connection)
            for data in [before + line] if together else [before, line]:
                connection.sendall(data)
            if before:
                read_answers(connection, 1)
        late.sendall(b"\r\nP")
        assert STATUS.findall(drip(late, b"")) == [b"408"]
        for connection in connections:
            connection.sendall(PLAIN)
            assert STATUS.findall(read_answers(connection, 1))[-1] == b"204"


def test_nor_does_it_on_the_management_port(hurried: Server) -> None:
    """The same stream, without TLS."""
    request = b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
    with connect_admin(hurried) as connection, connect_admin(hurried) as late:
        connection.sendall(request + b"\r\n")
        assert b" 200 " in connection.recv(4096)
        late.sendall(b"\r\nG")
        assert STATUS.findall(drip(late, b"")) == [b"408"]
        connection.sendall(request)
        assert b" 200 " in connection.recv(4096)


def test_the_idle_timeout_ends_where_a_head_begins(start_server: StartServer) -> None:
    """A head may end after it, as long as it is in time itself."""
    server = start_server(server={"idle_timeout_s": 1, "header_timeout_s": ENDLESS})
    for before in (PLAIN, GET):
        with server.connect_raw() as connection, server.connect_raw() as idle:
            for each in (idle, connection):
                each.sendall(before)
                read_answers(each, 1)
            connection.sendall(PLAIN[:1])
            while idle.recv(4096):  # until its time is over
                pass
            connection.sendall(PLAIN[1:])
            assert STATUS.findall(read_answers(connection, 1))[-1] == b"204"


# ---------------------------------------------------------------------------------------- bodies


@pytest.mark.parametrize("before", [b"", GET], ids=["first", "ordinary"])
def test_a_body_has_to_be_whole_in_time(hurried: Server, before: bytes) -> None:
    """Else the connection is closed, and nothing is recorded."""
    recorded = hurried.rows("SELECT count(*) FROM check_in")

    def send(at_once: bytes, slowly: bytes) -> bytes:
        with hurried.connect_raw() as connection:
            connection.sendall(before + CHECK_IN + at_once)
            return drip(connection, slowly)

    for stage, said in at_each_stage(BODIES, send).items():
        assert b" 204 " not in said, stage
    assert hurried.rows("SELECT count(*) FROM check_in") == recorded


def test_so_it_has_on_the_management_port_too(hurried: Server) -> None:
    """A health check has no body at all."""

    def send(at_once: bytes, slowly: bytes) -> bytes:
        with connect_admin(hurried) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\n" + HOST + at_once)
            return drip(connection, slowly)

    for stage, said in at_each_stage(BODIES, send).items():
        assert b" 200 " not in said, stage
    assert hurried.management("/healthz").status == 200


def test_a_body_that_takes_its_time_is_taken(start_server: StartServer) -> None:
    """Within the deadline it may come in pieces: the control of the tests above."""
    server = start_server(constants={BODY_TIMEOUT_S: ENDLESS})
    rest = {
        "body": b"x" * 4000,
        "chunk size": b"0\r\n\r\n",
        "chunk data": b"x" * 0xFFF + b"\r\n0\r\n\r\n",
        "chunks": b"1\r\nx\r\n0\r\n\r\n",
        "expected": b"x" * 4000,
    }
    for stage, pieces in rest.items():
        with server.connect_raw() as connection:
            connection.sendall(CHECK_IN + BODIES[stage][0])
            for start in range(0, len(pieces), 500):
                connection.sendall(pieces[start : start + 500])
            expected = [b"100", b"204"] if stage == "expected" else [b"204"]
            assert STATUS.findall(read_answers(connection, len(expected))) == expected


# ------------------------------------------------------------------------------------ TLS records


class Records:
    """A TLS client whose records are bytes in its hand, to be sent in pieces."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection((LOOPBACK, server.port), timeout=PATIENCE_S)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = server.client_context().wrap_bio(
            self._incoming, self._outgoing, server_hostname="localhost"
        )

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def hello(self) -> bytes:
        """The first record of a handshake."""
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._outgoing.read()

    def shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.socket.sendall(self._outgoing.read())
                self._incoming.write(self.socket.recv(65536))
            else:
                self.socket.sendall(self._outgoing.read())
                return

    def sealed(self, data: bytes) -> bytes:
        """`data` as a record."""
        self._tls.write(data)
        return self._outgoing.read()

    def ask(self, request: bytes) -> bytes:
        self.socket.sendall(self.sealed(request))
        while True:
            self._incoming.write(self.socket.recv(65536))
            try:
                return self._tls.read(65536)
            except ssl.SSLWantReadError:
                continue


def test_a_handshake_has_to_be_done_in_time(start_server: StartServer) -> None:
    """Byte by byte it takes as long as it likes otherwise."""
    server = start_server(server={"handshake_timeout_s": TIMEOUT_S})
    with Records(server) as client:
        hello = client.hello()
        client.socket.sendall(hello[:1])
        # At this pace it would last half a minute.
        assert len(hello) * PAUSE_S > 10 * TIMEOUT_S
        drip(client.socket, hello[1:])
    assert server.wait_event("handshake failed")["kind"] == "timeout"


def test_a_record_that_is_never_whole_is_as_good_as_nothing(start_server: StartServer) -> None:
    """No byte of a request has come: the connection is idle, and closed as idle ones are."""
    server = start_server(server={"idle_timeout_s": 1, "header_timeout_s": ENDLESS})

    def send(before: bytes, sent: int) -> None:
        with Records(server) as client:
            client.shake_hands()
            assert client.ask(before).startswith(b"HTTP/1.1 ")
            record = client.sealed(CHECK_IN + LONG_HEADER * 4 + b"\r\n")
            client.socket.sendall(record[:sent])
            drip(client.socket, record[sent:])

    places = (1, 5, 30)  # in the record's header, just behind it, in its middle
    cases = list(itertools.product((PLAIN, GET), places))
    with ThreadPoolExecutor(len(cases)) as pool:
        assert list(pool.map(send, *zip(*cases, strict=True))) == [None] * len(cases)
    assert server.request("POST", "/api/client").status == 204


@pytest.mark.parametrize("begun", [PLAIN[:20], CHECK_IN + BODIES["body"][0]], ids=["head", "body"])
def test_within_a_request_a_record_is_under_its_deadline(hurried: Server, begun: bytes) -> None:
    """Half a record does not end the wait for a head or for a body."""
    with Records(hurried) as client:
        client.shake_hands()
        client.socket.sendall(client.sealed(begun))
        record = client.sealed(b"x" * 4000)
        client.socket.sendall(record[:1])
        drip(client.socket, record[1:])
    assert hurried.request("POST", "/api/client").status == 204
