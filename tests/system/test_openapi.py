"""The OpenAPI document: valid, complete, true of the server, and enough to generate requests."""

from __future__ import annotations

import base64
import copy
import http.client
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.web import RequestHandler

from tests.support.describing import Operation, differences, faults, operations, routes, validator
from tests.support.harness import (
    PATIENCE_S,
    Answer,
    Postgres,
    Server,
    StartServer,
    plain_environment,
    require,
    rows,
    running_server,
    wait_until,
)
from tornado_status.api import event_log, read_handler, users
from tornado_status.api.live import event_filter
from tornado_status.api.openapi import load_document
from tornado_status.model.presence import State
from tornado_status.model.records import MAX_LINEAGE, EventKind
from tornado_status.runtime.http_timeouts import MAX_BODY
from tornado_status.wire import json_members
from tornado_status.wire.sealed_datagram import MAX_EPOCH

VALID = "valid_user@example.com"
DOCUMENT = load_document()
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
}


@pytest.fixture(scope="module")
def shared(
    postgres: str, certs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server with a user who checked in three times."""
    rows(postgres, "CREATE DATABASE openapi")
    url = postgres.replace("/postgres?", "/openapi?")
    folder, access = tmp_path_factory.mktemp("shared"), {"admins": ["operator@example.com"]}
    with running_server(folder, certs, url, access=access) as server:
        for method in ("POST", "PUT", "PATCH"):
            assert server.request(method, "/api/client").status == 204
        yield server


def ask(
    server: Server,
    operation: Operation,
    *,
    cert: str = "operator",
    query: str = "",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    user: str = VALID,
) -> Answer:
    """Send one request; read only the head of an endless answer."""
    method, path = operation
    connection = server.connect(cert)
    try:
        connection.request(
            method, path.replace("{email}", user) + query, body=body, headers=headers or {}
        )
        response = connection.getresponse()
        endless = response.status == 101 or response.headers["Content-Type"] == "text/event-stream"
        return Answer(response.status, response.headers, b"" if endless else response.read())
    finally:
        connection.close()


# ------------------------------------------------------------------------------------ the document


@pytest.mark.once
def test_it_is_valid_openapi() -> None:
    """By the specification's own schema, which finds a fault in an invalid one."""
    available = importlib.util.find_spec("openapi_spec_validator") is not None
    require("openapi-spec-validator", available, "pip install -r requirements/openapi.txt")
    from openapi_spec_validator import OpenAPIV31SpecValidator

    assert [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []
    broken = copy.deepcopy(DOCUMENT)
    broken["paths"]["/api/client"]["get"]["responses"]["200"]["description"] = 7
    assert list(OpenAPIV31SpecValidator(broken).iter_errors())


@pytest.mark.parametrize("cert", ["client", "operator"])
def test_every_client_certificate_may_read_it(shared: Server, cert: str) -> None:
    """It is the file in the package, with the server's version."""
    answer = shared.request("GET", "/api/openapi.json", cert=cert)
    assert (answer.status, answer.json) == (200, DOCUMENT)
    assert answer.headers["Content-Type"] == "application/json"


def test_it_describes_every_route_and_method_and_no_others() -> None:
    """Describe each new route or method; `PAGES` are no part of the API."""
    found = differences(routes(), DOCUMENT)
    assert not found, "\n".join(found)


def test_a_route_without_a_description_is_found() -> None:
    """And a description without a route."""

    class New(RequestHandler):
        def put(self) -> None: ...

        def delete(self) -> None: ...

    application = routes()
    application.add_handlers(".*", [])
    application.wildcard_router.add_rules([(r"/api/users/([^/]+)/new\.(a|b)", New)])
    fewer = copy.deepcopy(DOCUMENT)
    fewer["paths"]["/api/gone"] = fewer["paths"].pop("/api/users/{email}")
    said = differences(application, fewer)
    for words in (
        "PUT /api/users/{}/new.a is served and not described: add it to",
        "DELETE /api/users/{}/new.b is served and not described: add it to",
        "GET /api/users/{} is served and not described: add it to",
        "GET /api/gone is described",
    ):
        assert any(line.startswith(words) for line in said), said
    application.wildcard_router.add_rules([(r"/board/(.+)", New)])
    assert differences(application, fewer) == said


def test_every_name_is_used_once_and_every_component_somewhere() -> None:
    """Generators make names of programs from them; an unused component would be untested."""
    names = [operation["operationId"] for operation in operations(DOCUMENT).values()]
    assert len(set(names)) == len(names)
    text = json.dumps(DOCUMENT)
    for kind in ("schemas", "headers", "parameters", "responses"):
        for name in DOCUMENT["components"][kind]:
            assert f'"#/components/{kind}/{name}"' in text, f"{kind}/{name}"


def upper_bounds(part: Any, where: str = "") -> Iterator[tuple[str, int]]:
    """Yield the place and the value of each upper bound in a part of the document."""
    inner = part.items() if isinstance(part, dict) else enumerate(part)
    for name, each in inner:
        if isinstance(each, dict | list):
            yield from upper_bounds(each, f"{where}/{name}")
        elif name in ("maximum", "maxItems", "maxLength"):
            yield f"{where}/{name}", each


def test_its_limits_are_those_of_the_code() -> None:
    """Each upper bound, the default page size, and the largest body, which is in the text."""
    known = {
        "LimitUsers": users.MAX_USERS,
        "LimitHistory": users.MAX_HISTORY,
        "LimitEvents": event_log.MAX_EVENTS,
        "EmailPatterns/schema/maxItems": event_filter.MAX_TERMS,
        "EmailPatterns/schema/items": event_filter.MAX_PATTERN,
        "EventKinds/schema/maxItems": event_filter.MAX_TERMS,
        "EventKinds/schema/items": event_filter.MAX_KIND,
        "schemas/Email": json_members.MAX_EMAIL,
        "/client_port": 65535,
        "Problem/properties/status": 599,
        "Log/properties/lineage": MAX_LINEAGE,
        "GroupKeys/properties/keys/items/properties/epoch": MAX_EPOCH,
        "RequestID": 128,
    }
    unused = set(known)
    for where, value in upper_bounds(DOCUMENT["components"]):
        found = [name for name in known if name in where]
        assert value == (known[found[0]] if found else json_members.MAX_SEQ), where
        unused -= set(found)
    assert not unused
    assert list(upper_bounds(DOCUMENT["paths"])) == []
    parameters = DOCUMENT["components"]["parameters"]
    for name in ("LimitUsers", "LimitHistory", "LimitEvents"):
        assert parameters[name]["schema"]["default"] == read_handler.DEFAULT_LIMIT
    for text in (
        DOCUMENT["info"]["description"],
        DOCUMENT["components"]["responses"]["TooLarge"]["description"],
    ):
        assert f" {MAX_BODY} bytes" in text


def test_its_examples_are_all_that_there_is() -> None:
    """The kinds of events and the states, as this version knows them."""
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["Event"]["properties"]["event"]["examples"] == [str(kind) for kind in EventKind]
    assert schemas["Record"]["properties"]["state"]["examples"] == [str(state) for state in State]


# ------------------------------------------------------------- every status of it, and nothing else


def _found(server: Server, operation: Operation) -> Answer:
    query = "?limit=1" if operation[1] == "/api/users" else ""
    headers = HANDSHAKE if operation[1] == "/api/socket" else {}
    cert = "client" if operation[1] == "/api/client" else "operator"
    return ask(server, operation, cert=cert, query=query, headers=headers)


def _not_modified(server: Server, operation: Operation) -> Answer:
    cert = "client" if operation[1] == "/api/client" else "operator"
    etag = ask(server, operation, cert=cert).headers["ETag"]
    return ask(server, operation, cert=cert, headers={"If-None-Match": etag})


def _done(server: Server, operation: Operation) -> Answer:
    if operation[1] == "/api/client":
        return ask(server, operation, cert="client")
    user = "somebody@example.com"
    assert ask(server, ("PUT", operation[1]), user=user).status in (201, 204)
    return ask(server, operation, user=user)


def _other_version(server: Server, operation: Operation) -> Answer:
    with server.connect_raw("operator") as wire:
        wire.sendall(f"{operation[0]} {operation[1]} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        response = http.client.HTTPResponse(wire, method=operation[0])
        response.begin()
        return Answer(response.status, response.headers, response.read())


PROVOKE: dict[int, Callable[[Server, Operation], Answer]] = {
    101: _found,
    200: _found,
    201: lambda server, operation: ask(server, operation, user="not_yet@example.com"),
    204: _done,
    304: _not_modified,
    400: lambda server, operation: ask(server, operation, cert="bad_client"),
    403: lambda server, operation: ask(server, operation, headers={"Origin": "https://else.where"}),
    404: lambda server, operation: ask(server, operation, user="nobody@example.com"),
    410: lambda server, operation: ask(server, operation, query="?after=9223372036854775807"),
    413: lambda server, operation: ask(server, operation, body=b"x" * 4097),
    426: lambda server, operation: ask(server, operation),
    505: _other_version,
}
ELSEWHERE = {429, 503}  # they need a server of their own: see below


@pytest.mark.parametrize("method, path", operations(DOCUMENT), ids=lambda text: text)
def test_each_status_that_is_described_is_answered_as_described(
    shared: Server, method: str, path: str
) -> None:
    """With its headers, type and shape, and no undescribed member."""
    for text in operations(DOCUMENT)[method, path]["responses"]:
        status = int(text)
        if status in ELSEWHERE:
            continue
        assert status in PROVOKE, f"{method} {path}: PROVOKE has no way to provoke {status}"
        answer = PROVOKE[status](shared, (method, path))
        assert answer.status == status
        assert faults(DOCUMENT, (method, path), answer) == []


def test_too_many_check_ins_are_answered_as_described(start_server: StartServer) -> None:
    """429 with Retry-After, for check-ins only."""
    server = start_server(server={"check_ins_per_second": 0.001})
    wait_until(
        lambda: ask(server, ("POST", "/api/client"), cert="client").status == 429,
        "the end of what one may do at once",
    )
    for operation, described in operations(DOCUMENT).items():
        answer = ask(server, operation, cert="client")
        assert (answer.status == 429) == ("429" in described["responses"]), operation
        assert faults(DOCUMENT, operation, answer) == []


def test_a_database_that_is_away_is_answered_as_described(
    start_server: StartServer, own_postgres: Postgres
) -> None:
    """503 with Retry-After, for each operation that needs the database, and no other."""
    server = start_server(url=own_postgres.url, access={"admins": ["operator@example.com"]})
    own_postgres.stop()
    for operation, described in operations(DOCUMENT).items():
        headers = HANDSHAKE if operation[1] == "/api/socket" else {}
        answer = ask(server, operation, headers=headers)
        assert (answer.status == 503) == ("503" in described["responses"]), operation
        assert faults(DOCUMENT, operation, answer) == []


def test_an_answer_that_is_not_as_described_is_found(shared: Server) -> None:
    """A status, a header, a type, a member too few and one too many."""
    operation = ("GET", "/api/users")
    answer = ask(shared, operation)
    fine = copy.deepcopy(DOCUMENT)
    assert faults(fine, operation, answer) == []

    def said(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> list[str]:
        changed = copy.deepcopy(DOCUMENT)
        change(changed["paths"]["/api/users"]["get"]["responses"], changed["components"])
        return faults(changed, operation, answer)

    assert said(lambda answers, _: answers.pop("200")) == ["a status of 200"]
    assert said(lambda answers, _: answers["200"]["content"].clear())
    assert said(
        lambda answers, _: answers["200"]["headers"].update(
            {"X-New": {"required": True, "schema": {}}}
        )
    ) == ["no X-New"]
    record = "Record"
    missing, *_ = said(lambda _, parts: parts["schemas"][record]["required"].append("height"))
    assert "'height' is a required property" in missing
    more, *_ = said(lambda _, parts: parts["schemas"][record]["properties"].pop("seq"))
    assert "'seq' was unexpected" in more


@pytest.mark.parametrize("path", ["/api/users/{email}", "/api/users/{email}/history", "/api/users"])
def test_text_that_postgresql_cannot_store_is_refused(shared: Server, path: str) -> None:
    """400 for a NUL and for invalid UTF-8: schemathesis sends neither in a path."""
    for text in ("%00", "a%00@example.com", "%ff"):
        answer = ask(shared, ("GET", path), user=text, query=f"?after={text}")
        assert answer.status == 400
        assert faults(DOCUMENT, ("GET", path), answer) == []


@pytest.mark.parametrize("path", ["/api/stream", "/api/socket"])
@pytest.mark.parametrize(
    "query, headers, cert, status",
    [
        ("after=x", {}, "operator", 400),
        ("after=-1", {}, "operator", 400),
        ("after=9223372036854775808", {}, "operator", 400),
        ("after=1%002", {}, "operator", 400),
        ("log=7", {}, "operator", 400),
        ("event=NEW", {}, "operator", 400),
        (f"event={'a' * 33}", {}, "operator", 400),
        ("email=", {}, "operator", 400),
        (f"email={'a' * 255}", {}, "operator", 400),
        ("&".join(f"email=user{n}" for n in range(21)), {}, "operator", 400),
        ("", {"Last-Event-ID": "x"}, "operator", 400),
        ("", {"Sec-WebSocket-Key": ""}, "operator", 400),
        ("", {"Sec-WebSocket-Version": "1"}, "operator", 426),
        ("", {}, "client", 403),
        (f"email={VALID}&email=b@example.com", {}, "client", 403),
        (f"email={VALID}", {}, "client", 200),
        ("email=*@example.com&event=new&after=0", {"Last-Event-ID": "1"}, "operator", 200),
    ],
)
def test_a_stream_refuses_invalid_parameters_as_described(
    shared: Server, path: str, query: str, headers: dict[str, str], cert: str, status: int
) -> None:
    """By SSE and WebSocket, with the bounds of the document."""
    if path == "/api/socket":
        headers = {**HANDSHAKE, **headers}
        status = 101 if status == 200 else status
    elif any(name.startswith("Sec-") for name in headers):
        status = 200
    answer = ask(shared, ("GET", path), query=f"?{query}", headers=headers, cert=cert)
    assert answer.status == status
    assert faults(DOCUMENT, ("GET", path), answer) == []


def test_the_lines_of_an_export_are_as_described(shared: Server) -> None:
    """JSON lines are history entries; CSV has a header line."""
    lines = ask(shared, ("GET", "/api/events.jsonl")).body.splitlines()
    assert len(lines) >= 3
    check = validator(DOCUMENT, DOCUMENT["components"]["schemas"]["HistoryEntry"])
    for line in lines:
        check.validate(json.loads(line))
    first = ask(shared, ("GET", "/api/events.csv")).body.decode().splitlines()[0]
    assert first.split(",") == list(event_log.COLUMNS)


def test_a_page_of_a_history_names_the_next(start_server: StartServer) -> None:
    """In its `Link`, also for an address with a slash in it."""
    server = start_server()
    server.rows("UPDATE head SET seq = 2")
    for seq, previous in ((1, None), (2, 1)):
        server.rows(
            "INSERT INTO check_in (seq, at, event, email, client_ip, client_port, previous)"
            " VALUES (%s, now(), 'check-in', 'a/b@example.com', '10.0.0.1', 5, %s)",
            *(seq, previous),
        )
    server.rows(
        "INSERT INTO user_status (seq, email, last_seen, client_ip, client_port)"
        " VALUES (2, 'a/b@example.com', now(), '10.0.0.1', 5)"
    )
    operation = ("GET", "/api/users/{email}/history")
    answer = ask(server, operation, user="a%2fb@example.com", query="?limit=1")
    assert answer.headers["Link"] == f'<{answer.json["next"]}>; rel="next"'
    following = server.request("GET", answer.json["next"], cert="operator")
    assert [event["seq"] for event in following.json["events"]] == [1]
    assert (following.json["next"], following.headers["Link"]) == (None, None)


# ---------------------------------------------------------------------- driven by what it says


def drive(
    server: Server, cert: str, directory: Path, description: dict[str, Any] = DOCUMENT
) -> subprocess.CompletedProcess[str]:
    """Have schemathesis send requests that the description allows, and invalid ones."""
    available = importlib.util.find_spec("schemathesis") is not None
    require("schemathesis", available, "pip install -r requirements/openapi.txt")
    directory.mkdir()
    (directory / "openapi.json").write_text(json.dumps(description))
    (directory / "schemathesis.toml").write_text(
        # A valid request may name a user or an event that does not exist,
        "[checks.positive_data_acceptance]\n"
        # and a string that fits the pattern may be no e-mail address.
        'expected-statuses = ["200", "201", "204", "304", "400", "403", "404", "410"]\n'
    )
    return subprocess.run(
        [
            *(Path(sys.executable).parent / "schemathesis", "--no-color", "run", "openapi.json"),
            f"--url={server.url}",
            f"--tls-verify={server.certs / 'ca.crt'}",
            f"--request-cert={server.certs / cert}.crt",
            f"--request-cert-key={server.certs / cert}.key",
            "--phases=examples,coverage,fuzzing",
            "--max-examples=25",
            "--generation-deterministic",
            f"--request-timeout={PATIENCE_S:.0f}",
            "--suppress-health-check=all",
            "--continue-on-failure",
            "--warnings=off",
            # Endless, or no HTTP after the handshake: see tests/server/test_live_stream.py.
            "--exclude-path-regex=^/api/(stream|socket)$",
        ],
        cwd=directory,
        env={**plain_environment(), "HOME": os.fspath(directory), "PYTHONWARNINGS": "ignore"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=5 * PATIENCE_S,
        check=False,
    )


@pytest.mark.once
@pytest.mark.parametrize("cert", ["operator", "client"])
def test_schemathesis_finds_nothing(start_server: StartServer, cert: str, tmp_path: Path) -> None:
    """No 5xx, no undescribed status, header or shape, and invalid input is refused."""
    server = start_server(access={"admins": ["operator@example.com"]})  # whose users it removes
    assert server.request("POST", "/api/client").status == 204
    done = drive(server, cert, tmp_path / "drive")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout


@pytest.mark.once
def test_schemathesis_would_find_something(shared: Server, tmp_path: Path) -> None:
    """An undescribed status, shape and method."""
    wrong = copy.deepcopy(DOCUMENT)
    paths = {
        path: wrong["paths"][path] for path in ("/api/client", "/api/users", "/api/announcers")
    }
    wrong["paths"] = paths
    del paths["/api/users"]["get"]["responses"]["400"]
    wrong["components"]["schemas"]["Announcers"]["required"].append("missing")
    del paths["/api/client"]["patch"]
    done = drive(shared, "operator", tmp_path / "drive", wrong)
    assert done.returncode == 1, done.stdout + done.stderr
    for words in (
        "Undocumented status code",
        "Response violates schema",
        "Wrong response to undeclared method",
    ):
        assert words in done.stdout, done.stdout
