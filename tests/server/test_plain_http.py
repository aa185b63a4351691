"""Plain HTTP on the TLS port: one 400 in words; other bytes that are no TLS get no answer."""

from __future__ import annotations

import socket
import time

import pytest

from tests.support.harness import LOOPBACK, PATIENCE_S, Server, StartServer, wait_until
from tests.support.metrics import refused
from tests.support.raw_http import STATUS
from tornado_status.ingress.plain_http import SENTENCE
from tornado_status.ingress.proxy_protocol.header import SIGNATURE

HOST = b"Host: localhost\r\n\r\n"
PROXY_IP = "127.0.0.2"  # all of 127.0.0.0/8 is this machine
PROXY_HEADER = (
    SIGNATURE + b"\x21\x11\x00\x0c" + bytes((10, 1, 2, 3, 127, 0, 0, 1)) + b"\x00\x07\x20\xfb"
)


def connect(server: Server, source: str = LOOPBACK) -> socket.socket:
    return socket.create_connection(
        (LOOPBACK, server.port), timeout=PATIENCE_S, source_address=(source, 0)
    )


def read_all(connection: socket.socket) -> bytes:
    """Return what the server says until it closes."""
    said = b""
    while True:
        try:
            data = connection.recv(65536)
        except ConnectionResetError:
            return said
        if not data:
            return said
        said += data


def exchange(server: Server, sent: bytes, source: str = LOOPBACK) -> bytes:
    with connect(server, source) as connection:
        connection.sendall(sent)
        return read_all(connection)


def is_the_answer(said: bytes) -> None:
    head, _, body = said.partition(b"\r\n\r\n")
    assert STATUS.findall(said) == [b"400"]
    assert b"\r\nConnection: close" in head
    assert f"\r\nContent-Length: {len(SENTENCE)}\r\n".encode() in head
    assert body.decode() == SENTENCE


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT"]
)
def test_plain_http_is_answered_in_words(server: Server, method: str) -> None:
    """With one 400, whatever the method; counted and logged as a failed handshake of its kind."""
    kind = "https-proxy-request" if method == "CONNECT" else "http-request"
    is_the_answer(exchange(server, f"{method} /api/client HTTP/1.1\r\n".encode() + HOST))
    assert refused(server, kind) == 1
    event = server.wait_event("handshake failed")
    assert (event["kind"], event["client_ip"]) == (kind, LOOPBACK)
    assert event["hint"].startswith("the client ")
    assert server.request("POST", "/api/client").status == 204


def test_a_request_in_pieces_is_answered_too(server: Server) -> None:
    with connect(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"POST /":
            connection.sendall(bytes([byte]))
            time.sleep(0.02)
        is_the_answer(read_all(connection))


@pytest.mark.parametrize(
    "sent",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"EHLO example.com\r\n",
        b"get / HTTP/1.1",
        b"FETCH / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00" * 100,
        b"\x16\x03\x01\x00\x05hello",
        b"\xff" * 4096,
    ],
)
def test_bytes_that_are_no_http_get_no_http(server: Server, sent: bytes) -> None:
    assert b"HTTP" not in exchange(server, sent)
    assert refused(server, "http-request") == 0


def test_a_sender_of_plain_http_costs_no_more_than_a_failed_handshake(
    start_server: StartServer,
) -> None:
    """Incomplete, it is cut off by the handshake's time-out; without end, after the answer."""
    server = start_server(server={"handshake_timeout_s": 1})
    began = time.monotonic()
    assert exchange(server, b"GET") == b""
    assert server.wait_event("handshake failed")["kind"] == "timeout"

    with connect(server) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 999999999\r\n" + HOST)
        with pytest.raises(OSError):  # a reset, in whatever words
            while time.monotonic() - began < PATIENCE_S:
                connection.sendall(bytes(1024))
                time.sleep(0.01)
    wait_until(
        lambda: "tornado_status_connections 0.0" in server.management("/metrics").body.decode(),
        "no connection",
    )


def test_behind_a_proxy_protocol_header(start_server: StartServer) -> None:
    """The refused client is the proxy's, and others beside the proxy are answered, too."""
    server = start_server(ingress={"proxy_protocol": True, "trusted_proxies": [PROXY_IP]})
    is_the_answer(exchange(server, PROXY_HEADER + b"GET / HTTP/1.1\r\n" + HOST, PROXY_IP))
    assert server.wait_event("handshake failed")["client_ip"] == "10.1.2.3"
    is_the_answer(exchange(server, b"GET / HTTP/1.1\r\n" + HOST))
    assert exchange(server, b"GET / HTTP/1.1\r\n" + HOST, PROXY_IP) == b""  # no PROXY header
    assert refused(server, "http-request") == 2
