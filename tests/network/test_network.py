"""Announcements between hosts: a server and a listener in network namespaces, joined by a cable.

Nothing of the machine's own network is touched: both ends of the cable are made in the namespaces.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import (
    GROUP,
    LOOPBACK,
    PATIENCE_S,
    ROOT,
    Lines,
    Server,
    StartServer,
    free_port,
    plain_environment,
    require,
)
from tests.support.hosts import certs_for, ip
from tornado_status.model.records import Event
from tornado_status.wire.datagram import encode_json

pytestmark = [pytest.mark.network, pytest.mark.once]

VALID = "valid_user@example.com"
SERVER_IP, CLIENT_IP, BROADCAST_IP = "10.77.0.1", "10.77.0.2", "10.77.0.255"

SEND = """\
import socket, sys
payload = bytes.fromhex(sys.argv[1])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sock.sendto(payload, (sys.argv[2], int(sys.argv[3])))
"""


@dataclass(frozen=True, slots=True)
class Hosts:
    """Two hosts on one network, each an argument list that runs what follows it there."""

    server: tuple[str, ...]
    client: tuple[str, ...]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """`server` at 10.77.0.1 and `client` at 10.77.0.2, until the end of these tests."""
    how = "run as root, with iproute2 installed and the right to make network namespaces"
    require("network namespaces", os.geteuid() == 0 and shutil.which("ip") is not None, how)
    names = [f"tornado_status_{os.getpid()}_{host}" for host in ("server", "client")]
    with contextlib.ExitStack() as made:
        server, client = names
        try:
            for name in names:
                ip("netns", "add", name)
                made.callback(ip, "netns", "delete", name)
                ip("-n", name, "link", "set", "lo", "up")
            ip("-n", server, "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", client)
            for name, address in zip(names, (SERVER_IP, CLIENT_IP), strict=True):
                ip("-n", name, "address", "add", f"{address}/24", "broadcast", "+", "dev", "eth0")
                ip("-n", name, "link", "set", "eth0", "up")
        except OSError as error:
            require("network namespaces", False, f"{how} ({error})")
        yield Hosts(("ip", "netns", "exec", server), ("ip", "netns", "exec", client))


@pytest.fixture(scope="module")
def certs(certs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The development set with a server certificate for the server's address on the network."""
    return certs_for(SERVER_IP, certs, tmp_path_factory.mktemp("network") / "certs")


@contextlib.contextmanager
def listening(host: tuple[str, ...], *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m listeners` until it has shown one update; begins once it listens."""
    bounds = ("--count", "1", "--timeout", f"{PATIENCE_S:.0f}")
    process = subprocess.Popen(
        [*host, sys.executable, "-W", "error", "-m", "listeners", *bounds, *options],
        cwd=ROOT,
        env=plain_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = Lines(process.stderr)
    try:
        said.wait_for(lambda line: line.startswith("Listening on "), "Listening on ...")
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE_S)
        process.stdout.close()
        said.wait_end()


def verifying(server: Server) -> list[str]:
    """The options of a listener that knows the announcer, and does not ask the server."""
    certs = server.certs
    announcer = ["--announcer", str(certs / "announcer.crt"), "--ca", str(certs / "ca.crt")]
    return ["--cert", "", *announcer]


def shown(process: subprocess.Popen[str]) -> str:
    """Return what the listener showed, once it has ended by itself."""
    assert process.stdout is not None
    text = process.stdout.read()
    assert process.wait(PATIENCE_S) == 0, text
    return text


def check_in(host: tuple[str, ...], server: Server) -> tuple[str, int]:
    """Check in with curl from a host. Returns the address and port that curl came from."""
    options = {
        "request": "POST",
        "cacert": server.certs / "ca.crt",
        "cert": server.certs / "client.crt",
        "key": server.certs / "client.key",
        "max-time": f"{PATIENCE_S:.0f}",
        "noproxy": "*",
        "write-out": "%{http_code} %{local_ip} %{local_port}",
        "url": f"https://{SERVER_IP}:{server.port}/api/client",
    }
    written = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    done = subprocess.run(
        [*host, "curl", "--silent", "--show-error", *written],
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    status, address, port = done.stdout.split()
    assert status == "204", done.stdout
    return address, int(port)


@pytest.fixture(autouse=True)
def curl() -> None:
    require("curl", shutil.which("curl") is not None, "install it, as a user of curl has it")


def targets_on(interface: str, broadcast: str, port: int) -> list[dict[str, Any]]:
    common = {"port": port, "interfaces": [interface]}
    return [
        {"kind": "multicast", "address": GROUP, **common},
        {"kind": "broadcast", "address": broadcast, **common},
    ]


@pytest.mark.parametrize(
    "heard_by",
    [
        # On Linux a socket on the group's own address hears nothing but the group.
        pytest.param(["--interface", "eth0", "--address", GROUP], id="multicast"),
        pytest.param(["--group", ""], id="broadcast"),
    ],
)
def test_a_check_in_is_heard_on_another_host(
    hosts: Hosts, start_server: StartServer, heard_by: list[str]
) -> None:
    """With the client's real address and port, from the server's address and source port."""
    port = free_port(socket.SOCK_DGRAM)
    server = start_server(
        prefix=hosts.server,
        server={"host": SERVER_IP},
        announce={"targets": targets_on("eth0", BROADCAST_IP, port)},
    )
    options = [*heard_by, "--port", str(port), *verifying(server)]
    with (
        listening(hosts.client, *options, "--format", "json") as for_programs,
        listening(hosts.client, *options, "--format", "text") as for_people,
    ):
        client_ip, client_port = check_in(hosts.client, server)
        assert client_ip == CLIENT_IP
        update = json.loads(shown(for_programs))
        block = shown(for_people)
    assert (update["seq"], update["event"], update["email"]) == (1, "new", VALID)
    assert (update["client_ip"], update["client_port"]) == (CLIENT_IP, client_port)
    recorded = server.rows("SELECT email, host(client_ip), client_port FROM user_status")
    assert recorded == [(VALID, CLIENT_IP, client_port)]
    source_port = server.settings["announce"]["source_port"]
    lines = dict(line.split(":", 1) for line in block.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    assert fields["Source Packet"] == f"('{SERVER_IP}', {source_port})"
    assert fields["User Email"] == VALID
    assert (fields["Client IP"], fields["Client Port"]) == (CLIENT_IP, str(client_port))


def test_what_is_announced_on_loopback_stays_on_the_machine(
    hosts: Hosts, start_server: StartServer
) -> None:
    """The shipped targets: heard on the server's machine, and not elsewhere on its network."""
    port = free_port(socket.SOCK_DGRAM)
    server = start_server(
        prefix=hosts.server,
        server={"host": SERVER_IP},
        announce={"targets": targets_on(LOOPBACK, "127.255.255.255", port)},
    )
    options = ["--port", str(port), "--format", "json"]
    anything = ["--interface", "eth0", "--insecure", "--cert", "", "--announcer", ""]
    with (
        listening(hosts.server, *options, *verifying(server)) as beside,
        listening(hosts.client, *options, *anything) as elsewhere,
    ):
        check_in(hosts.client, server)
        assert json.loads(shown(beside))["email"] == VALID
        # The cable keeps the order: whatever had leaked would be heard before this.
        marker = marker_datagram().hex()
        send = [*hosts.server, sys.executable, "-c", SEND, marker, BROADCAST_IP, str(port)]
        subprocess.run(send, check=True, timeout=PATIENCE_S)
        assert json.loads(shown(elsewhere))["email"] == "marker@example.com"


def marker_datagram() -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    event = Event(1, "check-in", "marker@example.com", now, CLIENT_IP, 1)
    [payload] = encode_json(uuid.uuid4(), now, 1, [event])
    return payload
