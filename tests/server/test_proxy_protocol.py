"""The PROXY protocol in front of TLS: only a trusted proxy names the client's address."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    Heard,
    Server,
    StartServer,
    free_port,
    rows,
    running_server,
    wait_until,
)
from tests.support.hostile_requests import CHECK_IN
from tests.support.metrics import refused
from tests.support.proxies import haproxy
from tests.support.with_constants import MAX_HANDSHAKES
from tornado_status.errors import ProxyHeaderError
from tornado_status.ingress.proxy_protocol.header import (
    FIXED,
    MAX_REST,
    SIGNATURE,
    ProxiedAddress,
    check_beginning,
    looks_like_header,
    parse,
    rest_length,
)
from tornado_status.ingress.trusted_proxies import TrustedProxies

PLAIN = CHECK_IN + b"\r\n"
PROXY_IP = "127.0.0.2"  # all of 127.0.0.0/8 is this machine
TRUSTING = {"proxy_protocol": True, "trusted_proxies": [PROXY_IP]}

LOCAL = SIGNATURE + b"\x20\x00\x00\x00"


@pytest.fixture(scope="module")
def shared(
    postgres: str, certs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server that trusts a proxy, for the tests that change nothing of it."""
    rows(postgres, "CREATE DATABASE proxy_protocol")
    url = postgres.replace("/postgres?", "/proxy_protocol?")
    directory = tmp_path_factory.mktemp("shared")
    with running_server(directory, certs, url, ingress=TRUSTING) as server:
        yield server


def field(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def header(client_ip: str, client_port: int, fields: bytes = b"", command: int = 0x21) -> bytes:
    """A header as a proxy sends it."""
    address = ipaddress.ip_address(client_ip)
    server = bytes(address.packed)
    rest = address.packed + server + struct.pack("!HH", client_port, 8443) + fields
    fixed = SIGNATURE + bytes([command, 0x11 if address.version == 4 else 0x21])
    return fixed + struct.pack("!H", len(rest)) + rest


def connect(server: Server, source: str) -> socket.socket:
    return socket.create_connection(
        (LOOPBACK, server.port), timeout=PATIENCE_S, source_address=(source, 0)
    )


def check_in(server: Server, raw: socket.socket) -> bytes:
    """Shake hands on a connection, check in, close it; return the answer."""
    with server.client_context().wrap_socket(raw, server_hostname="localhost") as secure:
        secure.sendall(PLAIN)
        return secure.recv(4096)


def refused_as(server: Server, kind: str) -> None:
    wait_until(lambda: refused(server, kind), f"a refusal as {kind}")


def is_closed(raw: socket.socket) -> bool:
    try:
        return raw.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    ("client_ip", "extra"),
    [
        ("10.1.2.3", b""),
        ("10.1.2.3", field(5, b"unique") + field(0x20, bytes(600)) + field(3, b"\1\2\3\4")),
        ("2001:db8::7", field(4, b"")),
        ("::ffff:10.1.2.3", b""),
    ],
)
def test_the_clients_address_is_recorded_and_announced(
    shared: Server, client_ip: str, extra: bytes
) -> None:
    """Of both families, with its port; fields behind it, a checksum among them, are ignored."""
    with Heard(shared.announce_port) as heard:
        raw = connect(shared, PROXY_IP)
        raw.sendall(header(client_ip, 51514, extra))
        assert check_in(shared, raw).startswith(b"HTTP/1.1 204")
        [update] = heard.updates(1)
    shown = client_ip.removeprefix("::ffff:")
    assert (update["client_ip"], update["client_port"]) == (shown, 51514)
    last = "SELECT host(client_ip::inet), client_port FROM check_in ORDER BY seq DESC LIMIT 1"
    assert shared.rows(last) == [(shown, 51514)]
    status = "SELECT host(client_ip::inet), client_port FROM user_status"
    assert shared.rows(status) == [(shown, 51514)]


def test_a_header_may_come_in_pieces_and_with_what_follows(shared: Server) -> None:
    """However TCP cuts it, and not a byte of the handshake is lost."""
    server = shared
    whole = header("10.1.2.3", 1, field(4, bytes(40)))
    raw = connect(server, PROXY_IP)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for start in range(len(whole)):
        raw.sendall(whole[start : start + 1])
    assert check_in(server, raw).startswith(b"HTTP/1.1 204")

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = server.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    with connect(server, PROXY_IP) as raw:
        raw.sendall(whole + outgoing.read())  # as one segment
        while True:
            incoming.write(raw.recv(65536))
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                continue
        client.write(PLAIN)
        raw.sendall(outgoing.read())
        answer = b""
        while not answer:
            incoming.write(raw.recv(65536))
            try:
                answer = client.read(4096)
            except ssl.SSLWantReadError:  # a session ticket
                continue
    assert answer.startswith(b"HTTP/1.1 204")


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (b"PROXY TCP4 10.1.2.3 10.0.0.1 51514 8443\r\n", "proxy-v1"),
        (b"PROXY UNKNOWN\r\n", "proxy-v1"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "proxy-header-missing"),
        (PLAIN, "proxy-header-missing"),
        (header("10.1.2.3", 51514, command=0x31), "proxy-header-malformed"),
        (header("10.1.2.3", 51514, command=0x22), "proxy-header-malformed"),
        (header("10.1.2.3", 0), "proxy-header-malformed"),
        (header("10.1.2.3", 51514, b"\x04\x00\x09"), "proxy-header-malformed"),
        (header("10.1.2.3", 51514, b"\x04"), "proxy-header-malformed"),
        (header("10.1.2.3", 51514, bytes(MAX_REST)), "proxy-header-malformed"),
        (SIGNATURE + b"\x21\x00\x00\x00", "proxy-address-unknown"),
        (SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216), "proxy-address-unknown"),
        (SIGNATURE + b"\x21\x12\x00\x0c" + bytes(12), "proxy-address-unknown"),
        (SIGNATURE + b"\x21\x11\x00\x04" + bytes(4), "proxy-header-malformed"),
    ],
)
def test_what_is_no_header_of_a_client_is_refused_and_told(
    shared: Server, first: bytes, kind: str
) -> None:
    """At once, by name, and the next connection of the same proxy is served."""
    before = refused(shared, kind)
    with connect(shared, PROXY_IP) as raw:
        raw.sendall(first)
        assert is_closed(raw)
    assert refused(shared, kind) == before + 1
    shared.log.wait_for(lambda line: f'"{kind}"' in line and f'"{PROXY_IP}"' in line, kind)
    raw = connect(shared, PROXY_IP)
    raw.sendall(header("10.1.2.3", 51514))
    assert check_in(shared, raw).startswith(b"HTTP/1.1 204")


def test_nobody_else_says_who_he_is(start_server: StartServer) -> None:
    """A header from a peer that is no trusted proxy is refused; without one it is a client."""
    server = start_server(ingress=TRUSTING)
    with connect(server, "127.0.0.3") as raw:
        raw.sendall(header("10.1.2.3", 51514))
        assert is_closed(raw)
    refused_as(server, "proxy-not-trusted")
    raw = connect(server, "127.0.0.3")
    assert check_in(server, raw).startswith(b"HTTP/1.1 204")
    assert server.rows("SELECT DISTINCT host(client_ip::inet) FROM check_in") == [("127.0.0.3",)]


def test_without_the_setting_nobody_is_believed(start_server: StartServer) -> None:
    """A header in front is no TLS handshake."""
    server = start_server()
    raw = connect(server, PROXY_IP)
    raw.sendall(header("10.1.2.3", 51514))
    with pytest.raises(OSError):
        check_in(server, raw)
    assert server.rows("SELECT count(*) FROM check_in") == [(0,)]


def test_a_mute_proxy_is_cut_off_in_time(start_server: StartServer) -> None:
    """The header has to come within the time of the handshake, and so has the handshake."""
    server = start_server(ingress=TRUSTING, server={"handshake_timeout_s": 0.5})
    with connect(server, PROXY_IP) as mute:
        assert is_closed(mute)
    with connect(server, PROXY_IP) as slow:
        slow.sendall(header("10.1.2.3", 51514)[:20])
        assert is_closed(slow)
    refused_as(server, "proxy-header-timeout")
    with connect(server, PROXY_IP) as later:
        later.sendall(header("10.1.2.3", 51514))
        assert is_closed(later)
    refused_as(server, "timeout")


def test_headers_under_way_are_bounded(start_server: StartServer) -> None:
    """As handshakes are; those beyond wait, and those before them are dropped in time."""
    server = start_server(
        ingress=TRUSTING, server={"handshake_timeout_s": 2}, constants={MAX_HANDSHAKES: 3}
    )
    mute = [connect(server, PROXY_IP) for _ in range(5)]
    for raw in mute:
        raw.sendall(SIGNATURE)
    raw = connect(server, PROXY_IP)
    raw.sendall(header("10.1.2.3", 51514))
    assert check_in(server, raw).startswith(b"HTTP/1.1 204")
    for raw in mute:
        raw.close()


def test_a_health_check_is_no_failed_handshake(start_server: StartServer) -> None:
    """LOCAL speaks for the proxy itself: it may leave without a word, or check in."""
    server = start_server(ingress=TRUSTING)
    with connect(server, PROXY_IP) as raw:
        raw.sendall(LOCAL)
        raw.shutdown(socket.SHUT_WR)
        assert is_closed(raw)
    raw = connect(server, PROXY_IP)
    raw.sendall(LOCAL)
    assert check_in(server, raw).startswith(b"HTTP/1.1 204")
    assert server.rows("SELECT host(client_ip::inet) FROM check_in") == [(PROXY_IP,)]
    assert "connections_refused_total{" not in server.management("/metrics").body.decode()


def test_a_stop_does_not_wait_for_a_connection_that_is_over(start_server: StartServer) -> None:
    """A header is under way when the last client leaves, and ends too: none is left."""
    server = start_server(ingress=TRUSTING)
    client = connect(server, PROXY_IP)
    client.sendall(header("10.1.2.3", 51514))
    secure = server.client_context().wrap_socket(client, server_hostname="localhost")
    with connect(server, PROXY_IP) as check:
        check.sendall(LOCAL[:1])  # the kernel hands out who has spoken
        wait_until(lambda: connections(server) == 2, "both")
        secure.close()
        wait_until(lambda: connections(server) == 1, "the header alone")
    wait_until(lambda: connections(server) == 0, "nobody")
    assert server.stop() == 0
    assert not server.events("drain timed out, closing connections")


def connections(server: Server) -> int:
    metrics = server.management("/metrics").body.decode()
    found = re.search(r"^tornado_status_connections (\d+)", metrics, re.MULTILINE)
    assert found
    return int(found[1])


def test_limits_count_the_clients_address(start_server: StartServer) -> None:
    """Two connections of one client, one of another, all through one proxy."""
    server = start_server(ingress=TRUSTING, server={"max_connections_per_address": 2})

    def through(client_ip: str) -> ssl.SSLSocket:
        raw = connect(server, PROXY_IP)
        raw.sendall(header(client_ip, 51514))
        return server.client_context().wrap_socket(raw, server_hostname="localhost")

    held = [through("10.1.2.3"), through("10.1.2.3"), through("10.1.2.4")]
    with pytest.raises(OSError):
        through("10.1.2.3")
    assert server.wait_event("connection limit of an address reached")["client_ip"] == "10.1.2.3"
    held.pop(0).close()

    def again() -> bool:
        try:
            held.append(through("10.1.2.3"))
        except OSError:
            return False
        return True

    wait_until(again, "room for another connection")
    held += [through("2001:db8::1"), through("2001:db8::2"), through("2001:db8:0:1::1")]
    with pytest.raises(OSError):
        through("2001:db8::3")  # a /64 counts as one address
    for connection in held:
        connection.close()


@pytest.mark.once
@pytest.mark.parametrize("host", [LOOPBACK, pytest.param("::1", id="ipv6")])
def test_through_haproxy(start_server: StartServer, tmp_path: Path, host: str) -> None:
    """The real one, with a checksum and health checks: the client's own address and port."""
    server = start_server(ingress={"proxy_protocol": True, "trusted_proxies": [LOOPBACK]})
    port = free_port()
    shown = f"[{host}]" if ":" in host else host
    configuration = f"""
        defaults
            mode tcp
            timeout connect 5s
            timeout client 60s
            timeout server 60s
        listen status
            bind {shown}:{port}
            option tcp-check
            default-server check inter 50ms check-send-proxy send-proxy-v2
            server one {LOOPBACK}:{server.port} proxy-v2-options crc32c,unique-id,ssl
        """
    with haproxy(tmp_path, configuration, port, host=host):
        raw = socket.create_connection((host, port), timeout=PATIENCE_S)
        source = raw.getsockname()
        assert check_in(server, raw).startswith(b"HTTP/1.1 204")
        assert server.rows("SELECT host(client_ip::inet), client_port FROM check_in") == [
            (host, source[1])
        ]
    assert not [e for e in server.events("PROXY header refused")], json.dumps(server.log.lines)


# ------------------------------------------------------------------------------------- in memory


def whole(data: bytes) -> ProxiedAddress:
    fixed = data[:FIXED]
    length = rest_length(fixed)
    assert len(data) == FIXED + length
    return parse(fixed, data[FIXED:])


@given(
    st.ip_addresses(),
    st.integers(1, 65535),
    st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=50))),
)
def test_what_a_proxy_says_is_read_back(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    port: int,
    fields: list[tuple[int, bytes]],
) -> None:
    """Any address, any port, any fields."""
    text = b"".join(field(kind, value) for kind, value in fields)
    data = header(str(address), port, text)
    mapped = getattr(address, "ipv4_mapped", None)
    assert whole(data) == ProxiedAddress(str(mapped or address), port)
    assert all(looks_like_header(data[:size]) for size in range(1, 13))


@given(st.binary(max_size=80), st.integers(0, 60), st.booleans())
def test_any_bytes_are_a_header_or_an_error(data: bytes, cut: int, signed: bool) -> None:
    """And nothing else is raised, with or without a good beginning."""
    data = (header("10.1.2.3", 51514)[: max(cut, 12)] if signed else b"") + data
    try:
        check_beginning(data[:FIXED])
        if len(data) >= FIXED:
            length = rest_length(data[:FIXED])
            parse(data[:FIXED], data[FIXED : FIXED + length].ljust(length, b"\0"))
    except ProxyHeaderError as error:
        assert error.reason.startswith("proxy-")


def test_trusted_networks_know_both_spellings_of_an_address() -> None:
    """A socket for both families shows IPv4 as ::ffff:a.b.c.d, and a zone behind link-local."""
    proxies = TrustedProxies(
        [ipaddress.ip_network("10.0.0.0/24"), ipaddress.ip_network("fe80::/64")]
    )
    assert "10.0.0.7" in proxies
    assert "::ffff:10.0.0.7" in proxies
    assert "fe80::1%eth0" in proxies
    assert "10.0.1.7" not in proxies
    assert "::10.0.0.7" not in proxies
