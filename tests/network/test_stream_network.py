"""Followers of the live stream on other hosts: what the server learns of those who vanish."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.harness import PATIENCE_S, Lines, Server, StartServer, wait_until
from tests.support.hosts import SERVER_IP, Host, Hosts, run, three_hosts
from tests.support.with_constants import KEEP_ALIVE_S, STALL_S

pytestmark = [pytest.mark.network, pytest.mark.once]

# Prints what a request to ADDRESS PORT with CERTS/NAME is answered: METHOD PATH.
TALK = """\
import socket, ssl, sys
address, port, certs, name, method, path = sys.argv[1:]
context = ssl.create_default_context(cafile=f"{certs}/ca.crt")
context.load_cert_chain(f"{certs}/{name}.crt", f"{certs}/{name}.key")
with socket.create_connection((address, int(port)), 60) as raw:
    with context.wrap_socket(raw, server_hostname="localhost") as sock:
        end = "" if path == "/api/stream" else "Connection: close\\r\\n"
        sock.sendall(f"{method} {path} HTTP/1.1\\r\\nHost: x\\r\\n{end}\\r\\n".encode())
        sock.settimeout(None)
        while data := sock.recv(65536):
            sys.stdout.write(data.decode())
            sys.stdout.flush()
"""

FETCH = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=60).read().decode())"


def arguments(host: Host, server: Server, name: str, method: str, path: str) -> list[str]:
    given = (SERVER_IP, str(server.port), str(server.certs), name, method, path)
    return [*host.inside, sys.executable, "-c", TALK, *given]


@contextmanager
def following(host: Host, server: Server) -> Iterator[Lines]:
    command = arguments(host, server, "operator", "GET", "/api/stream")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines = Lines(process.stdout)
    try:
        lines.wait_for(lambda line: line == "event: position", "the first message")
        yield lines
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        lines.wait_end()


def test_a_client_that_vanished_without_a_word_is_noticed(start_server: StartServer) -> None:
    """Its cable is pulled: its place is free again, and who is still there notices nothing."""
    with three_hosts("streams") as hosts:
        server = start_server(
            prefix=hosts.server.inside,
            server={"host": SERVER_IP},
            constants={KEEP_ALIVE_S: 1, STALL_S: 3},
        )
        with following(hosts.group, server), following(hosts.broadcast, server) as staying:
            assert streams(hosts, server) == 2
            hosts.group.link("down")
            wait_until(lambda: streams(hosts, server) == 1, "the end of one stream")
            answer = run(*arguments(hosts.server, server, "client", "POST", "/api/client"))
            assert answer.startswith("HTTP/1.1 204")
            staying.wait_for(lambda line: line == "event: new", "the check-in")


def streams(hosts: Hosts, server: Server) -> int:
    url = f"http://127.0.0.1:{server.management_port}/metrics"
    shown = run(*hosts.server.inside, sys.executable, "-c", FETCH, url).splitlines()
    [line] = [line for line in shown if line.startswith("tornado_status_streams ")]
    return int(float(line.split()[1]))
