"""Listeners on other hosts: network namespaces on a bridge that loses what it is told to lose.

Nothing of the machine's own network is touched: the bridge is in a namespace of its own, too.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import socket
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.support.harness import GROUP, Server, StartServer, free_port
from tests.support.hosts import (
    BROADCAST_IP,
    NETWORK,
    NETWORK_IPV6,
    SERVER_IP,
    Host,
    Hosts,
    certs_for,
    run,
    three_hosts,
)
from tests.support.listening import Listening
from tornado_status.model.records import Event, timestamp
from tornado_status.pki.announcer_keys import Signer
from tornado_status.wire.datagram import encode_json

pytestmark = [pytest.mark.network, pytest.mark.once]

CONNECTIONS = 8

# Check-ins as fast as the server answers: ADDRESS PORT CERTS CONNECTIONS COUNT.
CLIENT = """\
import socket, ssl, sys, threading
address, port, certs, connections, count = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.load_verify_locations(f"{certs}/ca.crt")
context.load_cert_chain(f"{certs}/client.crt", f"{certs}/client.key")
request = b"POST /api/client HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 0\\r\\n\\r\\n"
good = []
def run(number):
    with socket.create_connection((address, int(port)), 60) as raw:
        with context.wrap_socket(raw, server_hostname=address) as sock:
            for _ in range(number):
                sock.sendall(request)
                answer = b""
                while not answer.endswith(b"\\r\\n\\r\\n"):
                    part = sock.recv(4096)
                    assert part, "closed"
                    answer += part
                assert answer.startswith(b"HTTP/1.1 204"), answer
                good.append(1)
threads = [threading.Thread(target=run, args=(int(count) // int(connections),))
           for _ in range(int(connections))]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(good))
"""

# Sends payloads, in hexadecimal on standard input, to GROUP PORT on INTERFACE by IPv6.
SEND_IPV6 = """\
import socket, sys
group, port, interface = sys.argv[1:]
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
    index = socket.if_nametoindex(interface)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    for line in sys.stdin:
        sock.sendto(bytes.fromhex(line), (group, int(port), 0, index))
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """The server's host, one that hears the group, and one that hears broadcasts."""
    with three_hosts("listeners") as made:
        yield made


@pytest.fixture(scope="module")
def certs(certs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The development set with a server certificate for the server's address on the network."""
    return certs_for(SERVER_IP, certs, tmp_path_factory.mktemp("network") / "certs")


def check_in(host: Host, server: Server, count: int) -> None:
    arguments = (SERVER_IP, str(server.port), str(server.certs), str(CONNECTIONS), str(count))
    done = run(*host.inside, sys.executable, "-c", CLIENT, *arguments)
    assert int(done) == count


def log_of(server: Server) -> list[dict[str, Any]]:
    rows = server.rows(
        "SELECT seq, event, email, at, host(client_ip), client_port FROM check_in ORDER BY seq"
    )
    names = ("seq", "event", "email", "last_seen", "client_ip", "client_port")
    log = [dict(zip(names, row, strict=True)) for row in rows]
    return [{**entry, "last_seen": timestamp(entry["last_seen"])} for entry in log]


def settings_for(port: int) -> dict[str, Any]:
    common = {"port": port, "interfaces": ["eth0"]}
    return {
        "server": {"host": SERVER_IP},
        "announce": {
            "heartbeat_s": 1,
            "targets": [
                {"kind": "multicast", "address": GROUP, **common},
                {"kind": "broadcast", "address": BROADCAST_IP, **common},
            ],
        },
    }


GROUP_OR_BROADCAST = (
    ("--address", GROUP, "--interface", "eth0"),
    ("--address", BROADCAST_IP, "--group", ""),
)
GROUPS_OF_IPV6 = (
    ("--address", "::", "--group", "ff15::66", "--interface", "eth0"),
    ("--address", "::", "--group", "ff02::66%eth0"),
)


@contextlib.contextmanager
def both(
    hosts: Hosts, server: Server, port: int, hearing: Sequence[Sequence[str]] = GROUP_OR_BROADCAST
) -> Iterator[list[Listening]]:
    """A listener on the group's host and one on the broadcast's, both with repair."""
    certs = server.certs
    options = [
        *("--port", port, "--url", f"https://{SERVER_IP}:{server.port}", "--ca", certs / "ca.crt"),
        *("--cert", certs / "operator.crt", "--key", certs / "operator.key"),
    ]
    with (
        Listening(*options, *hearing[0], prefix=hosts.group.inside) as first,
        Listening(*options, *hearing[1], prefix=hosts.broadcast.inside) as second,
    ):
        yield [first, second]


@pytest.mark.parametrize("percent", [0, 10, 30, 60])
def test_every_host_ends_with_exactly_the_log(
    hosts: Hosts, start_server: StartServer, percent: int
) -> None:
    """5,000 check-ins at full speed, however many of their datagrams are lost."""
    port = free_port(socket.SOCK_DGRAM)
    server = start_server(prefix=hosts.server.inside, **settings_for(port))
    with (
        hosts.group.losing(percent, port),
        hosts.broadcast.losing(percent, port),
        both(hosts, server, port) as listeners,
    ):
        check_in(hosts.server, server, 5000)
        log = log_of(server)
        assert len(log) == 5000
        for listener in listeners:
            assert listener.wait_for_seq(5000) == log
            final = listener.stop()
            assert "5000 updates shown" in final
            assert final.endswith(" 0 missed, lag 0.")
            assert percent == 0 or " 0 healed, 0 repaired" not in final


@pytest.mark.parametrize(("encoding", "with_state"), [("json", 1), ("sealed", 1), ("json", 0)])
def test_a_listener_killed_again_and_again_shows_the_whole_log(
    hosts: Hosts, start_server: StartServer, tmp_path: Path, encoding: str, with_state: int
) -> None:
    """With kill -9 beside the traffic, a third of it lost. It may show the last second again."""
    port = free_port(socket.SOCK_DGRAM)
    settings = settings_for(port)
    for target in settings["announce"]["targets"]:
        target["encoding"] = encoding
    server = start_server(prefix=hosts.server.inside, **settings)
    certs = server.certs
    options = [
        *("--port", port, "--url", f"https://{SERVER_IP}:{server.port}", "--ca", certs / "ca.crt"),
        *("--cert", certs / "operator.crt", "--key", certs / "operator.key"),
        *(("--state", tmp_path / "state.json") if with_state else ()),
        *GROUP_OR_BROADCAST[0],
    ]
    shown: dict[int, dict[str, Any]] = {}
    with hosts.group.losing(30, port):
        for run_number in range(1, 4):
            with Listening(*options, prefix=hosts.group.inside) as listener:
                check_in(hosts.server, server, 400)
                listener.wait_for(200)
                listener.process.kill()
                listener.ended()
            # The last line may be cut off.
            updates = [json.loads(line) for line in listener.out.lines if line.endswith("}")]
            for before, after in itertools.pairwise(updates):
                assert after["seq"] == before["seq"] + 1
            shown |= {update["seq"]: update for update in updates}
            check_in(hosts.server, server, 200)  # while none listens
            assert server.rows("SELECT seq FROM head") == [(600 * run_number,)]
        if with_state:
            with Listening(*options, prefix=hosts.group.inside) as listener:
                shown |= {update["seq"]: update for update in listener.wait_for_seq(1800)}
                listener.stop()
    complete = [shown[seq] for seq in sorted(shown)] == log_of(server)
    assert complete == bool(with_state)


def test_repeated_and_overtaken_datagrams_change_nothing(
    hosts: Hosts, start_server: StartServer
) -> None:
    """5,000 check-ins over cables that lose 10 % and repeat and disorder 10 %: exactly the log."""
    port = free_port(socket.SOCK_DGRAM)
    server = start_server(prefix=hosts.server.inside, **settings_for(port))
    with (
        hosts.disordering(2, port, 10) as to_group,
        hosts.disordering(3, port, 10) as to_broadcast,
        hosts.group.losing(10, port),
        hosts.broadcast.losing(10, port),
        both(hosts, server, port) as listeners,
    ):
        check_in(hosts.server, server, 5000)
        log = log_of(server)
        assert len(log) == 5000
        for listener, relay in zip(listeners, (to_group, to_broadcast), strict=True):
            assert listener.wait_for_seq(5000) == log
            final = listener.stop()
            assert "5000 updates shown" in final
            assert final.endswith(" 0 missed, lag 0.")
            # The cable did what it was asked to: 10 % of at least 5,000 / 7 datagrams, both ways.
            did = relay.stop()
            assert did["repeated"] > did["relayed"] * 0.05 > 0
            assert did["overtaken"] > did["relayed"] * 0.05


def test_interfaces_and_servers_go_and_come(hosts: Hosts, start_server: StartServer) -> None:
    """The listener repairs what was announced meanwhile, and hears the group again."""
    port = free_port(socket.SOCK_DGRAM)
    settings = settings_for(port)
    first = start_server(prefix=hosts.server.inside, **settings)
    with (
        hosts.group.losing(10, port),
        hosts.broadcast.losing(10, port),
        both(hosts, first, port) as listeners,
    ):
        check_in(hosts.server, first, 800)
        for host in (hosts.group, hosts.broadcast):
            host.link("down")
        check_in(hosts.server, first, 800)
        for host in (hosts.group, hosts.broadcast):
            host.link("up")
        check_in(hosts.server, first, 800)
        first.stop()
        settings["server"]["port"] = first.port
        second = start_server(prefix=hosts.server.inside, **settings)
        check_in(hosts.server, second, 800)
        log = log_of(second)
        assert len(log) == 3200
        for listener in listeners:
            assert listener.wait_for_seq(3200) == log
            assert listener.stop().endswith(" 0 missed, lag 0.")


def test_every_host_ends_with_exactly_the_log_by_ipv6(
    hosts: Hosts, start_server: StartServer
) -> None:
    """The server's own IPv6 groups, of the link and of the site, with a third of it lost."""
    port = free_port(socket.SOCK_DGRAM)
    common = {"kind": "multicast", "port": port, "interfaces": ["eth0"]}
    settings = settings_for(port)
    settings["announce"]["targets"] = [
        {"address": "ff15::66", **common},
        {"address": "ff02::66", **common},
    ]
    server = start_server(prefix=hosts.server.inside, **settings)
    with (
        hosts.group.losing(30, port),
        hosts.broadcast.losing(30, port),
        both(hosts, server, port, GROUPS_OF_IPV6) as listeners,
    ):
        check_in(hosts.server, server, 2000)
        log = log_of(server)
        for listener in listeners:
            assert listener.wait_for_seq(2000) == log
            final = listener.stop()
            assert final.endswith(" 0 missed, lag 0.")
            assert " 0 healed, 0 repaired" not in final
            assert "Heard 0 datagrams" not in final


def test_a_group_of_ipv6_is_heard_on_another_host(hosts: Hosts, certs: Path) -> None:
    """By the interface's name, and with a scope of its own."""
    port = free_port(socket.SOCK_DGRAM)
    key = load_pem_private_key((certs / "announcer.key").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    stream, signer = uuid.uuid4(), Signer(key)

    def send(group: str, seq: int) -> None:
        now = datetime.datetime.now(datetime.UTC)
        event = Event(seq, "check-in", "a@example.com", now, "fd00::7", 1)
        [payload] = encode_json(stream, now, seq, [event], signer)
        arguments = (group, str(port), "eth0")
        run(*hosts.server.inside, sys.executable, "-c", SEND_IPV6, *arguments, given=payload.hex())

    options = [
        *("--port", port, "--cert", "", "--ca", certs / "ca.crt"),
        *("--announcer", certs / "announcer.crt", "--interface", "eth0", "--address", "::"),
        *("--group", "ff15::66", "--group", "ff02::66%eth0"),
    ]
    with Listening(*options, prefix=hosts.group.inside) as listener:
        send("ff15::66", 1)
        listener.wait_for_seq(1)
        send("ff02::66", 2)
        listener.wait_for_seq(2)
        send("ff15::67", 3)  # no listener joined it
        send("ff15::66", 4)
        assert [entry.get("seq") for entry in listener.wait_for_seq(4)] == [1, 2, None, 4]
        listener.stop()


def test_an_interface_that_is_replaced_is_joined_again(hosts: Hosts, certs: Path) -> None:
    """Another device under the same name: the group is joined there, and that is told."""
    port = free_port(socket.SOCK_DGRAM)
    name = hosts.group.name
    made = ("ip", "-n", name, "link", "add", "lab0", "type", "veth", "peer", "name", "lab1")
    run(*made)
    options = [
        *("--port", port, "--cert", "", "--ca", certs / "ca.crt"),
        *("--announcer", certs / "announcer.crt", "--interface", "eth0", "--interface", "lab0"),
    ]
    with Listening(*options, prefix=hosts.group.inside) as listener:
        assert joined_on(hosts.group, "lab0")
        run("ip", "-n", name, "link", "delete", "lab0")
        listener.says(f"no longer in {GROUP} on lab0: --interface: this machine has no interface")
        run(*made)
        listener.says(f"joined {GROUP} on lab0 again")
        assert joined_on(hosts.group, "lab0")
        listener.stop()
    run("ip", "-n", name, "link", "delete", "lab0")


def test_a_listener_whose_address_changes_goes_on_hearing(
    hosts: Hosts, start_server: StartServer
) -> None:
    """The group by the interface's name, and broadcasts; the same where an address came back."""
    port = free_port(socket.SOCK_DGRAM)
    server = start_server(prefix=hosts.server.inside, **settings_for(port))
    verifying = [
        *("--port", port, "--cert", "", "--ca", server.certs / "ca.crt"),
        *("--announcer", server.certs / "announcer.crt"),
    ]
    before, after = f"{NETWORK}.2/24", f"{NETWORK}.22/24"
    with (
        Listening(*verifying, "--interface", "eth0", prefix=hosts.group.inside) as by_name,
        Listening(*verifying, "--interface", f"{NETWORK}.2", prefix=hosts.group.inside) as tied,
    ):
        check_in(hosts.server, server, CONNECTIONS)
        for listener in (by_name, tied):
            listener.wait_for_seq(CONNECTIONS)
        try:
            hosts.group.ip("address", "delete", before, "dev", "eth0")
            tied.says("no longer in 239.255.66.66 on 10.78.0.2")
            hosts.group.ip("address", "add", after, "broadcast", "+", "dev", "eth0")
            check_in(hosts.server, server, CONNECTIONS)
            by_name.wait_for_seq(2 * CONNECTIONS)
        finally:
            hosts.group.ip("address", "flush", "dev", "eth0", "scope", "global")
            hosts.group.ip("address", "add", before, "broadcast", "+", "dev", "eth0")
            hosts.group.ip("address", "add", f"{NETWORK_IPV6}2/64", "dev", "eth0", "nodad")
        tied.says("joined 239.255.66.66 on 10.78.0.2 again")
        check_in(hosts.server, server, CONNECTIONS)
        for listener in (by_name, tied):
            listener.wait_for_seq(3 * CONNECTIONS)
            listener.stop()
        assert by_name.shown == log_of(server)


def joined_on(host: Host, interface: str) -> bool:
    return GROUP in run("ip", "-n", host.name, "maddress", "show", "dev", interface)
