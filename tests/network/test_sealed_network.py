"""Sealed announcements on a network: what a machine that is no reader can see of them."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness import (
    GROUP,
    PATIENCE_S,
    Lines,
    Server,
    StartServer,
    free_port,
    require,
    wait_until,
)
from tests.support.hosts import BROADCAST_IP, SERVER_IP, Host, Hosts, certs_for, run, three_hosts
from tests.support.listening import Listening
from tornado_status.wire.sealed_datagram import is_sealed

pytestmark = [pytest.mark.network, pytest.mark.once]

COUNT = 40
UDP_HEADER = 8


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with three_hosts("sealed") as made:
        yield made


@pytest.fixture(scope="module")
def certs(certs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The development set with a server certificate for the server's address on the network."""
    return certs_for(SERVER_IP, certs, tmp_path_factory.mktemp("network") / "certs")


@contextlib.contextmanager
def capture(host: Host, port: int, file: Path) -> Iterator[None]:
    """Write all that arrives at the port of a host to a file, as tcpdump does."""
    require("tcpdump", shutil.which("tcpdump") is not None, "install tcpdump")
    filter_ = ("-i", "eth0", "-U", "-Z", "root", "-w", str(file), "udp", "port", str(port))
    with subprocess.Popen(
        [*host.inside, "tcpdump", *filter_], stderr=subprocess.PIPE, text=True
    ) as dump:
        try:
            Lines(dump.stderr).wait_for(lambda line: "listening on" in line, "tcpdump")
            yield
        finally:
            dump.send_signal(signal.SIGINT)
            dump.wait(PATIENCE_S)


def check_in(host: Host, server: Server) -> None:
    certs = server.certs
    url = f"https://{SERVER_IP}:{server.port}/api/client"
    files = ("--cacert", certs / "ca.crt", "--cert", certs / "client.crt")
    options = [*map(str, files), "--key", str(certs / "client.key"), "-X", "POST"]
    urls = [part for _ in range(COUNT) for part in ("-o", "/dev/null", url)]
    said = run(*host.inside, "curl", "-s", "-S", "-w", "%{http_code} ", *options, *urls)
    assert said.split() == ["204"] * COUNT


@pytest.mark.parametrize("encoding", ["sealed", "json"])
def test_no_address_is_in_the_clear(
    hosts: Hosts, start_server: StartServer, tmp_path: Path, encoding: str
) -> None:
    """Neither e-mail nor IP address, while a reader hears all. In JSON both are."""
    port = free_port(socket.SOCK_DGRAM)
    common = {"port": port, "interfaces": ["eth0"], "encoding": encoding}
    server = start_server(
        prefix=hosts.server.inside,
        server={"host": SERVER_IP},
        announce={
            "heartbeat_s": 0.5,
            "targets": [
                {"kind": "multicast", "address": GROUP, **common},
                {"kind": "broadcast", "address": BROADCAST_IP, **common},
            ],
        },
    )
    certs = server.certs
    options = [
        *("--port", port, "--url", f"https://{SERVER_IP}:{server.port}", "--ca", certs / "ca.crt"),
        *("--cert", certs / "operator.crt", "--key", certs / "operator.key"),
        *("--address", GROUP, "--interface", "eth0"),
    ]
    seen = tmp_path / "seen.pcap"
    with (
        Listening(*options, prefix=hosts.group.inside) as listener,
        capture(hosts.broadcast, port, seen),
    ):
        check_in(hosts.server, server)
        assert [entry["seq"] for entry in listener.wait_for_seq(COUNT)] == list(range(1, COUNT + 1))
        wait_until(lambda: len(payloads(seen)) >= COUNT, "the datagrams to be captured")
        assert listener.stop().endswith(" 0 missed, lag 0.")
    found = payloads(seen)
    clear = encoding == "json"
    assert all(is_sealed(payload) for payload in found) is not clear
    for address in (b"example.com", SERVER_IP.encode()):
        assert any(address in payload for payload in found) is clear


def payloads(file: Path) -> list[bytes]:
    """Return the UDP payloads of a capture of Ethernet and IPv4."""
    content = file.read_bytes()
    order = "little" if content[:4] == b"\xd4\xc3\xb2\xa1" else "big"
    found, at = [], 24
    while at + 16 <= len(content):
        size = int.from_bytes(content[at + 8 : at + 12], order)  # type: ignore[arg-type]
        packet = content[at + 16 : at + 16 + size]
        header = 14 + 4 * (packet[14] & 15) + UDP_HEADER
        if len(packet) < size:
            break  # not written yet
        found.append(packet[header:])
        at += 16 + size
    return found
