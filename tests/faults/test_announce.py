"""Network faults and announcements: check-ins go on, and sending resumes by itself."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    Server,
    StartServer,
    free_port,
    require,
    wait_until,
)

pytestmark = [pytest.mark.network, pytest.mark.once]

ADDRESS, BROADCAST_IP = "10.78.0.1", "10.78.0.255"
BEHIND, ROUTE = "10.79.0.9", "10.79.0.0/24"  # reached by a route of its own
PORT = free_port(socket.SOCK_DGRAM)

Command = tuple[str, ...]

UP: list[Command] = [
    ("ip", "link", "set", "cable", "up"),
    ("ip", "route", "replace", ROUTE, "dev", "cable"),
    # Known by heart, so that nothing waits for an answer that never comes.
    ("ip", "neighbour", "replace", BEHIND, "lladdr", "02:00:00:00:00:09", "dev", "cable"),
]


@dataclass(frozen=True, slots=True)
class Fault:
    """How to cause and to end it, and what the kernel may say meanwhile, by kind of target."""

    cause: list[Command]
    end: list[Command]
    unicast: frozenset[str]
    broadcast: frozenset[str]
    check_ins: int = 3


UNREACHABLE = frozenset({"ENETUNREACH", "ENETDOWN", "EHOSTUNREACH", "EINVAL", "EADDRNOTAVAIL"})
FULL = frozenset({"EAGAIN", "ENOBUFS"})
DROP = f"add rule inet faults out udp dport {PORT} drop"

FAULTS = {
    "down": Fault([("ip", "link", "set", "cable", "down")], UP, UNREACHABLE, UNREACHABLE),
    "route": Fault([("ip", "route", "delete", ROUTE)], UP, UNREACHABLE, frozenset()),
    "firewall": Fault(
        [
            ("nft", "add table inet faults"),
            ("nft", "add chain inet faults out { type filter hook output priority 0; }"),
            ("nft", DROP),
        ],
        [("nft", "delete table inet faults")],
        frozenset({"EPERM"}),
        frozenset({"EPERM"}),
    ),
    # Datagrams in the queue count as the socket's: its buffer fills.
    "full": Fault(
        [tuple("tc qdisc add dev cable root tbf rate 8kbit burst 1600 latency 9999s".split())],
        [tuple("tc qdisc delete dev cable root".split())],
        FULL,
        FULL,
        check_ins=600,
    ),
}


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace; its only cable leads nowhere."""

    name: str

    @property
    def prefix(self) -> Command:
        return ("ip", "netns", "exec", self.name)

    def run(self, *command: str) -> str:
        done = subprocess.run(
            [*self.prefix, *command], capture_output=True, text=True, timeout=2 * PATIENCE_S
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout


@pytest.fixture
def host() -> Iterator[Host]:
    for program in ("ip", "nft", "tc", "curl"):
        require(program, shutil.which(program) is not None, "Debian: iproute2, nftables, curl")
    name = f"tornado_status_{os.getpid()}_faults"
    made = os.geteuid() == 0 and not subprocess.run(["ip", "netns", "add", name]).returncode
    require("network namespaces", made, "run as root, with the right to make them")
    try:
        host = Host(name)
        host.run("ip", "link", "set", "lo", "up")
        host.run("ip", "link", "add", "cable", "type", "veth", "peer", "name", "end")
        host.run("ip", "address", "add", f"{ADDRESS}/24", "broadcast", "+", "dev", "cable")
        host.run("ip", "link", "set", "end", "up")
        for command in UP:
            host.run(*command)
        yield host
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def check_in(host: Host, server: Server, count: int) -> list[str]:
    """Check in from beside the server, all over one connection; return the statuses."""
    certs = server.certs
    url = f"https://{LOOPBACK}:{server.port}/api/client"
    options = {
        "request": "POST",
        "cacert": str(certs / "ca.crt"),
        "cert": str(certs / "client.crt"),
        "key": str(certs / "client.key"),
        "write-out": "%{http_code} ",
        "max-time": f"{PATIENCE_S:.0f}",
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
    return host.run("curl", "-sS", *arguments, *[url] * count).split()


def metrics(host: Host, server: Server, name: str) -> dict[tuple[str, ...], float]:
    """The values of one metric, by their labels in order of the labels' names."""
    text = host.run("curl", "-sS", f"http://{LOOPBACK}:{server.management_port}/metrics")
    found = {}
    for labels, value in re.findall(rf"^tornado_status_{name}_total{{(.*)}} (\S+)$", text, re.M):
        pairs = sorted(re.findall(r'(\w+)="([^"]*)"', labels))
        found[tuple(each for _, each in pairs)] = float(value)
    return found


@pytest.mark.parametrize(
    ("name", "wrong"), [*((name, None) for name in FAULTS), ("firewall", "give_up_on_a_target")]
)
def test_a_datagram_that_cannot_be_sent_stops_nothing(
    host: Host, start_server: StartServer, name: str, wrong: str | None
) -> None:
    """Each check-in is recorded, what is not sent is counted by its errno, and that ends."""
    fault = FAULTS[name]
    module = ("tornado_status",) if wrong is None else ("tests.support.faults.wrong_server", wrong)
    both = {"port": PORT, "interfaces": ["cable"]}
    server = start_server(
        prefix=host.prefix,
        module=module,
        announce={
            "targets": [
                {"kind": "unicast", "address": BEHIND, **both},
                {"kind": "broadcast", "address": BROADCAST_IP, **both},
            ]
        },
    )
    expected = {
        f"unicast {BEHIND}:{PORT}": fault.unicast,
        f"broadcast {BROADCAST_IP}:{PORT}": fault.broadcast,
    }
    assert check_in(host, server, 1) == ["204"]
    assert metrics(host, server, "datagrams_failed") == {}
    assert set(metrics(host, server, "datagrams_sent")) == {(target,) for target in expected}

    for command in fault.cause:
        host.run(*command)
    assert set(check_in(host, server, fault.check_ins)) == {"204"}
    errors = metrics(host, server, "datagrams_failed")
    for target, allowed in expected.items():
        assert {errno for errno, where in errors if where == target} <= allowed
        assert bool(allowed) == any(where == target for _, where in errors)

    for command in fault.end:
        host.run(*command)
    before = metrics(host, server, "datagrams_sent")

    def resumed() -> bool:
        assert check_in(host, server, 1) == ["204"]
        now = metrics(host, server, "datagrams_sent")
        return all(now[target] > before[target] for target in before)

    if wrong is not None:
        assert not any(resumed() for _ in range(5))
        return
    wait_until(resumed, "both targets to be sent to again")
    assert server.rows("SELECT count(*), max(seq) FROM check_in WHERE seq <= 4") == [(4, 4)]
