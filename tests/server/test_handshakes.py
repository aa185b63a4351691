"""Handshakes end the same whether the event loop or a thread makes their steps."""

from __future__ import annotations

import socket
import ssl

import pytest

from tests.support.harness import LOOPBACK, PATIENCE_S, Server, StartServer, wait_until
from tests.support.metrics import refused
from tests.support.raw_http import PLAIN
from tests.support.with_constants import KEPT_S

ALWAYS = 1e9
CLIENTS = 20


@pytest.fixture(params=[0, ALWAYS], ids=["loop", "threads"])
def server(request: pytest.FixtureRequest, start_server: StartServer) -> Server:
    return start_server(constants={KEPT_S: request.param})


def test_clients_are_served_and_may_resume(server: Server) -> None:
    context = server.client_context()
    session: ssl.SSLSession | None = None
    for resumed in [False] + [True] * CLIENTS:
        raw = socket.create_connection((LOOPBACK, server.port), timeout=PATIENCE_S)
        with context.wrap_socket(raw, server_hostname="localhost", session=session) as client:
            client.sendall(PLAIN)
            assert client.recv(4096).startswith(b"HTTP/1.1 204")
            assert client.session_reused == resumed
            session = client.session


def test_a_client_without_a_certificate_reads_an_alert(server: Server) -> None:
    for _ in range(CLIENTS):
        with (
            pytest.raises(ssl.SSLError, match="certificate required"),
            server.connect_raw(None) as client,
        ):
            client.recv(1)
    wait_until(
        lambda: refused(server, "peer-did-not-return-a-certificate") == CLIENTS, "all are counted"
    )


def client_hello(server: Server) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = server.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_a_client_that_hangs_up_is_counted(server: Server) -> None:
    hello = client_hello(server)
    for _ in range(CLIENTS):
        with socket.create_connection((LOOPBACK, server.port), timeout=PATIENCE_S) as client:
            client.sendall(hello)
            client.recv(4096)  # the server's first flight
            client.shutdown(socket.SHUT_WR)
            while client.recv(4096):
                pass
    wait_until(lambda: refused(server, "unexpected-eof-while-reading") == CLIENTS, "all")
    assert server.request("POST", "/api/client").status == 204
