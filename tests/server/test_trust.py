"""Revocation, expiry and hot reload: who is let in changes while the server runs."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import http.client
import re
import signal
import socket
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

import psycopg2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from certs_gen.authority import CA_NAME, Authority, Credential, common_name, new_key
from certs_gen.cli import main as certs_gen
from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    Answer,
    Heard,
    Server,
    exchange,
    wait_until,
)
from tests.support.hostile_requests import HOST
from tests.support.log_events import fill_history
from tests.support.metrics import refused
from tests.support.slow_client import ask
from tests.support.trust_site import DAY, POST, Site, now, replace, revocation_list
from tornado_status.config.settings import TlsSettings
from tornado_status.errors import ConfigError, CRLError
from tornado_status.ingress.trust import Trust
from tornado_status.pki.chain_paths import REVOKED
from tornado_status.pki.crl import CRL, CRLMark, read_crls, replace_crls
from tornado_status.pki.crl_register import CRLRegister
from tornado_status.pki.trust_anchors import Anchors, load_anchors
from tornado_status.wire.datagram import decode_json

GET = ("GET", "/api/client")


# ------------------------------------------------------------------------------------ revocation


def test_a_revoked_certificate_is_refused_everywhere_at_once(site: Site) -> None:
    """At new handshakes, in a resumed session, and on connections already open: 403 and close."""
    site.start()
    context = site.server.client_context()
    plain, ordinary = site.server.connect(), site.server.connect()
    assert exchange(plain, *POST).status == 204
    assert exchange(ordinary, *GET).status == 200
    with site.server.connect_raw() as first:
        first.sendall(b"POST /api/client HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert first.recv(4096).startswith(b"HTTP/1.1 204")
        session = first.session
    site.revoke("client")

    for connection in (plain, ordinary):
        answer = exchange(connection, *POST)
        assert (answer.status, answer.detail) == (403, "The certificate is revoked")
        assert answer.headers["Connection"] == "close"
        assert connection.sock is None  # closed: http.client has read its end
    assert site.request().detail == "The certificate is revoked"
    raw = socket.create_connection((LOOPBACK, site.server.port), timeout=PATIENCE_S)
    with context.wrap_socket(raw, server_hostname="localhost", session=session) as resumed:
        resumed.sendall(b"POST /api/client HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert resumed.recv(4096).startswith(b"HTTP/1.1 403")
    assert site.request("operator").status == 204
    assert site.server.rows("SELECT count(*) FROM check_in WHERE email LIKE 'valid%%'") == [(2,)]


@pytest.mark.parametrize("reads", [True, False], ids=["reads", "does not read"])
def test_a_revocation_cuts_off_an_answer(site: Site, reads: bool) -> None:
    """Also one whose client does not take it: it is closed long before its time-out."""
    server = site.start()
    fill_history(server, "valid_user@example.com", 60_000)
    request = b"GET /api/users/valid_user@example.com/history.csv HTTP/1.1\r\n" + HOST + b"\r\n"
    with ask(server, request, "client") as connection:
        site.revoke("client")
        if not reads:
            told = server.wait_event("answer cut off")
            assert told["reason"] == "The certificate is revoked"
        answer = b""
        with contextlib.suppress(ssl.SSLError, ConnectionResetError):
            while data := connection.recv(65_536):
                answer = (answer + data)[-100:]
    assert not answer.endswith(b"\r\n0\r\n\r\n")
    told = server.wait_event("identity refused")
    assert (told["reason"], told["email"]) == ("revoked", "valid_user@example.com")


NEW_SESSION_TICKET = 4  # the type of a handshake message (RFC 8446, 4)


def test_a_handshake_gives_one_ticket_which_dies_with_its_context(site: Site) -> None:
    """It is good for as long as nothing is reloaded; then the next handshake is a whole one."""
    site.start()
    context = ssl.create_default_context(cafile=str(site.certs / "ca.crt"))
    context.load_cert_chain(site.certs / "client.crt", site.certs / "client.key")
    tickets = 0

    def on_message(
        connection: object, direction: str, version: int, kind: int, message: int, data: bytes
    ) -> None:
        nonlocal tickets
        tickets += direction == "read" and message == NEW_SESSION_TICKET

    # Only this tells how many there are: a connection keeps the last one.
    context._msg_callback = on_message  # type: ignore[attr-defined]

    def check_in(session: ssl.SSLSession | None) -> tuple[bool | None, ssl.SSLSession | None]:
        raw = socket.create_connection((LOOPBACK, site.server.port), timeout=PATIENCE_S)
        with context.wrap_socket(raw, server_hostname="localhost", session=session) as connection:
            connection.sendall(b"POST /api/client HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 204")
            return connection.session_reused, connection.session

    reused, session = check_in(None)
    assert (reused, tickets) == (False, 1)
    assert check_in(session)[0] is True
    site.server.process.send_signal(signal.SIGHUP)
    site.wait_reloaded()
    assert check_in(session)[0] is False


def test_all_connections_of_a_revoked_certificate_are_refused(site: Site) -> None:
    """They share one verdict: that it was made anew for one of them lets no other one through."""
    site.start()
    connections = [site.server.connect() for _ in range(3)]
    for connection in connections:
        assert exchange(connection, *POST).status == 204
    site.revoke("client")
    assert site.request().status == 403
    assert [exchange(connection, *POST).status for connection in connections] == [403] * 3


def test_refusals_on_open_connections_are_counted_and_told(site: Site) -> None:
    """By their reason, once a connection, with whose they are: like those at the start."""
    site.start()
    plain, ordinary, idle = (site.server.connect() for _ in range(3))
    assert exchange(plain, *POST).status == 204
    assert exchange(ordinary, *GET).status == 200
    assert exchange(idle, *POST).status == 204
    stream = site.server.connect_raw()
    stream.sendall(
        b"GET /api/stream?email=valid_user@example.com HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    assert stream.recv(4096).startswith(b"HTTP/1.1 200")
    site.revoke("client")
    with stream:
        while stream.recv(4096):
            pass
    assert refused(site.server, "revoked") == 1
    assert exchange(plain, *POST).status == 403
    assert refused(site.server, "revoked") == 2
    assert exchange(ordinary, *GET).status == 403
    assert refused(site.server, "revoked") == 3
    site.server.wait_event("identity refused")
    told = site.server.events("identity refused")
    assert [(line["reason"], line["email"], line["client_ip"]) for line in told] == [
        ("revoked", "valid_user@example.com", LOOPBACK)
    ]
    assert site.request().status == 403  # when it connects: the log names no user
    assert refused(site.server, "revoked") == 4
    wait_until(lambda: len(site.server.events("identity refused")) > 1, "the second line")
    assert "email" not in site.server.events("identity refused")[1]
    assert exchange(idle, *POST).status == 403
    assert site.request("operator").status == 204
    assert refused(site.server, "revoked") == 5


def test_who_is_not_revoked_notices_nothing(site: Site) -> None:
    """An open connection goes on, over any number of new lists."""
    site.start()
    connection = site.server.connect("operator")
    for number in range(2, 6):
        assert exchange(connection, *POST).status == 204
        site.revoke("client", number=number)
    assert exchange(connection, *POST).status == 204
    connection.close()


def test_a_list_with_a_lower_number_is_refused(site: Site) -> None:
    """A revoked user does not come back with an old file."""
    site.start()
    site.revoke("client", number=7)
    site.put_list([], 6)
    failure = site.server.wait_event("reload failed, keeping the previous certificates")
    assert re.search(r"tls\.crl: .* number \d+ is older than \d+, which was", failure["reason"])
    assert site.request().status == 403


@pytest.mark.parametrize("kind", ["lower number", "fewer entries", "no file"])
def test_a_restart_forgets_no_revocation(site: Site, kind: str) -> None:
    """The database knows which list was in force: an older one does not start the server."""
    site.start()
    site.revoke("client", number=7)
    mark = "SELECT number::text FROM crl"
    wait_until(lambda: len(site.server.rows(mark)) == 1, "the list to be recorded")
    assert site.server.stop() == 0
    if kind == "no file":
        (site.certs / "ca.crl").unlink()
    else:
        site.put_list([], 6 if kind == "lower number" else 7)
    reason = {
        "lower number": r"number \d+ is older than \d+, which was in force for",
        "fewer entries": r"number \d+ was in force for .* with other entries",
        "no file": r"the CRL of .* is missing",
    }[kind]
    again = site.start(wait=False, names_list=kind != "no file")
    assert again.process.wait(PATIENCE_S) == 2
    assert re.search(f"tls.crl: .*{reason}", again.log.wait_end())
    site.put_list([], 8)
    assert site.start().rows(mark) != []
    assert site.request().status == 204


def test_an_older_list_records_no_check_in_at_a_restart(site: Site) -> None:
    """The server compares it with the database's before it records the first check-in."""
    site.start()
    site.revoke("client", number=7)
    mark = "SELECT number::text FROM crl"
    wait_until(lambda: len(site.server.rows(mark)) == 1, "the list to be recorded")
    assert site.server.stop() == 0
    site.put_list([], 6)
    waits = "SELECT pid FROM pg_locks WHERE relation = 'crl'::regclass AND NOT granted"
    with contextlib.closing(psycopg2.connect(site.server.database_url)) as blocker:
        blocker.cursor().execute("LOCK crl")  # a database that takes its time with this table
        again = site.start(wait=False)
        wait_until(lambda: again.rows(waits), "the server to ask for the newest list")
        assert site.request().status == 503
        blocker.rollback()
    assert again.process.wait(PATIENCE_S) == 2
    assert again.rows("SELECT email FROM check_in") == []


def test_a_ca_renewed_with_a_new_key_keeps_both_lists_in_force(site: Site) -> None:
    """Both have the same name. A file without one of the lists is refused, and says what to do."""
    renewed = Authority.create()
    fresh = renewed.issue_client("fresh@example.com")
    (site.certs / "fresh.key").write_bytes(fresh.key_pem())
    (site.certs / "fresh.crt").write_bytes(fresh.certificate_pem())
    bundle = site.authority.certificate_pem() + renewed.certificate_pem()
    replace(site.certs / "ca.crt", bundle)
    client = x509.load_pem_x509_certificate((site.certs / "client.crt").read_bytes())
    old_list = revocation_list(site.authority, [client.serial_number], number=9)
    new_list = revocation_list(renewed, [fresh.certificate.serial_number], number=3)
    replace(site.certs / "ca.crl", old_list + new_list)
    site.start()
    revoked = [site.request(name).detail for name in ("client", "fresh")]
    assert revoked == ["The certificate is revoked"] * 2
    assert site.request("operator").status == 204
    listed = site.server.management("/metrics").body.decode()
    samples = re.findall(
        r"^tornado_status_crl_expiry_timestamp_seconds\{.*\}", listed, re.MULTILINE
    )
    assert len(samples) == len(set(samples)) == 2

    replace(site.certs / "ca.crl", revocation_list(site.authority, [], number=10))
    failure = site.server.wait_event("reload failed, keeping the previous certificates")
    assert re.search(r"tls\.crl: .* is missing, whose number 3 was in force", failure["reason"])
    assert [site.request(name).status for name in ("client", "fresh")] == [403] * 2
    replace(site.certs / "ca.crl", revocation_list(site.authority, [], number=10) + new_list)
    site.wait_reloaded()
    assert [site.request(name).status for name in ("client", "fresh")] == [204, 403]


@pytest.mark.parametrize(
    ("policy", "renewed", "status", "ready_status", "said_as"),
    [
        ("warn", False, 204, 200, "warnings"),
        ("refuse", False, 403, 503, "problems"),
        ("refuse", True, 403, 503, "problems"),
    ],
)
def test_a_late_list_is_the_operators_choice(
    site: Site, policy: str, renewed: bool, status: int, ready_status: int, said_as: str
) -> None:
    """By default it locks no client out; the log and readiness warn.

    If it locks out every client, the server cannot serve, and says so. A CA with two certificates,
    as after a renewal with its key, is no exception.
    """
    if renewed:
        second = site.authority.certify(
            site.authority.certificate.public_key(),
            site.authority.certificate.subject,
            [(x509.BasicConstraints(ca=True, path_length=None), True)],
            not_before=now() - DAY,
            not_after=now() + 300 * DAY,
        )
        with (site.certs / "ca.crt").open("ab") as file:
            file.write(second.public_bytes(Encoding.PEM))
    late = revocation_list(site.authority, next_update=now() - DAY / 2)
    replace(site.certs / "ca.crl", late)
    site.start(on_expired_crl=policy)
    assert site.request().status == status
    ready = site.server.management("/readyz")
    assert ready.status == ready_status
    [said] = ready.json[said_as]
    assert re.fullmatch(r"tls\.crl: the CRL of .* expired 12 hours ago", said)
    assert said in [event["reason"] for event in site.server.events("check failing")]


def test_a_list_is_warned_of_before_it_is_late(site: Site) -> None:
    """In readiness and in the log, in time to issue it anew; with that the warning ends."""
    soon = revocation_list(site.authority, number=2, next_update=now() + 2 * DAY)
    replace(site.certs / "ca.crl", soon)
    site.start()
    said = f"tls.crl: the CRL of {CA_NAME} expires in 2 days"
    assert site.server.management("/readyz").json["warnings"] == [said]
    assert said in [event["reason"] for event in site.server.events("check failing")]
    later = revocation_list(site.authority, number=3, next_update=now() + 20 * DAY)
    replace(site.certs / "ca.crl", later)
    site.wait_reloaded()
    assert site.server.management("/readyz").json["warnings"] == []


def test_a_revoked_intermediate_takes_its_clients_along(site: Site) -> None:
    """CRLs are checked for every CA in the chain."""
    key = new_key("ec")
    certificate = site.authority.certify(
        key.public_key(),
        common_name("intermediate"),
        [
            (x509.BasicConstraints(ca=True, path_length=0), True),
            (
                x509.KeyUsage(
                    digital_signature=False,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=True,
                    crl_sign=True,
                    encipher_only=False,
                    decipher_only=False,
                ),
                True,
            ),
        ],
        not_before=now() - DAY,
        not_after=now() + DAY,
    )
    intermediate = Authority(certificate, key)
    leaf = intermediate.issue_client("below@example.com", days=1)
    (site.certs / "below.key").write_bytes(leaf.key_pem())
    (site.certs / "below.crt").write_bytes(leaf.certificate_pem() + intermediate.certificate_pem())
    (site.certs / "intermediate.crt").write_bytes(intermediate.certificate_pem())
    site.start()
    connection = site.server.connect("below")
    assert exchange(connection, *POST).status == 204
    site.revoke("intermediate")
    assert exchange(connection, *POST).status == 403
    assert site.request("below").detail == "The certificate is revoked"
    assert site.request("client").status == 204


def test_another_cas_list_is_refused_at_the_start(site: Site) -> None:
    """One line, exit 2."""
    replace(site.certs / "ca.crl", revocation_list(Authority.create(name="somebody else")))
    with pytest.raises(AssertionError, match=r"tls\.crl: .*issued by none of the client CAs"):
        site.start()


def test_an_expired_certificate_is_refused_on_an_open_connection(site: Site) -> None:
    """403 and close, when its time is over."""
    site.start()
    site.issue_brief()
    connection = site.server.connect("brief")
    last: list[Answer] = []

    def is_refused() -> bool:
        last.append(exchange(connection, *POST))
        return last[-1].status != 204

    wait_until(is_refused, "the certificate to expire")
    assert len(last) > 1
    assert last[-1].detail == "The certificate has expired"
    assert connection.sock is None
    assert refused(site.server, "expired") == 1


# ---------------------------------------------------------------------------------------- reload


def renew_server(site: Site, name: str) -> bytes:
    """Put a new server certificate in place, key first; return it in DER."""
    credential = site.authority.issue_server([name, "localhost"], ["127.0.0.1"])
    # Between the two renames key and certificate do not match: the server must wait for both.
    replace(site.certs / "server.key", credential.key_pem())
    replace(site.certs / "server.crt", credential.certificate_pem())
    return credential.certificate.public_bytes(Encoding.DER)


def served_certificate(server: Server) -> bytes:
    with server.connect_raw() as connection:
        certificate = connection.getpeercert(binary_form=True)
        assert certificate is not None
        return certificate


def wait_served(server: Server, certificate: bytes) -> None:
    wait_until(lambda: served_certificate(server) == certificate, "the new certificate")


def test_a_renewed_server_certificate_is_served_without_a_failed_handshake(site: Site) -> None:
    """Swapped five times under new connections and requests: not one of them fails."""
    site.start()
    stop = threading.Event()
    problems: list[Exception] = []
    done = [0, 0]

    def connect_anew() -> None:
        while not stop.is_set():
            try:
                assert site.request().status == 204
                done[0] += 1
            except Exception as error:
                problems.append(error)

    def stay() -> None:
        connection = site.server.connect("operator")
        try:
            while not stop.is_set():
                assert exchange(connection, *POST).status == 204
                done[1] += 1
        except Exception as error:
            problems.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=target) for target in (connect_anew, stay)]
    for thread in threads:
        thread.start()
    try:
        for number in range(5):
            fresh = renew_server(site, f"renewed{number}.example.com")
            wait_served(site.server, fresh)
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert problems == []
    assert min(done) > 5


def test_a_bad_file_changes_nothing_and_is_told(site: Site) -> None:
    """The old certificate goes on being served; the next good one is taken."""
    site.start()
    before = served_certificate(site.server)
    replace(site.certs / "server.crt", b"nonsense")
    failure = site.server.wait_event("reload failed, keeping the previous certificates")
    assert failure["reason"].startswith("tls.certificate: ")
    assert served_certificate(site.server) == before
    assert site.request().status == 204
    ready = site.server.management("/readyz")
    assert (ready.status, ready.json["checks"]["files"]["status"]) == (200, "warning")
    assert ready.json["warnings"][-1].endswith(failure["reason"])
    fresh = renew_server(site, "mended.example.com")
    wait_served(site.server, fresh)
    assert site.server.management("/readyz").json["checks"]["files"] == {
        "status": "ok",
        "reasons": [],
    }


def test_sighup_reloads(site: Site) -> None:
    """For those who would rather say when."""
    site.start()
    site.server.process.send_signal(signal.SIGHUP)
    site.wait_reloaded()
    assert site.request().status == 204


def test_a_new_announcer_key_signs_from_then_on(site: Site) -> None:
    """Without a restart, and published at once."""
    site.start()
    with Heard(site.server.announce_port) as listener:
        assert site.request().status == 204
        first = decode_json(listener.one()[0]).kid
        assert certs_gen(["announcer", "--force", "--out", str(site.certs)]) == 0
        site.wait_reloaded()
        assert site.request().status == 204
        second = decode_json(listener.one()[0]).kid
    assert first != second

    def published() -> bool:
        page = site.request("operator", ("GET", "/api/announcers")).json
        return len(page["announcers"]) == 2

    wait_until(published, "both to be published")


def test_a_revoked_announcer_is_withdrawn(site: Site) -> None:
    """Listeners fetch its certificate no more, and the log says so; the next key's is served on."""
    site.start()
    assert certs_gen(["announcer", "--name", "next", "--out", str(site.certs)]) == 0

    def published() -> set[str]:
        return set(site.request("operator", ("GET", "/api/announcers")).json["announcers"])

    first, following = ((site.certs / f"{name}.crt").read_text() for name in ("announcer", "next"))
    site.server.rows("INSERT INTO announcer VALUES ('next', %s, now())", following)
    wait_until(lambda: published() == {first, following}, "both to be published")
    site.revoke("announcer")
    assert published() == {following}
    [warning] = site.server.events("listeners of this CA will refuse the announcer")
    assert warning["reason"] == "its certificate is revoked"


def test_another_ca_drains_what_the_old_one_let_in(site: Site, tmp_path: Path) -> None:
    """With both in the bundle all go on; without the old one its clients are out, everywhere."""
    other = tmp_path / "other"
    assert certs_gen(["--out", str(other)]) == 0
    site.start(crl=None)
    server = site.server
    staying, leaving = server.connect(), server.connect()
    for connection in (staying, leaving):
        assert exchange(connection, *POST).status == 204

    both = (site.certs / "ca.crt").read_bytes() + (other / "ca.crt").read_bytes()
    replace(tmp_path / "certs" / "ca.crt", both)
    site.wait_reloaded()
    answer = exchange(staying, *POST)  # checked again, answered, and then closed
    assert answer.status == 204
    assert answer.headers["Connection"] == "close"
    assert site.request().status == 204

    late = server.connect()
    assert exchange(late, *POST).status == 204
    replace(tmp_path / "certs" / "ca.crt", (other / "ca.crt").read_bytes())
    site.wait_reloaded()
    try:
        answer = exchange(late, *POST)
        assert answer.detail == "The certificate's CA is not trusted any more"
    except http.client.RemoteDisconnected:
        pass  # idle for so long that it was closed already
    with pytest.raises(ssl.SSLError, match="unknown ca"):
        old = ssl.create_default_context(cafile=str(other / "ca.crt"))
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.load_cert_chain(site.certs / "client.crt", site.certs / "client.key")
        raw = socket.create_connection((LOOPBACK, server.port), timeout=PATIENCE_S)
        with old.wrap_socket(raw) as refused:
            refused.recv(1)
    staying.close()
    leaving.close()
    late.close()


def other_authority(directory: Path) -> bytes:
    """Make another CA; return its certificate."""
    assert certs_gen(["--out", str(directory)]) == 0
    return (directory / "ca.crt").read_bytes()


@pytest.mark.parametrize("how", [POST, GET], ids=["check-in", "ordinary"])
def test_an_idle_connection_of_old_cas_is_closed(
    site: Site, tmp_path: Path, how: tuple[str, str]
) -> None:
    """Without waiting for its next request; whatever it was used for, and no other."""
    site.start(crl=None)
    idle = site.server.connect_raw()
    with idle:
        idle.sendall(f"{how[0]} {how[1]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert idle.recv(4096).startswith((b"HTTP/1.1 20", b"HTTP/1.1 404"))
        site.server.process.send_signal(signal.SIGHUP)
        site.wait_reloaded()
        idle.settimeout(3)  # nothing has changed: it stays
        with pytest.raises(TimeoutError):
            while idle.recv(4096):
                pass
        idle.settimeout(PATIENCE_S)
        both = (site.certs / "ca.crt").read_bytes() + other_authority(tmp_path / "other")
        replace(site.certs / "ca.crt", both)
        site.wait_reloaded()
        assert idle.recv(4096) == b""


@pytest.mark.parametrize("changed", [True, False])
def test_a_handshake_is_judged_by_the_cas_in_force_at_its_end(
    site: Site, tmp_path: Path, changed: bool
) -> None:
    """Begun under the old CAs, ended under the new: what OpenSSL has accepted is not enough."""
    site.start(crl=None)
    context = site.server.client_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection((LOOPBACK, site.server.port), timeout=PATIENCE_S) as raw:
        while True:
            try:
                client.do_handshake()
                break  # our certificate and Finished are still in `outgoing`
            except ssl.SSLWantReadError:
                raw.sendall(outgoing.read())
                incoming.write(raw.recv(65536))
        if changed:
            replace(site.certs / "ca.crt", other_authority(tmp_path / "other"))
            site.wait_reloaded()
        client.write(b"POST /api/client HTTP/1.1\r\nHost: localhost\r\n\r\n")
        raw.sendall(outgoing.read())
        answer = b""
        while not answer:
            incoming.write(raw.recv(65536))
            try:
                answer = client.read(4096)
            except ssl.SSLWantReadError:
                continue
    assert answer.startswith(b"HTTP/1.1 403" if changed else b"HTTP/1.1 204")
    assert (b"not trusted any more" in answer) == changed


# ------------------------------------------------------------------------------------- in memory


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


def test_only_whole_lists_of_our_cas_are_read(authority: Authority) -> None:
    """Not another CA's, not forged, not from the future, not a delta."""
    cas = [authority.certificate]
    epoch = now().timestamp()
    [found] = read_crls(revocation_list(authority, [5, 6], number=3), cas, epoch)
    assert (found.mark.number, found.serials) == (3, frozenset({5, 6}))
    [unnumbered] = read_crls(revocation_list(authority, number=None), cas, epoch)
    assert unnumbered.mark.number == 0
    two = revocation_list(authority, [1], number=3) + revocation_list(authority, [2], number=4)
    assert [each.mark.number for each in read_crls(two, cas, epoch)] == [4]

    namesake = Authority.create()
    delta, plain_delta = (
        revocation_list(authority, extra=[(x509.DeltaCRLIndicator(1), critical)])
        for critical in (True, False)
    )
    scope = x509.IssuingDistributionPoint(None, None, True, False, None, False, False)
    partial = revocation_list(authority, extra=[(scope, False)])
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0")
    strange = revocation_list(authority, extra=[(unknown, True)])
    future = revocation_list(authority, this_update=now() + DAY, next_update=now() + 2 * DAY)
    for pem, message in (
        (revocation_list(Authority.create(name="other")), "issued by none of the client CAs"),
        (revocation_list(namesake), "not that of the CA it names"),
        (delta, "a delta or partial CRL"),
        (plain_delta, "a delta or partial CRL"),
        (partial, "a delta or partial CRL"),
        (strange, r"critical extension 1\.2\.3\.4 is not understood"),
        (future, "from the future"),
        (b"", "no CRL"),
        (authority.certificate_pem(), "no CRL"),
        (b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "not a CRL in PEM"),
    ):
        with pytest.raises(CRLError, match=message):
            read_crls(pem, cas, epoch)


@given(st.binary(max_size=200), st.integers(0, 2000), st.integers(0, 255))
def test_any_bytes_are_a_list_or_an_error(
    authority: Authority, junk: bytes, position: int, value: int
) -> None:
    """Never anything else, and a changed list is never believed."""
    cas, epoch = [authority.certificate], now().timestamp()
    pem = bytearray(revocation_list(authority, [5]))
    pem[position % len(pem)] = value
    for data in (junk, bytes(pem)):
        try:
            [found] = read_crls(data, cas, epoch)
        except CRLError:
            continue
        assert found.serials == {5}


def test_numbers_never_go_back(authority: Authority) -> None:
    """The same list again is no harm; a lower number is, and the same one with other entries."""
    cas, epoch = [authority.certificate], now().timestamp()

    def read(number: int | None, *serials: int, age: datetime.timedelta = DAY) -> tuple[CRL, ...]:
        pem = revocation_list(authority, serials, number=number, this_update=now() - age)
        return read_crls(pem, cas, epoch)

    def follows(older: tuple[CRL, ...], newer: tuple[CRL, ...]) -> bool:
        return bool(replace_crls(marks(older), newer, cas))

    assert follows(read(3), read(4))
    assert follows(read(4, 5), read(4, 5, age=DAY / 2))
    assert follows(read(None, 5), read(None, 6, age=DAY / 2))
    assert follows(read(None, 5), read(1))
    for older, newer, message in (
        (read(4), read(3), "number 3 is older than 4"),
        (read(4, 5), read(None), "number 0 is older than 4"),
        (read(4, 5), read(4, age=DAY / 2), "number 4 was in force for .* with other entries"),
        (read(None, 5), read(None, age=2 * DAY), "not newer than the one that was in force"),
    ):
        with pytest.raises(CRLError, match=message):
            follows(older, newer)


def test_each_ca_of_one_name_has_its_own_list(authority: Authority) -> None:
    """A CA that is renewed with a new key has the old one's name: neither list hides the other."""
    renewed = Authority.create()
    assert renewed.certificate.subject == authority.certificate.subject
    cas, epoch = [authority.certificate, renewed.certificate], now().timestamp()
    pem = revocation_list(authority, [5], number=9) + revocation_list(renewed, [6], number=3)
    lists = replace_crls((), read_crls(pem, cas, epoch), cas)
    assert sorted(known.serials for known in lists.values()) == [{5}, {6}]


def test_a_number_of_one_ca_is_none_of_its_namesake(authority: Authority) -> None:
    """The same serial number of another CA of that name is another certificate."""
    renewed = Authority.create()
    cas, epoch = (authority.certificate, renewed.certificate), now().timestamp()
    old, new = (ca.issue_client("a@example.com", days=1) for ca in (authority, renewed))
    both = [old.certificate.serial_number, new.certificate.serial_number]
    lists = replace_crls((), read_crls(revocation_list(renewed, both), cas, epoch), cas)
    trust = Trust(Anchors(cas, lists))
    assert trust.verify([der(old)]).refusal is None
    assert trust.verify([der(new)]).refusal == REVOKED


def marks(crls: Sequence[CRL]) -> list[CRLMark]:
    return [crl.mark for crl in crls]


def test_a_list_that_is_left_out_is_refused(authority: Authority) -> None:
    """A user that it revoked must not come back; with its CA it may go."""
    other = Authority.create(name="another CA")
    cas, epoch = [authority.certificate, other.certificate], now().timestamp()
    one, two = revocation_list(authority, [5]), revocation_list(other, [6])
    both = read_crls(one + two, cas, epoch)
    with pytest.raises(CRLError, match=r"CN=another CA is missing.*number 2 was in"):
        replace_crls(marks(both), read_crls(one, cas, epoch), cas)
    assert len(replace_crls(marks(both), read_crls(one, cas, epoch), [authority.certificate])) == 1
    assert len(replace_crls(marks(read_crls(one, cas, epoch)), both, cas)) == 2


def test_a_newer_list_of_another_server_counts(authority: Authority, tmp_path: Path) -> None:
    """A server that still has the older one says so, and takes no other older one at a reload."""
    cas, epoch = (authority.certificate,), now().timestamp()
    lists = {n: read_crls(revocation_list(authority, number=n), cas, epoch) for n in (3, 4, 5)}
    anchors = {n: Anchors(cas, replace_crls((), crls, cas)) for n, crls in lists.items()}
    recorded: list[CRLMark] = []

    async def record(own: Sequence[CRLMark]) -> list[CRLMark]:
        recorded.extend(own)
        return marks(lists[4])

    async def look(number: int) -> list[str]:
        looked = asyncio.Event()

        async def record_and_tell(own: Sequence[CRLMark]) -> list[CRLMark]:
            looked.set()
            return await record(own)

        register = CRLRegister(record_and_tell)
        register.use(anchors[number])
        with capture_logs() as lines:
            running = asyncio.create_task(register.run())
            await looked.wait()
            running.cancel()
        assert register.marks == tuple(marks(lists[4]))
        return [line["reason"] for line in lines]

    [reason] = asyncio.run(look(3))
    assert "number 3 is older than 4" in reason
    assert asyncio.run(look(4)) == asyncio.run(look(5)) == []
    assert recorded == [*marks(lists[3]), *marks(lists[4]), *marks(lists[5])]
    with pytest.raises(ConfigError, match="number 3 is older than 4"):
        older = CRLRegister(record)
        older.use(anchors[3])
        older.check(marks(lists[4]))

    (tmp_path / "ca.crt").write_bytes(authority.certificate_pem())
    (tmp_path / "ca.crl").write_bytes(revocation_list(authority, number=3))
    settings = TlsSettings.model_validate(
        {key: tmp_path / f"ca.{end}" for key, end in (("client_ca", "crt"), ("crl", "crl"))}
    )
    assert load_anchors(settings).crls
    with pytest.raises(ConfigError, match="number 3 is older than 4"):
        load_anchors(settings, marks=marks(lists[4]))


def test_a_file_that_ends_in_a_list_is_refused(authority: Authority) -> None:
    """It must not be taken for a file with fewer lists."""
    other = Authority.create(name="another CA")
    cas, epoch = [authority.certificate, other.certificate], now().timestamp()
    pem = revocation_list(authority, [5]) + revocation_list(other, [6])
    assert len(read_crls(pem, cas, epoch)) == 2
    with pytest.raises(CRLError, match="cut off"):
        read_crls(pem[:-40], cas, epoch)


def der(credential: Credential) -> bytes:
    return credential.certificate.public_bytes(Encoding.DER)


def test_a_verdict_is_renewed_when_its_time_is_over(authority: Authority) -> None:
    """By the clock alone, without a reload: first good, then expired."""
    clock = [now().timestamp()]
    trust = Trust(Anchors((authority.certificate,)), clock=lambda: clock[0])
    der = authority.issue_client("a@example.com", days=1).certificate.public_bytes(Encoding.DER)
    auth = trust.authenticate(der, lambda: [der], trust.bundle)
    assert auth.refusal is None
    assert trust.authenticate(der, lambda: [], trust.bundle) is auth  # resumed: known from before
    clock[0] += 2 * 86400
    refusal = trust.check(auth)
    assert refusal is not None
    assert refusal.reason == "expired"
