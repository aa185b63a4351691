"""The HTTP contract of the check-in port, row by row."""

from __future__ import annotations

import datetime
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    Heard,
    Server,
    StartServer,
    exchange,
    rows,
    running_server,
    wait_until,
)

VALID = "valid_user@example.com"


@pytest.fixture(scope="module")
def shared(
    postgres: str, certs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server for the tests that ignore the rows of others."""
    rows(postgres, "CREATE DATABASE http")
    url = postgres.replace("/postgres?", "/http?")
    with running_server(tmp_path_factory.mktemp("shared"), certs, url) as server:
        yield server


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_a_check_in_is_committed_answered_and_announced(
    server: Server, heard: Heard, method: str
) -> None:
    """204 with an empty body, one row with the client's real address, one update on the wire."""
    connection = server.connect()
    answer = exchange(connection, method, "/api/client")
    _, client_port = connection.sock.getsockname()
    connection.close()
    assert (answer.status, answer.body) == (204, b"")
    [(email, last_seen, client_ip, port, seq)] = server.rows(
        "SELECT email, last_seen, host(client_ip), client_port, seq FROM user_status"
    )
    assert (email, client_ip, port, seq) == (VALID, "127.0.0.1", client_port, 1)
    [update] = heard.updates(1)
    assert update == {
        "seq": 1,
        "event": "new",
        "email": VALID,
        "last_seen": last_seen.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "client_ip": "127.0.0.1",
        "client_port": client_port,
    }


def test_many_check_ins_on_one_connection_are_each_recorded(server: Server) -> None:
    """Keep-alive: the later ones are ordinary check-ins with sequence numbers of their own."""
    connection = server.connect()
    for _ in range(5):
        assert exchange(connection, "POST", "/api/client").status == 204
    connection.close()
    log = server.rows("SELECT seq, event FROM check_in ORDER BY seq")
    assert log == [(1, "new"), *((seq, "check-in") for seq in range(2, 6))]


def test_a_body_up_to_4_kb_is_read_and_ignored(server: Server) -> None:
    """Proxies and old clients may add one."""
    connection = server.connect()
    assert exchange(connection, "POST", "/api/client", body=b"x" * 4096).status == 204
    assert exchange(connection, "POST", "/api/client").status == 204
    connection.close()


def test_a_larger_body_is_refused(server: Server) -> None:
    """413 with a sentence, nothing recorded, and the server continues."""
    answer = server.request("POST", "/api/client", body=b"x" * 4097)
    assert answer.status == 413
    assert answer.detail == "A check-in has no body; at most 4096 bytes are read and ignored"
    assert server.rows("SELECT count(*) FROM check_in") == [(0,)]
    assert server.request("POST", "/api/client").status == 204


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "GET"])
def test_a_common_name_that_is_no_email_is_a_400(server: Server, method: str) -> None:
    """With one sentence, as problem+json, and nothing recorded."""
    answer = server.request(method, "/api/client", cert="bad_client")
    assert answer.status == 400
    assert answer.detail == "CN must be a valid email address"
    assert server.rows("SELECT count(*) FROM check_in") == [(0,)]


def test_with_closed_enrolment_only_enrolled_users_check_in(start_server: StartServer) -> None:
    """403 `User unknown` leaves no row and no number. An enrolled user's first event is `new`."""
    server = start_server(access={"enrolment": "closed"})
    answer = server.request("POST", "/api/client")
    assert (answer.status, answer.detail) == (403, "User unknown")
    assert server.rows("SELECT (SELECT seq FROM head), (SELECT count(*) FROM user_status)") == [
        (0, 0)
    ]
    server.rows("INSERT INTO user_status (email) VALUES (%s)", VALID)
    assert server.request("GET", "/api/client").status == 404
    assert server.request("POST", "/api/client").status == 204
    assert server.rows("SELECT seq, event, email FROM check_in") == [(1, "new", VALID)]


def test_a_client_certificate_is_required(server: Server) -> None:
    """The handshake fails with TLS's certificate_required alert."""
    with pytest.raises(ssl.SSLError, match="certificate required"):
        server.request("POST", "/api/client", cert=None)
    failed = server.wait_event("handshake failed")
    assert failed["kind"] == "peer-did-not-return-a-certificate"
    assert failed["hint"] == "the client sent no certificate"


def test_the_log_says_that_a_client_does_not_trust_the_server(server: Server, certs: Path) -> None:
    """OpenSSL names only the client's alert."""
    context = ssl.create_default_context()  # the public CAs, and not ours
    context.load_cert_chain(certs / "client.crt", certs / "client.key")
    with socket.create_connection((LOOPBACK, server.port), timeout=PATIENCE_S) as connection:
        with pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(connection, server_hostname="localhost")
    failed = server.wait_event("handshake failed")
    assert failed["kind"].endswith("alert-unknown-ca")
    assert failed["hint"].startswith("the client does not trust this server's CA: give it")


def test_a_request_without_a_certificate_has_no_email_in_the_log(start_server: StartServer) -> None:
    """Rather than `email=None`."""
    server = start_server(tls={"client_certificate": "optional"})
    assert server.request("GET", "/api/client", cert=None).status == 400
    assert "email" not in server.wait_event("request")


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/client"), ("GET", "/"), ("GET", "/nowhere"), ("DELETE", "/api/client")],
)
def test_an_optional_certificate_that_is_missing_is_a_400(
    start_server: StartServer, method: str, path: str
) -> None:
    """On any path."""
    server = start_server(tls={"client_certificate": "optional"})
    answer = server.request(method, path, cert=None)
    assert (answer.status, answer.detail) == (400, "No required SSL certificate was sent")
    assert server.request("POST", "/api/client").status == 204


def test_a_user_reads_the_own_record_and_reading_never_writes(server: Server) -> None:
    """404 before the first check-in, then the record as committed."""
    assert server.request("GET", "/api/client").status == 404
    assert server.request("POST", "/api/client").status == 204
    before = server.rows("SELECT * FROM check_in")
    record = server.request("GET", "/api/client").json
    assert record == server.request("GET", f"/api/users/{VALID}").json
    assert (record["email"], record["seq"], record["client_ip"]) == (VALID, 1, "127.0.0.1")
    assert server.rows("SELECT * FROM check_in") == before


@pytest.mark.parametrize(
    "path",
    ["/api/users", "/api/users/somebody@example.com", "/api/events?after=0", "/api/stream", "/"],
)
def test_only_readers_may_read(server: Server, path: str) -> None:
    """403 for an ordinary user, not for an operator."""
    answer = server.request("GET", path)
    assert (answer.status, answer.detail) == (403, "Only readers may see this")
    if path != "/api/stream":  # which has no end: see test_live_stream
        assert server.request("GET", path, cert="operator").status in (200, 404)


def test_readers_see_users_in_pages(server: Server) -> None:
    """`next` leads from page to page; each has the head."""
    for cert in ("client", "operator"):
        assert server.request("POST", "/api/client", cert=cert).status == 204
    first = server.request("GET", "/api/users?limit=1", cert="operator").json
    assert first["head"] == 2
    second = server.request("GET", first["next"], cert="operator").json
    emails = [record["email"] for page in (first, second) for record in page["users"]]
    assert emails == ["operator@example.com", VALID]
    assert second["next"] is None


def test_readers_see_the_log_after_a_number(server: Server) -> None:
    """In order, bounded, empty at the head; 410 above it, 400 for an invalid parameter."""
    for _ in range(3):
        assert server.request("POST", "/api/client").status == 204

    def events(query: str) -> list[int]:
        page = server.request("GET", f"/api/events?{query}", cert="operator").json
        assert page["head"] == 3
        return [event["seq"] for event in page["events"]]

    assert events("after=0") == [1, 2, 3]
    assert events("after=1&limit=1") == [2]
    assert events("after=3") == []
    assert server.request("GET", "/api/events?after=4", cert="operator").status == 410
    server.rows("DELETE FROM check_in WHERE seq = 1")
    assert server.request("GET", "/api/events?after=0", cert="operator").status == 410
    for invalid in ("after=-1", "after=x", "after=0&limit=0", "after=0&limit=100001"):
        answer = server.request("GET", f"/api/events?{invalid}", cert="operator")
        assert answer.status == 400
        assert answer.detail is not None


def test_pages_name_the_next_one(server: Server) -> None:
    """In a Link header, as RFC 8288 says; the last has none."""
    for cert in ("client", "operator", "client"):
        assert server.request("POST", "/api/client", cert=cert).status == 204
    for path, count in (("/api/users?limit=1", 2), ("/api/events?after=0&limit=1", 3)):
        following: str | None = path
        for _ in range(count):
            assert following is not None
            page = server.request("GET", following, cert="operator")
            assert page.status == 200
            link = page.headers["Link"]
            following = link.removeprefix("<").removesuffix('>; rel="next"') if link else None
        assert following is None


@pytest.mark.parametrize(
    "path",
    ["/api/users", "/api/users?limit=1", f"/api/users/{VALID}", "/api/client", "/api/events"],
)
def test_a_snapshot_is_sent_again_only_when_something_has_changed(
    server: Server, path: str
) -> None:
    """304 for the last ETag, until the next check-in."""

    def get(etag: str | None) -> tuple[int, str, bytes]:
        connection = server.connect("operator")
        connection.request("GET", path, headers={"If-None-Match": etag} if etag else {})
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, response.headers["ETag"], body

    for cert in ("client", "operator"):
        assert server.request("POST", "/api/client", cert=cert).status == 204

    def is_unchanged() -> bool:  # but for the rough time in it, which may have moved
        status, etag, body = get(None)
        assert (status, bool(body)) == (200, True)
        return get(etag) == (304, etag, b"")

    wait_until(is_unchanged, "304")
    etag = get(None)[1]
    assert get('"another"')[0] == 200
    for cert in ("client", "operator"):
        assert server.request("POST", "/api/client", cert=cert).status == 204
    status, newer, body = get(etag)
    assert (status, bool(body)) == (200, True)
    assert newer != etag


def test_other_methods_are_a_405_with_allow(server: Server) -> None:
    answer = server.request("DELETE", "/api/client")
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, POST, PUT, PATCH"


def test_other_paths_are_a_404(server: Server) -> None:
    """As problem+json."""
    answer = server.request("GET", "/nowhere")
    assert (answer.status, answer.detail) == (404, "There is nothing here")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Origin": "https://localhost:{port}"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "http://localhost:{port}"}, False),
        ({"Origin": "https://localhost"}, False),
        ({"Origin": "null"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
    ],
)
def test_other_web_sites_cannot_use_a_visitors_certificate(
    shared: Server, method: str, headers: dict[str, str], allowed: bool
) -> None:
    """Their pages can make a browser send requests: the answer is 403, and nothing is recorded."""
    before = shared.rows("SELECT seq FROM head")
    connection = shared.connect()
    filled = {name: value.format(port=shared.port) for name, value in headers.items()}
    connection.request(method, "/api/client", headers=filled)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    if allowed:
        assert response.status in (200, 204, 404)
    else:
        assert response.status == 403
        assert b"Requests from other web sites are not served" in body
        assert shared.rows("SELECT seq FROM head") == before
