"""The log: one line an event, for machines as JSON, with a request's name and without secrets."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import uuid
from collections.abc import Iterator
from typing import Any, Literal, cast

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.testing import bind_unused_port

from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    Server,
    StartServer,
    exchange,
    free_port,
    wait_until,
)
from tornado_status.api import Access, AccessLog, RequestsInFlight, make_application
from tornado_status.api.request_id import request_id
from tornado_status.config.settings import LoggingSettings
from tornado_status.model.presence import PresenceTimes
from tornado_status.model.records import CheckIn, Event, Peer, StatusRecord
from tornado_status.observe import logging_setup
from tornado_status.observe.counters import CheckIns

GET = "/api/client"


def ask(server: Server, asked_for: str | None, path: str = GET) -> tuple[int, str]:
    """Send an ordinary request; return the status and the name that the answer gives it."""
    connection = server.connect()
    try:
        headers = {} if asked_for is None else {"X-Request-ID": asked_for}
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        response.read()
        return response.status, response.headers["X-Request-ID"]
    finally:
        connection.close()


def entries(server: Server) -> list[dict[str, Any]]:
    """Every line of the log: each must be one JSON object."""
    return [json.loads(line) for line in list(server.log.lines)]


# ---------------------------------------------------------------------------------- request ids


@pytest.mark.parametrize(
    "asked_for", ["1", str(uuid.UUID(int=7)), "Root=1-67891233-abcdef012345678912345678", "a" * 128]
)
def test_a_sane_request_id_is_kept(asked_for: str) -> None:
    """A request can be followed over several programs."""
    assert request_id(asked_for) == asked_for


@pytest.mark.parametrize(
    "asked_for",
    [None, "", " ", "a b", "a\nb", "a\x1b[31m", "ä", "a" * 129, '"', "-x", "a,b", "a;b"],
)
def test_any_other_gets_a_new_one(asked_for: str | None) -> None:
    """Nothing of it gets into the log or the answer, and no two are the same."""
    first, second = request_id(asked_for), request_id(asked_for)
    assert first != second
    assert len(first) == 16


@given(st.text())
def test_whatever_is_asked_for_a_request_id_is_harmless(asked_for: str) -> None:
    """Printable ASCII without spaces or quotation marks, of bounded length."""
    name = request_id(asked_for)
    assert 1 <= len(name) <= 128
    assert name.isascii()
    assert name.isprintable()
    assert not set(name) & set(" \"'<>\\,;")


def test_an_answer_names_its_request_as_the_log_does(server: Server) -> None:
    """On an answer that went well, and on one that did not."""
    assert ask(server, "mine-1", "/api/client") == (404, "mine-1")
    assert ask(server, "mine-2", "/nowhere") == (404, "mine-2")
    status, made = ask(server, "not sane", "/api/users")
    assert (status, len(made)) == (403, 16)
    wait_until(lambda: len(server.events("request")) == 3, "three lines")
    first, _, third = server.events("request")
    assert first["request_id"] == "mine-1"
    assert third["request_id"] == made
    assert first["level"] == "info"
    assert {key: third[key] for key in ("method", "path", "status", "email", "client_ip")} == {
        "method": "GET",
        "path": "/api/users",
        "status": 403,
        "email": "valid_user@example.com",
        "client_ip": LOOPBACK,
    }
    assert third["duration_ms"] > 0


def test_each_request_of_a_connection_has_its_own(server: Server) -> None:
    """Nothing of one request is left for the next."""
    connection = server.connect()
    names = [exchange(connection, "GET", GET).headers["X-Request-ID"] for _ in range(3)]
    connection.close()
    assert len(set(names)) == 3


# --------------------------------------------------------------------------------- one line each


def test_requests_of_one_kind_are_one_line_a_minute(server: Server) -> None:
    """And check-ins none: a poller or a device cannot fill the disk."""
    for _ in range(5):
        assert ask(server, None)[0] in (200, 404)
        assert server.request("POST", "/api/client").status == 204
        connection = server.connect()
        connection.request("POST", "/api/client", headers={"X-Way": "ordinary"})
        assert connection.getresponse().status == 204
        connection.close()
    kinds = [(line["method"], line["status"]) for line in server.events("request")]
    assert sorted(kinds) == [("GET", 200), ("GET", 404)]  # before the first check-in, and after


def test_invented_methods_are_of_one_kind(server: Server) -> None:
    """Each would be a line of its own otherwise, hundreds of them a minute."""
    for number in range(20):
        answer = server.request(f"BREW{number}", "/api/client")
        assert answer.status == 405
    assert len(server.events("request")) == 1


def test_what_the_libraries_log_is_one_line_too_and_limited(server: Server) -> None:
    """Tornado's lines are JSON as ours are, with the logger's name, and one of a kind a minute."""
    for _ in range(5):
        with server.connect_raw() as connection:
            connection.sendall(b"\x1b[31mwhatever this is\r\n\r\n")
            while connection.recv(4096):
                pass
    lines = [line for line in entries(server) if line.get("logger") == "tornado.general"]
    assert len(lines) == 1
    assert lines[0]["event"].startswith("Malformed HTTP message from")
    assert "\x1b" not in lines[0]["event"]
    assert lines[0]["suppressed"] == 0


def test_every_line_is_json_with_a_time_a_level_and_an_event(start_server: StartServer) -> None:
    """From the first to the last, so that a machine can read all of it."""
    server = start_server()
    server.request("POST", "/api/client")
    server.request("GET", "/api/users")
    assert server.stop() == 0
    server.log.wait_end()
    found = entries(server)
    assert len(found) >= 4
    for entry in found:
        assert {"timestamp", "level", "event"} <= entry.keys()


def test_a_secret_is_never_logged(start_server: StartServer) -> None:
    """Not the database's password, in whatever goes wrong with it; not at any level."""
    url = f"postgresql://somebody:s3cr3t-w0rd@{LOOPBACK}:{free_port()}/name"
    server = start_server(url=url, wait=False, logging={"level": "debug"})
    server.wait_event("database away, trying again")
    wait_until(lambda: server.management("/readyz").status == 503, "the management port")
    said = server.management("/readyz").body + server.management("/metrics").body
    assert server.stop() == 0
    said += (server.log.wait_end() + server.out.wait_end()).encode()
    assert b"database away" in said
    assert b"s3cr3t" not in said


def test_the_limit_of_a_logger_is_set_up_once() -> None:
    """However often logging is configured."""
    for _ in range(3):
        logging_setup.configure(LoggingSettings())
    assert len(logging.getLogger("tornado.general").filters) == 1


# ------------------------------------------------------------------------------------- a mistake


class BrokenStore:
    """A store with a mistake in it: what cannot be caused for real."""

    async def record(self, check_in: CheckIn) -> Event:
        raise RuntimeError("a mistake")

    async def user(self, email: str) -> StatusRecord | None:
        raise RuntimeError("a mistake")


class Somebody:
    """Every request comes from this peer."""

    def peer_of(self, request: HTTPServerRequest) -> Peer:
        check_in = CheckIn("somebody@example.com", LOOPBACK, 1, "CN=CA", "1")
        return Peer(LOOPBACK, 1, check_in, None)

    def is_last(self, request: HTTPServerRequest) -> bool:
        return False

    def begin(self, request: HTTPServerRequest) -> bool:
        return True

    def end(self, request: HTTPServerRequest) -> None:
        pass


def test_a_mistake_is_one_line_with_the_requests_name(capfd: pytest.CaptureFixture[str]) -> None:
    """It has the traceback, and the answer's X-Request-ID leads to it. One of a kind a minute."""
    logging_setup.configure(LoggingSettings(format="json"))
    counted = CheckIns()

    async def ask_broken() -> None:
        application = make_application(
            cast(Any, BrokenStore()),
            Access([]),
            RequestsInFlight(),
            cast(Any, Somebody()),
            None,
            AccessLog(counted),
            cast(Any, None),
            PresenceTimes(),
            cast(Any, None),
        )
        server = HTTPServer(application)
        sock, port = bind_unused_port()
        server.add_socket(sock)

        def ask() -> None:
            for name, method in (("one", "POST"), ("two", "POST"), ("three", "GET")):
                connection = http.client.HTTPConnection(LOOPBACK, port, timeout=PATIENCE_S)
                connection.request(method, "/api/client", headers={"X-Request-ID": name})
                response = connection.getresponse()
                response.read()
                connection.close()
                assert (response.status, response.headers["X-Request-ID"]) == (500, name)

        await asyncio.to_thread(ask)
        server.stop()
        await server.close_all_connections()

    asyncio.run(ask_broken())
    found = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    mistakes = [entry for entry in found if entry["event"] == "request failed"]
    assert [entry["request_id"] for entry in mistakes] == ["one", "three"]
    assert "a mistake" in json.dumps(mistakes[0]["exception"])
    assert [entry for entry in found if entry["event"] == "request"] == []
    assert counted.results["failed"] == 2


def fail_with_a_secret(password: str) -> None:
    """Fail, with secrets among the variables of every frame."""
    settings = {"url": f"postgresql://somebody:{password}@localhost/name"}
    connection = (password, settings)
    raise RuntimeError(f"a mistake, {len(connection)}")


@pytest.mark.parametrize("format_", ["console", "json"])
@pytest.mark.parametrize("by", ["structlog", "logging", "asyncio"])
def test_a_traceback_shows_no_variables(
    format_: Literal["console", "json"], by: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """They may be keys and passwords. The frames are there, whoever logs them."""
    logging_setup.configure(LoggingSettings(format=format_))
    pass_word = "s3cr3t-w0rd"  # noqa: S105 - for this test alone
    try:
        fail_with_a_secret(pass_word)
    except RuntimeError as error:
        if by == "structlog":
            structlog.get_logger().error("request failed", exc_info=error)
        elif by == "logging":
            logging.getLogger("tornado.application").error("whoops", exc_info=error)
        else:
            loop = asyncio.new_event_loop()
            loop.call_exception_handler({"message": "whoops", "exception": error})
            loop.close()
    said = capfd.readouterr().err
    assert "a mistake, 2" in said
    assert "fail_with_a_secret" in said
    assert "s3cr3t" not in said
    if format_ == "json":
        assert [json.loads(line)["level"] for line in said.splitlines()] == ["error"]


@pytest.mark.parametrize("format_", ["console", "json"])
def test_attackers_text_forges_nothing(
    format_: Literal["console", "json"], capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither a line of the log, nor a word to the terminal; also inside of an error."""
    logging_setup.configure(LoggingSettings(format=format_))
    evil = "a\r\n2026-01-02 [info] forged\x1b]0;title\x07\x9b31m\u202e\u2028"
    structlog.get_logger().warning("refused", who=evil, several=[evil, {"inner": evil}])
    logging.getLogger("tornado.general").warning("Malformed HTTP message: %s", evil)
    try:
        raise RuntimeError(evil)
    except RuntimeError as error:
        structlog.get_logger().error("request failed", exc_info=error)
        logging.getLogger("tornado.application").error("whoops %s", evil, exc_info=error)
    said = capfd.readouterr().err
    assert "forged" in said
    assert not [line for line in said.splitlines() if line.startswith("2026-01-02 [info] forged")]
    assert not set(said) & set("\x1b\x07\x9b\r\u202e\u2028")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Leave logging as it was found."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()
