"""Announcing where the network is not what it was: interfaces, addresses and routes come and go.

The server runs on one of three hosts in network namespaces; the machine's own is left alone.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.harness import (
    GROUP,
    LOOPBACK,
    Server,
    StartServer,
    free_port,
    require,
    wait_until,
)
from tests.support.hosts import BROADCAST_IP, SERVER_IP, Hearing, Host, Hosts, run, three_hosts

pytestmark = [pytest.mark.network, pytest.mark.once]

IPV6_LINK, IPV6_SITE = "ff02::66", "ff15::66"
GONE, BACK = "cannot announce, trying again", "announcing again"

# One check-in, whatever way there is to the server: ADDRESS PORT CERTS.
CHECK_IN = """\
import http.client, ssl, sys
address, port, certs = sys.argv[1:]
context = ssl.create_default_context(cafile=f"{certs}/ca.crt")
context.load_cert_chain(f"{certs}/client.crt", f"{certs}/client.key")
connection = http.client.HTTPSConnection(address, int(port), timeout=60, context=context)
connection.request("POST", "/api/client")
assert connection.getresponse().status == 204
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with three_hosts("announce") as made:
        yield made


@pytest.fixture(autouse=True)
def curl() -> None:
    require("curl", shutil.which("curl") is not None, "install it")


@pytest.fixture
def port() -> int:
    return free_port(socket.SOCK_DGRAM)


@contextlib.contextmanager
def restored(host: Host) -> Iterator[None]:
    """Give the server's host its interface and addresses back, whatever a test did."""
    try:
        yield
    finally:
        host.ip("address", "flush", "dev", "eth0", "scope", "global")
        host.ip("link", "set", "eth0", "up")
        host.ip("address", "add", f"{SERVER_IP}/24", "broadcast", "+", "dev", "eth0")
        host.ip("address", "add", "fd78::1/64", "dev", "eth0", "nodad")


def start(start_server: StartServer, hosts: Hosts, *targets: dict[str, Any]) -> Server:
    return start_server(
        prefix=hosts.server.inside,
        server={"host": "0.0.0.0"},  # noqa: S104 - in a namespace of its own
        announce={"targets": list(targets)},
    )


def check_in(host: Host, server: Server) -> None:
    """Over loopback, so that it works whatever became of the network."""
    arguments = (LOOPBACK, str(server.port), str(server.certs))
    run(*host.inside, sys.executable, "-c", CHECK_IN, *arguments)


def admin(host: Host, server: Server, path: str) -> str:
    url = f"http://{LOOPBACK}:{server.management_port}{path}"
    return run(*host.inside, "curl", "--silent", "--noproxy", "*", url)


def warnings_of(host: Host, server: Server) -> list[str]:
    found: list[str] = json.loads(admin(host, server, "/readyz"))["warnings"]
    return [each for each in found if " by " in each]


def said_of(server: Server, event: str, target: str) -> list[dict[str, Any]]:
    return [entry for entry in server.events(event) if entry["target"].startswith(target)]


def waits_for(server: Server, event: str, target: str, times: int = 1) -> dict[str, Any]:
    what = f"{event!r} of {target}"
    wait_until(lambda: len(said_of(server, event, target)) >= times, what)
    return said_of(server, event, target)[times - 1]


def to_group(port: int, **more: Any) -> dict[str, Any]:
    return {"kind": "multicast", "address": GROUP, "port": port, "interfaces": ["eth0"], **more}


def to_all(port: int, **more: Any) -> dict[str, Any]:
    return {"kind": "broadcast", "address": "auto", "port": port, "interfaces": ["eth0"], **more}


def to_ipv6(group: str, port: int, **more: Any) -> dict[str, Any]:
    return {"kind": "multicast", "address": group, "port": port, "interfaces": ["eth0"], **more}


def unicast(address: str, port: int, **more: Any) -> dict[str, Any]:
    return {"kind": "unicast", "address": address, "port": port, **more}


# --------------------------------------------------------------------------------- every address


def test_every_kind_of_address_is_reached(
    hosts: Hosts, start_server: StartServer, port: int
) -> None:
    """IPv4 and IPv6 groups, the computed broadcast, and single hosts beside them."""
    here, there = hosts.server.link_local, hosts.broadcast.link_local
    server = start(
        start_server,
        hosts,
        to_group(port, ttl=3),
        to_all(port),
        to_ipv6(IPV6_LINK, port),
        to_ipv6(IPV6_SITE, port, ttl=4),
        to_ipv6("ff15::67", port),  # no listener joins it
        unicast("10.78.0.3", port + 1),
        unicast("fd78::3", port + 1),
        unicast(there, port + 2, interfaces=["eth0"]),
        to_ipv6(IPV6_LINK, port + 3, interfaces=["fd78::1"]),
        to_ipv6(IPV6_LINK, port + 4, interfaces=[f"{here}%eth0"]),
    )
    source_port = server.settings["announce"]["source_port"]
    with (
        Hearing(hosts.group, port, GROUP, "eth0") as group,
        Hearing(hosts.broadcast, port) as broadcast,
        Hearing(hosts.group, port, IPV6_LINK, "eth0", family=6) as link,
        Hearing(hosts.broadcast, port, IPV6_SITE, "eth0", family=6) as site,
        Hearing(hosts.broadcast, port + 1) as alone,
        Hearing(hosts.broadcast, port + 1, family=6) as alone_by_ipv6,
        Hearing(hosts.broadcast, port + 2, family=6) as on_the_link,
        Hearing(hosts.group, port + 3, IPV6_LINK, "eth0", family=6) as by_address,
        Hearing(hosts.group, port + 4, IPV6_LINK, "eth0", family=6) as by_scope,
    ):
        check_in(hosts.server, server)
        expected = [
            (group, SERVER_IP, GROUP, 3),
            (broadcast, SERVER_IP, BROADCAST_IP, 1),
            (link, here, IPV6_LINK, 1),
            (site, "fd78::1", IPV6_SITE, 4),
            (alone, SERVER_IP, "10.78.0.3", 1),
            (alone_by_ipv6, "fd78::1", "fd78::3", 1),
            (on_the_link, here, there, 1),
            (by_address, "fd78::1", IPV6_LINK, 1),
            (by_scope, here, IPV6_LINK, 1),
        ]
        for hearing, source, destination, ttl in expected:
            assert hearing.wait_for(1) == {
                "source": source,
                "port": source_port,
                "destination": destination,
                "ttl": ttl,
                "seqs": [1],
            }
        for hearing in (link, site):  # the group that was not joined is not heard
            assert {each["destination"] for each in hearing.heard} <= {IPV6_LINK, IPV6_SITE}
    assert not said_of(server, GONE, "")
    assert warnings_of(hosts.server, server) == []


def test_a_group_need_not_be_heard_on_the_servers_own_machine(
    hosts: Hosts, start_server: StartServer, port: int
) -> None:
    """With `loop: false`, IPv4 and IPv6; other hosts hear it as ever."""
    server = start(
        start_server,
        hosts,
        to_group(port, loop=False),
        to_group(port + 1),
        to_ipv6(IPV6_SITE, port, loop=False),
        to_ipv6(IPV6_SITE, port + 1),
    )
    with contextlib.ExitStack() as stack:

        def hearing(host: Host, its_port: int, group: str) -> Hearing:
            family = 6 if ":" in group else 4
            return stack.enter_context(Hearing(host, its_port, group, "eth0", family=family))

        for group in (GROUP, IPV6_SITE):
            silent = hearing(hosts.server, port, group)
            control = hearing(hosts.server, port + 1, group)
            elsewhere = hearing(hosts.group, port, group)
            check_in(hosts.server, server)
            # Sent after the silent one's: it would have been heard by now.
            control.wait_for(1)
            elsewhere.wait_for(1)
            assert silent.heard == []


def test_one_target_goes_out_by_several_interfaces(
    hosts: Hosts, start_server: StartServer, port: int
) -> None:
    """By name and by address; each has its own broadcast address."""
    server = start(
        start_server,
        hosts,
        to_group(port, interfaces=["eth0", LOOPBACK]),
        to_all(port, interfaces=[SERVER_IP, "lo"]),
    )
    with (
        Hearing(hosts.server, port, GROUP, "lo") as inside,
        Hearing(hosts.group, port, GROUP, "eth0") as outside,
    ):
        check_in(hosts.server, server)
        inside.wait_for(1)
        outside.wait_for(1)
        for hearing, address in ((inside, "127.255.255.255"), (outside, BROADCAST_IP)):
            wait_until(
                lambda hearing=hearing, address=address: any(  # type: ignore[misc]
                    each["destination"] == address for each in hearing.heard
                ),
                address,
            )
            assert any(each["destination"] == GROUP for each in hearing.heard)


# ---------------------------------------------------------------------------- what comes and goes


def test_an_interface_goes_down_and_comes_back(
    hosts: Hosts, start_server: StartServer, port: int
) -> None:
    """Check-ins go on; the reason is told, counted and shown; then it announces again by itself."""
    targets = (to_group(port), to_all(port), to_ipv6(IPV6_SITE, port))
    server = start(start_server, hosts, *targets)
    with (
        restored(hosts.server),
        Hearing(hosts.group, port, GROUP, "eth0") as group,
        Hearing(hosts.broadcast, port) as broadcast,
        Hearing(hosts.group, port, IPV6_SITE, "eth0", family=6) as site,
    ):
        everywhere = (group, broadcast, site)
        check_in(hosts.server, server)
        for hearing in everywhere:
            hearing.wait_for(1)
        hosts.server.link("down")
        for target in ("multicast 239", "broadcast auto", "multicast [ff15"):
            told = waits_for(server, GONE, target)
            assert (told["errno"], told["interface"]) == ("ENETDOWN", "eth0")
            assert "the interface is down: bring it up" in told["hint"]
        assert len(warnings_of(hosts.server, server)) == 3
        check_in(hosts.server, server)
        check_in(hosts.server, server)
        metrics = admin(hosts.server, server, "/metrics")
        counted = (
            f'datagrams_failed_total{{errno="ENETDOWN",target="multicast {GROUP}:{port}"}} 2.0'
        )
        assert counted in metrics
        hosts.server.link("up")
        hosts.server.ip(
            "address", "replace", "fd78::1/64", "dev", "eth0", "nodad"
        )  # it was flushed
        for target in ("multicast 239", "broadcast auto", "multicast [ff15"):
            waits_for(server, BACK, target)
        check_in(hosts.server, server)
        for hearing in everywhere:
            hearing.wait_for(4)
            assert set(hearing.seqs) == {1, 4}
        assert warnings_of(hosts.server, server) == []
    assert len(server.events("announcement not sent")) == 0  # it was told already


def test_a_changed_address_is_followed(hosts: Hosts, start_server: StartServer, port: int) -> None:
    """By the interface's name: from the new address, to the new network's broadcast address."""
    server = start(
        start_server,
        hosts,
        to_group(port),
        to_all(port),
        to_ipv6(IPV6_SITE, port),
        to_group(port + 1, interfaces=[SERVER_IP]),
    )
    by_address = f"multicast {GROUP}:{port + 1}"
    with (
        restored(hosts.server),
        Hearing(hosts.group, port, GROUP, "eth0") as group,
        Hearing(hosts.broadcast, port) as broadcast,
        Hearing(hosts.group, port, IPV6_SITE, "eth0", family=6) as site,
        Hearing(hosts.group, port + 1, GROUP, "eth0") as tied,
    ):
        check_in(hosts.server, server)
        assert group.wait_for(1)["source"] == SERVER_IP
        assert broadcast.wait_for(1)["destination"] == BROADCAST_IP
        assert site.wait_for(1)["source"] == "fd78::1"
        tied.wait_for(1)
        hosts.server.ip("address", "flush", "dev", "eth0", "scope", "global")
        new = ("10.79.0.1/23", "broadcast", "+", "dev", "eth0")
        hosts.server.ip("address", "add", *new)
        hosts.server.ip("address", "add", "fd79::1/64", "dev", "eth0", "nodad")
        # The interface named by an address that is gone: told, and no other one is guessed.
        told = waits_for(server, GONE, by_address)
        assert told["errno"] == "EADDRNOTAVAIL"

        def heard_from_the_new_one() -> bool:
            check_in(hosts.server, server)
            sources = [hearing.heard[-1]["source"] for hearing in (group, broadcast, site)]
            return sources == ["10.79.0.1", "10.79.0.1", "fd79::1"]

        hosts.broadcast.ip("address", "add", "10.79.0.3/23", "broadcast", "+", "dev", "eth0")
        try:
            wait_until(heard_from_the_new_one, "datagrams from the new addresses")
        finally:
            hosts.broadcast.ip("address", "delete", "10.79.0.3/23", "dev", "eth0")
        assert broadcast.heard[-1]["destination"] == "10.79.1.255"
        assert tied.seqs == [1]
        hosts.server.ip("address", "add", f"{SERVER_IP}/24", "dev", "eth0")
        waits_for(server, BACK, by_address)
        check_in(hosts.server, server)
        assert tied.wait_for(2)["source"] == SERVER_IP


def test_an_interface_that_is_replaced_is_followed(
    hosts: Hosts, start_server: StartServer, port: int
) -> None:
    """Another device under the same name, as when a USB adapter is plugged in again."""
    made = ("link", "add", "lab0", "type", "veth", "peer", "name", "lab1")

    def make() -> None:
        hosts.server.ip(*made)
        hosts.server.ip("link", "set", "lab1", "up")
        hosts.server.ip("address", "add", "10.80.0.1/24", "dev", "lab0")
        hosts.server.ip("link", "set", "lab0", "up")

    make()
    try:
        server = start(start_server, hosts, to_group(port, interfaces=["lab0"]))
        with Hearing(hosts.server, port, GROUP, "lab0") as hearing:
            check_in(hosts.server, server)
            hearing.wait_for(1)
        hosts.server.ip("link", "delete", "lab0")
        told = waits_for(server, GONE, "multicast")
        assert told["errno"] == "ENODEV"
        check_in(hosts.server, server)
        make()
        waits_for(server, BACK, "multicast")
        with Hearing(hosts.server, port, GROUP, "lab0") as hearing:
            check_in(hosts.server, server)
            hearing.wait_for(3)
            assert hearing.seqs == [3]
    finally:
        hosts.server.ip("link", "delete", "lab0")


def test_a_route_comes_goes_and_comes(hosts: Hosts, start_server: StartServer, port: int) -> None:
    """A target without a route is told at the start, and reached once there is one."""
    route = ("10.99.0.0/24", "via", "10.78.0.2")
    hosts.group.ip("address", "add", "10.99.0.9/32", "dev", "lo")
    try:
        server = start(start_server, hosts, unicast("10.99.0.9", port), unicast("10.78.0.2", port))
        told = waits_for(server, GONE, "unicast 10.99")
        assert told["errno"] == "ENETUNREACH"
        assert "add a route" in told["hint"]
        assert not said_of(server, GONE, "unicast 10.78")
        with Hearing(hosts.group, port) as hearing:
            hosts.server.ip("route", "add", *route)
            waits_for(server, BACK, "unicast 10.99")
            check_in(hosts.server, server)
            wait_until(lambda: hearing.seqs.count(1) == 2, "the same by both ways")
            hosts.server.ip("route", "delete", *route)
            check_in(hosts.server, server)
            hearing.wait_for(2)
            metrics = admin(hosts.server, server, "/metrics")
            assert f'errno="ENETUNREACH",target="unicast 10.99.0.9:{port}"}} 1.0' in metrics
            hosts.server.ip("route", "add", *route)
            check_in(hosts.server, server)
            wait_until(lambda: hearing.seqs.count(3) == 2, "the same by both ways again")
            assert hearing.seqs.count(2) == 1
    finally:
        hosts.group.ip("address", "delete", "10.99.0.9/32", "dev", "lo")
        hosts.server.ip("route", "delete", *route)


# ------------------------------------------------------------------------------- what is forbidden


def test_a_firewall_is_told_from_a_missing_network(
    hosts: Hosts, start_server: StartServer, port: int
) -> None:
    """EPERM, with what to do about it; once it allows, the next datagram is heard."""
    server = start(start_server, hosts, to_group(port), to_group(port + 1))
    with (
        Hearing(hosts.group, port, GROUP, "eth0") as forbidden,
        Hearing(hosts.group, port + 1, GROUP, "eth0") as allowed,
    ):
        with hosts.server.forbidding(port):
            check_in(hosts.server, server)
            check_in(hosts.server, server)
            allowed.wait_for(2)
        check_in(hosts.server, server)
        forbidden.wait_for(3)
        assert forbidden.seqs == [3]
        assert allowed.seqs[:2] == [1, 2]
        [told] = server.events("announcement not sent")  # once a minute, not each time
        assert (told["errno"], told["target"]) == ("EPERM", f"multicast {GROUP}:{port}")
        assert "a firewall rule on this machine forbids it" in told["hint"]
        metrics = admin(hosts.server, server, "/metrics")
        assert f'errno="EPERM",target="multicast {GROUP}:{port}"}} 2.0' in metrics


def test_a_broadcast_address_as_unicast_is_explained(
    hosts: Hosts, start_server: StartServer, port: int
) -> None:
    """It is not sent, and the other targets are none the worse."""
    server = start(start_server, hosts, unicast(BROADCAST_IP, port), to_all(port))
    told = waits_for(server, GONE, "unicast")
    assert told["errno"] == "EACCES"
    assert "set kind: broadcast" in told["hint"]
    with Hearing(hosts.group, port) as hearing:
        check_in(hosts.server, server)
        hearing.wait_for(1)
        assert hearing.seqs == [1]


def test_a_receiver_that_comes_late_misses_nothing_after(
    hosts: Hosts, start_server: StartServer, port: int
) -> None:
    """The error belongs to an earlier datagram that no program received; the next one is sent."""
    server = start(start_server, hosts, unicast("10.78.0.2", port))
    check_in(hosts.server, server)
    with Hearing(hosts.group, port) as hearing:
        check_in(hosts.server, server)
        hearing.wait_for(2)
    metrics = admin(hosts.server, server, "/metrics")
    assert f'errno="ECONNREFUSED",target="unicast 10.78.0.2:{port}"}} 1.0' in metrics
