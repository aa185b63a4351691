"""Three hosts on one network: namespaces on a bridge in a namespace of its own.

Nothing of the machine's own network is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certs_gen.cli import main as certs_gen
from tests.support.harness import PATIENCE_S, ROOT, Lines, require, wait_until

NETWORK, NETWORK_IPV6 = "10.78.0", "fd78::"
SERVER_IP, BROADCAST_IP = f"{NETWORK}.1", f"{NETWORK}.255"


def run(*command: str, given: str | None = None) -> str:
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, check=False, timeout=2 * PATIENCE_S
    )
    if done.returncode:
        raise OSError(f"{' '.join(command[:6])}: {done.stderr.strip()}")
    return done.stdout


def certs_for(address: str, certs: Path, directory: Path) -> Path:
    """Copy the development set, with a server certificate for an address."""
    shutil.copytree(certs, directory)
    assert certs_gen(["server", "--ip", address, "--out", str(directory), "--force"]) == 0
    return directory


def ip(*arguments: str) -> None:
    run("ip", *arguments)


# PORT FAMILY [GROUP INTERFACE]: prints each datagram on PORT as JSON. It has the source, the
# destination, the hops that are left, and the sequence numbers.
HEAR = """\
import json, socket, struct, sys
port, family, *joined = sys.argv[1:]
ipv6 = family == "6"
sock = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
    sock.setsockopt(socket.SOL_SOCKET, option, 1)
level = socket.IPPROTO_IPV6 if ipv6 else socket.IPPROTO_IP
if ipv6:
    sock.setsockopt(level, socket.IPV6_V6ONLY, 1)
    info, hops = socket.IPV6_RECVPKTINFO, socket.IPV6_RECVHOPLIMIT
else:
    info, hops = 8, 12  # IP_PKTINFO, IP_RECVTTL
sock.setsockopt(level, info, 1)
sock.setsockopt(level, hops, 1)
sock.setsockopt(level, 29 if ipv6 else 49, 0)  # IPV6_MULTICAST_ALL, IP_MULTICAST_ALL
sock.bind(("", int(port)))
if joined:
    group, interface = joined
    index = socket.if_nametoindex(interface)
    if ipv6:
        request = socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", index)
        sock.setsockopt(level, socket.IPV6_JOIN_GROUP, request)
    else:
        request = socket.inet_aton(group) + bytes(4) + struct.pack("@i", index)
        sock.setsockopt(level, socket.IP_ADD_MEMBERSHIP, request)
print("listening", flush=True)
while True:
    payload, control, _, source = sock.recvmsg(2048, 256)
    said = {"source": source[0].partition("%")[0], "port": source[1]}
    for _, kind, body in control:
        if kind == (socket.IPV6_PKTINFO if ipv6 else 8):
            where = body[:16] if ipv6 else body[8:12]
            said["destination"] = socket.inet_ntop(sock.family, where)
        else:
            (said["ttl"],) = struct.unpack("@i", body)
    datagram = json.loads(payload)
    first = datagram.get("first", 1)
    said["seqs"] = list(range(first, first + len(datagram["events"])))
    print(json.dumps(said), flush=True)
"""


# A relay in user space would pass on the half of a checksum that a network card completes.
FULL_CHECKSUMS = """\
import ctypes, fcntl, socket, struct
ETHTOOL_STXCSUM, SIOCETHTOOL = 0x17, 0x8946
value = bytearray(struct.pack("@II", ETHTOOL_STXCSUM, 0))
buffer = (ctypes.c_char * len(value)).from_buffer(value)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    fcntl.ioctl(sock, SIOCETHTOOL, struct.pack("@16sP", b"eth0", ctypes.addressof(buffer)))
"""


class Hearing:
    """The datagrams that arrive at a UDP port of a host, from the moment it is entered."""

    def __init__(self, host: Host, port: int, *joined: str, family: int = 4) -> None:
        arguments = [*host.inside, sys.executable, "-c", HEAR, str(port), str(family), *joined]
        self._process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        self._lines = Lines(self._process.stdout)

    def __enter__(self) -> Hearing:
        try:
            self._lines.wait_for(lambda line: line == "listening", "listening")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(PATIENCE_S)
        self._lines.wait_end()

    @property
    def heard(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in list(self._lines.lines[1:])]

    @property
    def seqs(self) -> list[int]:
        return [seq for each in self.heard for seq in each["seqs"]]

    def wait_for(self, seq: int) -> dict[str, Any]:
        """Return the first datagram with an update of this number or a later one."""

        def found() -> dict[str, Any] | None:
            later = (each for each in self.heard if any(n >= seq for n in each["seqs"]))
            return next(later, None)

        datagram: dict[str, Any] = wait_until(found, f"update {seq} or later")
        return datagram


class Relay:
    """A running `python -m tests.support.relay`; `stop` tells what it did."""

    def __init__(
        self, inside: tuple[str, ...], near: str, far: str, port: int, percent: int
    ) -> None:
        arguments = [
            sys.executable,
            "-m",
            "tests.support.relay",
            near,
            far,
            str(port),
            str(percent),
        ]
        self._process = subprocess.Popen(
            [*inside, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines = Lines(self._process.stdout)

    def __enter__(self) -> Relay:
        try:
            self._lines.wait_for(lambda line: line == "relaying", "relaying")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._lines.wait_end()

    def stop(self) -> dict[str, int]:
        self.__exit__()
        assert self._process.returncode == 0
        words = self._lines.lines[-1].split()
        return {word: int(count) for word, count in zip(words[::2], words[1::2], strict=True)}


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace with an interface eth0 on the bridge."""

    name: str

    @property
    def inside(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)

    def ip(self, *arguments: str) -> None:
        run("ip", "-n", self.name, *arguments)

    @property
    def link_local(self) -> str:
        """The IPv6 address that eth0 has by itself, without its scope; soon after it went up."""

        def found() -> str:
            shown = json.loads(run("ip", "-n", self.name, "-json", "address", "show", "eth0"))
            for each in shown[0]["addr_info"]:
                if each["scope"] == "link" and not each.get("tentative"):
                    return str(each["local"])
            return ""

        return str(wait_until(found, "a link-local address"))

    def link(self, state: str) -> None:
        self.ip("link", "set", "eth0", state)

    @contextlib.contextmanager
    def losing(self, percent: int, port: int) -> Iterator[None]:
        """Lose so many of the datagrams that arrive for a UDP port."""
        rule = f"udp dport {port} numgen random mod 100 < {percent} drop" if percent else ""
        with self._filtering("input", rule):
            yield

    @contextlib.contextmanager
    def forbidding(self, port: int) -> Iterator[None]:
        """Let no program here send to a UDP port."""
        with self._filtering("output", f"udp dport {port} drop"):
            yield

    @contextlib.contextmanager
    def _filtering(self, hook: str, rule: str) -> Iterator[None]:
        rules = f"""
            table inet {hook}_tests {{
                chain {hook} {{
                    type filter hook {hook} priority 0
                    {rule}
                }}
            }}
        """
        run(*self.inside, "nft", "-f", "-", given=rules)
        try:
            yield
        finally:
            run(*self.inside, "nft", "delete", "table", "inet", f"{hook}_tests")


@dataclass(frozen=True, slots=True)
class Hosts:
    """`switch` is the namespace of the bridge br0, with the hosts' cables p1, p2 and p3 in it."""

    switch: str
    server: Host
    group: Host
    broadcast: Host

    @contextlib.contextmanager
    def disordering(self, number: int, port: int, percent: int) -> Iterator[Relay]:
        """Repeat and delay so many of the datagrams on their way to host `number`, 2 or 3."""
        cable, near, far = f"p{number}", f"relay{number}", f"r{number}"
        inside = ("ip", "netns", "exec", self.switch)
        link = ("ip", "-n", self.switch, "link")
        run(*link, "add", near, "type", "veth", "peer", "name", far)
        run(*link, "set", far, "master", "br0", "up")
        run(*link, "set", near, "up")
        run(*link, "set", cable, "nomaster")
        try:
            with Relay(inside, cable, near, port, percent) as relay:
                yield relay
        finally:
            run(*link, "set", cable, "master", "br0")
            run(*link, "delete", near)


@contextlib.contextmanager
def three_hosts(purpose: str) -> Iterator[Hosts]:
    """Three hosts at 10.78.0.1 to .3 and fd78::1 to ::3; `purpose` begins their names."""
    how = "run as root, with iproute2 and nftables, and the right to make network namespaces"
    programs = all(shutil.which(name) for name in ("ip", "nft"))
    require("network namespaces", os.geteuid() == 0 and programs, how)
    switch, *names = (
        f"{purpose}_{os.getpid()}_{host}" for host in ("switch", "server", "group", "broadcast")
    )
    with contextlib.ExitStack() as made:
        try:
            run("ip", "netns", "add", switch)
            made.callback(run, "ip", "netns", "delete", switch)
            bridge = ("type", "bridge", "mcast_snooping", "0")
            run("ip", "-n", switch, "link", "add", "br0", *bridge)
            run("ip", "-n", switch, "link", "set", "br0", "up")
            for number, name in enumerate(names, start=1):
                run("ip", "netns", "add", name)
                made.callback(run, "ip", "netns", "delete", name)
                here = ("ip", "-n", name)
                peer = ("peer", "name", f"p{number}", "netns", switch)
                run(*here, "link", "add", "eth0", "type", "veth", *peer)
                run("ip", "-n", switch, "link", "set", f"p{number}", "master", "br0", "up")
                run(*here, "link", "set", "lo", "up")
                run(*here, "link", "set", "eth0", "up")
                run("ip", "netns", "exec", name, sys.executable, "-c", FULL_CHECKSUMS)
                address = (f"{NETWORK}.{number}/24", "broadcast", "+", "dev", "eth0")
                run(*here, "address", "add", *address)
                # Without waiting to see whether another host has it: these are all there are.
                run(*here, "address", "add", f"{NETWORK_IPV6}{number}/64", "dev", "eth0", "nodad")
        except OSError as error:
            require("network namespaces", False, f"{how} ({error})")
        yield Hosts(switch, *map(Host, names))
