"""A client that sends TLS messages without data: OpenSSL handles them all within one read."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from tests.support.harness import Server, StartServer, wait_until
from tests.support.metrics import refused
from tests.support.raw_http import GET, PLAIN
from tests.support.slow_client import in_kernel
from tests.support.tls_messages import MessageClient
from tests.support.with_constants import LONG_READ_S, LONGEST_READ_S

MANY = 10_000  # a tenth of a second of the server's CPU
NO_LIMITS = {LONG_READ_S: 3600, LONGEST_READ_S: 3600}


def send(client: MessageClient, data: bytes) -> None:
    with contextlib.suppress(OSError):  # cut off
        client.socket.sendall(data)


def test_few_key_updates_are_served(start_server: StartServer, tmp_path: Path) -> None:
    """As a client may update its keys: as often as it likes, between requests."""
    with MessageClient(start_server(), tmp_path) as client:
        for _ in range(20):
            send(client, client.key_updates(20))
            assert client.exchange(PLAIN).startswith(b"HTTP/1.1 204")


def test_small_messages_are_served(start_server: StartServer) -> None:
    """Each is a record of its own, such as the pongs of a live stream that is open for hours.

    Every read counts as long.
    """
    server = start_server(constants={LONG_READ_S: 0})
    with server.connect_raw() as client:
        for _ in range(10):
            for byte in GET:
                client.sendall(bytes([byte]))
            assert client.recv(65536).startswith(b"HTTP/1.1 404")
    assert refused(server, "tls-flood") == 0


def test_a_record_that_comes_in_parts_is_served(start_server: StartServer, tmp_path: Path) -> None:
    """Its first part is no data yet, since nothing of a record is read before it is whole."""
    server = start_server(constants={LONG_READ_S: 0})
    with MessageClient(server, tmp_path) as client:
        record = client.record(PLAIN * (16_000 // len(PLAIN)))
        send(client, record[:-100])
        wait_until(lambda: in_kernel(server, client.socket) == (0, 0), "it to be read so far")
        assert client.answer(record[-100:]).startswith(b"HTTP/1.1 204")
    assert refused(server, "tls-flood") == 0


def test_much_data_allows_no_flood(start_server: StartServer, tmp_path: Path) -> None:
    """A client could send some thousand messages with each large request, and be served."""
    server = start_server()
    long = GET.replace(b"\r\n\r\n", b"\r\nX-Long: " + b"x" * 7000 + b"\r\n\r\n")
    with MessageClient(server, tmp_path) as client:
        for _ in range(10):
            assert client.exchange(long).startswith(b"HTTP/1.1 404")
        send(client, client.key_updates(MANY * 2 // 3))
        assert client.exchange(PLAIN) == b""
    assert refused(server, "tls-flood") == 1


def flooded(server: Server, directory: Path, cert: str) -> tuple[bytes, bytes]:
    """Flood over one connection. Return what it, and another of the certificate, answer then."""
    with (
        MessageClient(server, directory, cert) as other,
        MessageClient(server, directory, cert) as client,
    ):
        send(client, client.key_updates(MANY))
        return client.exchange(PLAIN), other.exchange(PLAIN)


def test_a_flood_closes_the_connections_of_its_certificate(
    start_server: StartServer, tmp_path: Path
) -> None:
    """For a minute, also for new ones; other clients notice nothing."""
    server = start_server()
    assert flooded(server, tmp_path, "client") == (b"", b"")
    assert refused(server, "tls-flood") == 1
    with contextlib.suppress(OSError), server.connect_raw("client") as connection:
        connection.sendall(PLAIN)
        assert connection.recv(4096) == b""
    assert server.request("POST", "/api/client", cert="operator").status == 204
    (line,) = server.events("connections of a certificate closed")
    assert line["email"] == "valid_user@example.com"


def test_so_does_that_of_a_refused_certificate(start_server: StartServer, tmp_path: Path) -> None:
    """Its requests get 400, so nothing but the handshake has accepted it."""
    server = start_server()
    assert flooded(server, tmp_path, "bad_client") == (b"", b"")
    assert refused(server, "tls-flood") == 1


def test_through_ordinary_http_too(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server()
    with MessageClient(server, tmp_path) as client:
        assert client.exchange(GET).startswith(b"HTTP/1.1 404")
        send(client, client.key_updates(MANY))
        assert client.exchange(PLAIN) == b""
    assert refused(server, "tls-flood") == 1


def test_a_flood_without_end_is_ended(start_server: StartServer, tmp_path: Path) -> None:
    """One read would take as long as it comes: the watch ends it from another thread."""
    server = start_server(constants={LONG_READ_S: 3600})
    with MessageClient(server, tmp_path) as client:
        data = client.key_updates(10 * MANY)
        sending = threading.Thread(target=send, args=(client, data))
        sending.start()
        assert server.request("POST", "/api/client", cert="operator").status == 204
        sending.join()
        assert client.exchange(PLAIN) == b""


def test_without_the_limits_it_would_be_served(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(constants=NO_LIMITS)
    answers = flooded(server, tmp_path, "client")
    assert all(answer.startswith(b"HTTP/1.1 204") for answer in answers)
    assert refused(server, "tls-flood") == 0
