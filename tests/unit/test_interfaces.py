"""The kernel's interfaces and errors, and the documentation of them."""

from __future__ import annotations

import errno
import ipaddress
import json
import re
import shutil
import socket
import subprocess
from typing import Any, Literal

import pytest

from tests.support.harness import PATIENCE_S, ROOT, require
from tornado_status.announce.errno_hints import HINTS, hint
from tornado_status.announce.interfaces import Network, read_interfaces
from tornado_status.announce.udp_sink import UdpSink
from tornado_status.config.settings import UdpTarget
from tornado_status.errors import ConfigError

TARGETS_PAGE = (ROOT / "docs" / "target-reference.md").read_text("utf-8")


def test_the_page_explains_every_errno_as_the_log_does() -> None:
    """Word for word, so that who searches for a line of the log finds it."""
    rows = dict(re.findall(r"^\| `(E[A-Z]+)` \| (.+) \|$", TARGETS_PAGE, re.MULTILINE))
    assert rows == {errno.errorcode[number]: text for number, text in HINTS.items()}


def test_an_errno_that_nobody_thought_of_is_told_in_the_systems_words() -> None:
    """Better than nothing."""
    assert hint(OSError(errno.ENOTTY, "Inappropriate ioctl")) == "Inappropriate ioctl"
    assert hint(OSError("no number")) == "no number"


def test_interfaces_are_those_that_ip_shows() -> None:
    """Names, indexes, what is up, addresses, prefixes and broadcast addresses."""
    require("ip", shutil.which("ip") is not None, "Debian: iproute2")
    done = subprocess.run(
        ["ip", "-json", "address"], capture_output=True, check=True, timeout=PATIENCE_S
    )
    expected = {}
    for shown in json.loads(done.stdout):
        addresses = {
            (each["local"], each["prefixlen"], each.get("broadcast"))
            for each in shown["addr_info"]
            if not (each.get("tentative") or each.get("dadfailed"))
        }
        expected[shown["ifname"]] = (shown["ifindex"], "UP" in shown["flags"], addresses)
    found = {
        each.name: (each.index, each.up, {_as_ip_shows(network) for network in each.networks})
        for each in read_interfaces()
    }
    assert found == expected
    assert found["lo"][2]  # or it would show nothing


def _as_ip_shows(network: Network) -> tuple[Any, ...]:
    # Loopback has no broadcast address set; the kernel takes all ones all the same.
    shown = None if network.address.is_loopback else network.broadcast
    return str(network.address), network.prefix_length, str(shown) if shown else None


def test_an_interface_is_found_by_its_address() -> None:
    """Loopback has all of its network."""
    interfaces = read_interfaces()
    for text in ("127.0.0.1", "127.9.9.9"):
        found = interfaces.with_address(ipaddress.ip_address(text))
        assert found is not None
        assert found[0].name == "lo"
    assert interfaces.with_address(ipaddress.ip_address("192.0.2.77")) is None
    assert interfaces.named("nonesuch0") is None


@pytest.mark.parametrize("interface", ["nonesuch0", "192.0.2.77", "fe80::1%nonesuch0"])
def test_an_interface_that_does_not_exist_is_told_with_those_that_do(interface: str) -> None:
    """With their addresses, to choose from."""
    address = "ff02::66" if ":" in interface else "239.1.1.1"
    target = UdpTarget(kind="multicast", address=address, interfaces=(interface,))
    outlet = UdpSink(target, interface, 6666)
    with pytest.raises(ConfigError) as caught:
        outlet.check(read_interfaces())
    assert f"interface {interface!r} does not exist; there are " in str(caught.value)
    assert "lo 127.0.0.1" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "address", "doubted"),
    [
        ("broadcast", "127.255.255.255", False),
        ("broadcast", "198.51.100.255", True),
        ("broadcast", "127.0.0.1", True),
        ("unicast", "127.0.0.1", False),
    ],
)
def test_what_is_no_broadcast_address_here_is_doubted(
    kind: Literal["broadcast", "unicast"], address: str, doubted: bool
) -> None:
    """It would be sent all the same, to no host: the mask is another one, or a slip."""
    outlet = UdpSink(UdpTarget(kind=kind, address=address), None, 6666)
    doubt = outlet.doubt(read_interfaces())
    assert (doubt is not None) == doubted
    assert doubt is None or "lo 127.255.255.255" in doubt


def test_an_outlet_that_is_closed_says_why_each_time() -> None:
    """And keeps no trace of each time, however many datagrams there are."""
    target = UdpTarget(kind="unicast", address="127.0.0.1", interfaces=("nonesuch0",))
    outlet = UdpSink(target, "nonesuch0", 6666)
    outlet.refresh(read_interfaces())
    assert outlet.problem is not None
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            outlet.send(b"x")
        assert caught.value.errno == errno.ENODEV
        assert caught.value is not outlet.problem
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        target = UdpTarget(kind="unicast", address="127.0.0.1", port=sock.getsockname()[1])
        outlet = UdpSink(target, None, 0)
        outlet.refresh(read_interfaces())
        outlet.send(b"x")
        assert sock.recv(2) == b"x"
        outlet.close()
