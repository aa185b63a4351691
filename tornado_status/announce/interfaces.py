"""The interfaces of this machine, and a notification of every change, by rtnetlink(7).

The standard library knows their names only, not their networks, their state or their changes. Linux
only, as the rest of the server.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tornado_status.errors import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# rtnetlink(7), netlink(7), netdevice(7): numbers of the kernel's interface, the same everywhere.
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWADDR, _RTM_GETADDR = 16, 18, 20, 22
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_ROOT | NLM_F_MATCH
_DUMP_INTERRUPTED = 0x10
_IFLA_IFNAME = 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFF_UP = 0x1
_NOT_YET = 0x40 | 0x08  # IFA_F_TENTATIVE, IFA_F_DADFAILED: IPv6 may not send from it (now)
_CHANGES = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR

_HEADER = struct.Struct("@IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("@BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("@BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_ATTRIBUTE = struct.Struct("@HH")  # struct rtattr: length, type

_LONGEST_ANSWER = 64 * 1024  # the kernel fills at most 32 KB at a time
_ANSWER_S = 1.0  # the kernel answers at once; a bound, because every wait has one
_ATTEMPTS = 5  # of a list that changes while it is read


@dataclass(frozen=True, slots=True)
class Network:
    """An address that an interface may send from, and the network behind it."""

    address: Address
    prefix_length: int
    broadcast: ipaddress.IPv4Address | None


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface as it is at this moment; `networks` in the kernel's order."""

    name: str
    index: int
    up: bool
    networks: tuple[Network, ...]

    def of_version(self, version: int) -> tuple[Network, ...]:
        return tuple(each for each in self.networks if each.address.version == version)


class Interfaces:
    """All interfaces of this machine at one moment."""

    def __init__(self, interfaces: Mapping[str, Interface]) -> None:
        self._by_name = interfaces

    def __iter__(self) -> Iterator[Interface]:
        return iter(self._by_name.values())

    def named(self, name: str) -> Interface | None:
        return self._by_name.get(name)

    def with_address(self, address: Address) -> tuple[Interface, Network] | None:
        """Return the interface that has this address; loopback has all of 127.0.0.0/8."""
        scope = address.scope_id if isinstance(address, ipaddress.IPv6Address) else None
        wanted = ipaddress.ip_address(str(address).partition("%")[0])
        for interface in self:
            if scope is not None and scope not in (interface.name, str(interface.index)):
                continue
            for network in interface.networks:
                if network.address == wanted or (
                    wanted.is_loopback
                    and network.address.is_loopback
                    and wanted.version == network.address.version
                ):
                    return interface, network
        return None


def read_interfaces() -> Interfaces:
    """Ask the kernel, in less than a millisecond. Raises `ConfigError` if it does not answer."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking:
            asking.settimeout(_ANSWER_S)
            asking.bind((0, 0))
            for _ in range(_ATTEMPTS):
                with contextlib.suppress(InterruptedError):
                    links = list(_dump(asking, _RTM_GETLINK, _RTM_NEWLINK))
                    return _parse(links, list(_dump(asking, _RTM_GETADDR, _RTM_NEWADDR)))
            raise TimeoutError("they keep changing")
    except (OSError, struct.error, ValueError) as error:
        raise ConfigError(
            f"announce.targets: cannot read the interfaces (netlink: {error})"
        ) from error


def watch_interfaces() -> socket.socket:
    """Return a non-blocking socket that becomes readable whenever an interface changes.

    Its messages need not be read: call `read_interfaces`. Raises `OSError` if there is no netlink.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        sock.setblocking(False)
        sock.bind((0, _CHANGES))
    except BaseException:
        sock.close()
        raise
    return sock


def _dump(asking: socket.socket, request: int, wanted: int) -> Iterator[memoryview]:
    """Yield the bodies of an answer. Raises `InterruptedError` if it was interrupted."""
    header = _HEADER.pack(_HEADER.size + _LINK.size, request, _REQUEST_DUMP, request, 0)
    asking.send(header + bytes(_LINK.size))  # an empty body: of every family
    complete = True
    while True:
        rest = memoryview(asking.recv(_LONGEST_ANSWER))
        while len(rest) >= _HEADER.size:
            length, kind, flags, sequence, _ = _HEADER.unpack_from(rest)
            if not _HEADER.size <= length <= len(rest):
                raise ValueError("truncated answer")
            body, rest = rest[_HEADER.size : length], rest[_aligned(length) :]
            if sequence != request:
                continue  # the answer to an earlier request
            complete = complete and not flags & _DUMP_INTERRUPTED
            if kind == _NLMSG_ERROR:
                (code,) = struct.unpack_from("@i", body)
                raise OSError(-code, "the kernel refuses")
            if kind == _NLMSG_DONE:
                if not complete:
                    raise InterruptedError
                return
            if kind == wanted:
                yield body


def _parse(links: list[memoryview], addresses: list[memoryview]) -> Interfaces:
    networks: dict[int, list[Network]] = {}
    for body in addresses:
        family, prefix_length, short_flags, _, index = _ADDRESS.unpack_from(body)
        found = _attributes(body[_ADDRESS.size :])
        flags = short_flags
        if _IFA_FLAGS in found:
            (flags,) = struct.unpack_from("@I", found[_IFA_FLAGS])
        # On a point-to-point link IFA_ADDRESS is the peer.
        packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
        if packed is None or family not in (socket.AF_INET, socket.AF_INET6):
            continue
        if family == socket.AF_INET6 and flags & _NOT_YET:
            continue
        address = ipaddress.ip_address(packed)
        broadcast = _broadcast(address, prefix_length, found.get(_IFA_BROADCAST))
        networks.setdefault(index, []).append(Network(address, prefix_length, broadcast))
    interfaces = {}
    for body in links:
        _, _, index, flags, _ = _LINK.unpack_from(body)
        name = _attributes(body[_LINK.size :])[_IFLA_IFNAME].rstrip(b"\0").decode(errors="replace")
        up = bool(flags & _IFF_UP)
        interfaces[name] = Interface(name, index, up, tuple(networks.get(index, ())))
    return Interfaces(interfaces)


def _broadcast(
    address: Address, prefix_length: int, configured: bytes | None
) -> ipaddress.IPv4Address | None:
    """Return the configured address, else all ones after the prefix."""
    if not isinstance(address, ipaddress.IPv4Address):
        return None
    if configured is not None:
        return ipaddress.IPv4Address(configured)
    network = ipaddress.IPv4Network((address, prefix_length), strict=False)
    return network.broadcast_address if prefix_length < 31 else None  # RFC 3021: two hosts


def _attributes(rest: memoryview) -> dict[int, bytes]:
    found = {}
    while len(rest) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(rest)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = bytes(rest[_ATTRIBUTE.size : length])
        rest = rest[_aligned(length) :]
    return found


def _aligned(length: int) -> int:
    return (length + 3) & ~3
