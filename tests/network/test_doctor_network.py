"""The doctor on networks: each fault made in a network of its own, and looked for without it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.brokers import Nats
from tests.support.doctor_setup import DoctorSetup
from tests.support.harness import LOOPBACK, require

pytestmark = [pytest.mark.once, pytest.mark.network]


@pytest.fixture
def site(tmp_path: Path, certs: Path, database_url: str) -> DoctorSetup:
    return DoctorSetup(tmp_path / "site", certs, database_url)


def network_with(*commands: str) -> tuple[str, ...]:
    """Return the command that makes a network with loopback and what these lines of sh do."""
    script = "\n".join(["ip link set lo up", *commands, 'exec "$@"'])
    unshare = ("unshare", "--net", "--mount", "--propagation", "private")
    probe = subprocess.run(
        [*unshare, "sh", "-ec", script, "sh", "true"], capture_output=True, check=False
    )
    require("root and network namespaces", probe.returncode == 0, probe.stderr.decode())
    return (*unshare, "sh", "-ec", script, "sh")


def nft() -> str:
    program = shutil.which("nft", path="/usr/sbin:/usr/bin")
    require("nft", program is not None, "apt-get install nftables")
    return str(program)


ETH0 = (
    "ip link add eth0 type veth peer name peer0",
    "ip address add 10.1.2.3/24 broadcast + dev eth0",
    "ip link set peer0 up && ip link set eth0 up",
)
ETH1 = tuple(
    line.replace("eth0", "eth1").replace("peer0", "peer1").replace("10.1.2.", "10.3.2.")
    for line in ETH0
)
ON_ETH0 = {"kind": "multicast", "address": "239.1.2.3", "port": 6667, "interfaces": ["eth0"]}
BY_ETH0 = "ip route add default dev eth0"


@pytest.mark.parametrize(
    ("commands", "interfaces", "said"),
    [
        # Loopback needs no route.
        ((*ETH0, BY_ETH0), [LOOPBACK], "ok      routes: 239.1.2.3 stays on this machine"),
        ((), [LOOPBACK], "ok      routes: 239.1.2.3 stays on this machine"),
        (ETH0, ["eth0"], "note    routes: 239.1.2.3 has no route on this machine"),
        ((*ETH0, BY_ETH0), ["eth0"], "ok      routes: 239.1.2.3 has a route, by eth0"),
        ((*ETH0, BY_ETH0), ["10.1.2.3"], "ok      routes: 239.1.2.3 has a route, by eth0"),
        # The longest prefix decides, then the metric.
        (
            (*ETH0, *ETH1, BY_ETH0, "ip route add 239.0.0.0/8 dev eth1"),
            ["eth0"],
            "note    routes: 239.1.2.3 has a route by eth1, where it is not announced",
        ),
        (
            (
                *(*ETH0, *ETH1, "ip route add 239.0.0.0/8 dev eth1 metric 50"),
                "ip route add 239.0.0.0/8 dev eth0 metric 10",
            ),
            ["eth0"],
            "ok      routes: 239.1.2.3 has a route, by eth0",
        ),
    ],
)
def test_a_groups_route_is_told(
    site: DoctorSetup, commands: tuple[str, ...], interfaces: list[str], said: str
) -> None:
    """The interface that it leads to, and whether the server announces there."""
    target = {**ON_ETH0, "interfaces": interfaces}
    done = site.ask(*network_with(*commands), announce={"targets": [target]})
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    [told] = [line for line in done.stdout.splitlines() if " routes: " in line]
    assert told.startswith(said)


def test_an_interface_that_is_down_is_found(site: DoctorSetup) -> None:
    """With what to do about it; up, it is well."""
    announce = {"targets": [ON_ETH0]}
    down = network_with(*ETH0, "ip link set eth0 down")
    site.wrong("by eth0: the interface is down: bring it up", prefix=down, announce=announce)
    done = site.ask(*network_with(*ETH0), announce=announce)
    assert "multicast 239.1.2.3:6667 can be sent to by eth0" in done.stdout
    assert done.returncode == 0


def test_an_address_and_a_port_that_cannot_be_listened_on_are_found(site: DoctorSetup) -> None:
    """No such address here; and a low port, without the capability for it."""
    without = ("setpriv", "--bounding-set=-net_bind_service")
    enter = network_with()
    low = {"server": {"port": 443}}
    site.wrong("server.port: this user may not listen on 443", prefix=(*enter, *without), **low)
    elsewhere = {"server": {"host": "10.9.9.9"}}
    site.wrong("server.host: this machine has no address 10.9.9.9", prefix=enter, **elsewhere)
    done = site.ask(*enter, **low)
    assert "server.port: 443 is free" in done.stdout
    assert done.returncode == 0


def test_who_is_told_is_told(site: DoctorSetup) -> None:
    """No program, only this machine, or another one."""
    site.well("announce.targets: empty, so no check-in is announced", announce={"targets": []})
    site.well("only this machine hears the announcements")
    here = {"kind": "unicast", "address": LOOPBACK, "port": 6667}
    site.well("only this machine hears", announce={"targets": [here]})
    done = site.ask(*network_with(*ETH0), announce={"targets": [ON_ETH0]})
    assert "nobody is told" not in done.stdout
    assert "only this machine" not in done.stdout


def test_a_broker_that_is_away_is_found(site: DoctorSetup, tmp_path: Path) -> None:
    """Or that does not let us in; one that does is well."""
    closed = {"authorization": {"user": "somebody", "password": "else"}}
    with Nats(tmp_path / "open") as lets_in, Nats(tmp_path / "closed", closed) as refuses:
        target = {"kind": "nats", "address": lets_in.url}
        site.well("the broker lets us in", announce={"targets": [target]})
        target["address"] = refuses.url
        site.wrong("announce.targets: nats", announce={"targets": [target]})
    target["address"] = lets_in.url
    site.wrong("announce.targets: nats", announce={"targets": [target]})


CHAINS = (
    "nft add table inet filter",
    "nft 'add chain inet filter out { type filter hook output priority 0; }'",
    "nft 'add chain inet filter in { type filter hook input priority 0; }'",
)
SHUT = "nft 'add set inet filter shut { type inet_service; }'"


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        (["nft add rule inet filter out udp dport 6667 drop"], "out drops udp port 6667"),
        (["nft add rule inet filter out udp dport 6000-7000 reject"], "out drops udp port 6667"),
        (["nft 'add rule inet filter out udp dport { 1, 6667 } drop'"], "out drops udp port 6667"),
        (["nft add rule inet filter out th dport 6667 drop"], "out drops udp port 6667"),
        (
            [
                SHUT,
                "nft 'add element inet filter shut { 1, 6667 comment \"ours\" }'",
                "nft add rule inet filter out udp dport @shut drop",
            ],
            "out drops udp port 6667",
        ),
        (["nft add rule inet filter in tcp dport 8443 drop"], "in drops tcp port 8443"),
        # Not in the way.
        (["nft add rule inet filter out udp dport 6668 drop"], ""),
        (["nft add rule inet filter out tcp dport 6667 drop"], ""),
        (["nft add rule inet filter out udp sport 6667 drop"], ""),
        (["nft add rule inet filter out udp dport != 6667 drop"], ""),
        (["nft add rule inet filter out udp dport 6667 accept"], ""),
        (
            [
                SHUT,
                "nft 'add element inet filter shut { 1 }'",
                "nft add rule inet filter out udp dport @shut drop",
            ],
            "",
        ),
        ([], ""),
    ],
)
def test_a_firewall_rule_in_the_way_is_found(
    site: DoctorSetup, rules: list[str], found: str
) -> None:
    """As the kernel has it: what drops the ports that check-ins and announcements need."""
    nft()
    enter = network_with(*CHAINS, *rules)
    here = {**ON_ETH0, "interfaces": [LOOPBACK]}
    settings = {"server": {"port": 8443}, "announce": {"targets": [here]}}
    if found:
        site.wrong(f"a rule in filter {found}", prefix=enter, **settings)
    else:
        done = site.ask(*enter, **settings)
        assert done.returncode == 0, done.stdout
        assert "no rule of nftables is in the way" in done.stdout


def test_a_chain_that_drops_by_default_is_noted(site: DoctorSetup) -> None:
    """People decide whether it accepts the ports; one that forwards is no obstacle."""
    nft()
    chain = "nft 'add chain inet filter {0} {{ type filter hook {0} priority 0; policy drop; }}'"
    said = site.ask(*network_with(CHAINS[0], chain.format("input"))).stdout
    assert "note    firewall: chain filter input (input) drops what no rule accepts" in said
    said = site.ask(*network_with(CHAINS[0], chain.format("forward"))).stdout
    assert "no rule of nftables is in the way" in said


def test_a_firewall_that_cannot_be_read_is_noted(site: DoctorSetup) -> None:
    """Without the right to, and without nft."""
    program = nft()
    enter = network_with()
    said = site.ask(*enter, "setpriv", "--bounding-set=-net_admin").stdout
    assert "note    firewall: the firewall's rules cannot be read" in said
    said = site.ask(*network_with(f"mount --bind /dev/null {program}")).stdout
    assert "note    firewall: there is no nft" in said
    assert "no rule of nftables is in the way" in site.ask(*enter).stdout


def test_containers_and_their_gateways_are_noted(site: DoctorSetup) -> None:
    """On the host by its bridges, within by the engine's mark and the default route."""
    assert " containers: " not in site.ask(*network_with()).stdout
    for name in ("docker0", "podman1"):
        said = site.ask(*network_with(f"ip link add {name} type bridge")).stdout
        assert f"this machine has networks of containers ({name})" in said
    within = ("mount -t tmpfs tmpfs /run", "touch /run/.containerenv", *ETH0)
    said = site.ask(*network_with(*within, "ip route add default via 10.1.2.1 dev eth0")).stdout
    assert "this is a container; its gateway is 10.1.2.1" in said
    said = site.ask(*network_with(*within)).stdout
    assert "this is a container; its gateway is none" in said
