"""Opens the one socket that hears everything: its options, its address, its groups."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Sequence

from tornado_status.errors import ConfigError

WILDCARD = "0.0.0.0"  # noqa: S104 - the only address that hears group and broadcast alike

# A full buffer loses datagrams without a word: this holds about 1,800 of the largest with the
# kernel's own overhead, some 12,000 updates. Systems grant less where their limits say so.
RECEIVE_BUFFER = 4 * 1024 * 1024
_SMALLEST_BUFFER = 64 * 1024

_IP_MULTICAST_ALL = 49  # from linux/in.h; not every Python has the name


def open_socket(address: str, port: int, groups: Sequence[str], interface: str) -> socket.socket:
    """Return a bound, non-blocking UDP socket that is in `groups` on `interface`, and only there.

    `address` is a local IPv4 address, `groups` are IPv4 multicast groups, `interface` is an IPv4
    address of this machine or, on Linux, an interface's name. Raises `ConfigError` with a sentence
    that says what to change. The caller closes the socket.
    """
    _check_address(address)
    memberships = [(group, _membership(group, interface)) for group in dict.fromkeys(groups)]
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        _share_port(sock)
        _enlarge_buffer(sock)
        _refuse_foreign_groups(sock)
        _bind(sock, address, port)
        for group, membership in memberships:
            _join(sock, group, membership, interface)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _share_port(sock: socket.socket) -> None:
    """Let any number of listeners, and a server, use the port on this machine.

    Both options, since a socket with only one of them is refused beside a socket with the other.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):  # Windows shares with SO_REUSEADDR alone
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def _enlarge_buffer(sock: socket.socket) -> None:
    size = RECEIVE_BUFFER
    while size > _SMALLEST_BUFFER:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        except OSError:  # ENOBUFS: BSD and macOS refuse what Linux would quietly make smaller
            size //= 2
        else:
            return


def _refuse_foreign_groups(sock: socket.socket) -> None:
    """Hear only the groups this socket joined, on the interface where it joined them.

    Linux otherwise delivers to a wildcard socket every group that any program here has joined.
    """
    if sys.platform == "linux":
        option = getattr(socket, "IP_MULTICAST_ALL", _IP_MULTICAST_ALL)
        with contextlib.suppress(OSError):  # ENOPROTOOPT: a kernel without it hears more, not less
            sock.setsockopt(socket.IPPROTO_IP, option, 0)


def _check_address(address: str) -> None:
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        raise ConfigError(f"--address: expected an IPv4 address, got {address!a}") from None


def _bind(sock: socket.socket, address: str, port: int) -> None:
    try:
        sock.bind((address, port))
    except OSError as error:
        raise ConfigError(_why_not_bound(error, address, port)) from error


def _why_not_bound(error: OSError, address: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"UDP port {port} on {address} is taken by a program that does not share it: "
                f"end that program or choose another port with --port"
            )
        case errno.EADDRNOTAVAIL:
            return (
                f"{address} is not an address of this machine: "
                f"give one that is with --address, or leave it out to hear on all"
            )
        case errno.EACCES:
            return (
                f"UDP port {port} on {address} may not be opened by this user: "
                f"choose another port with --port"
            )
        case _:
            return (
                f"cannot listen on {address} port {port} ({error.strerror}): see --address, --port"
            )


def _membership(group: str, interface: str) -> bytes:
    """Return the request to join `group` on `interface`: a struct ip_mreq, or ip_mreqn by name."""
    try:
        joined = ipaddress.IPv4Address(group)
    except ValueError:
        joined = None
    if joined is None or not joined.is_multicast:
        raise ConfigError(
            f"--group: expected an IPv4 multicast group (224.0.0.0 to 239.255.255.255), "
            f"got {group!a}"
        )
    try:
        address = ipaddress.IPv4Address(interface)
    except ValueError:
        # By name only where the kernel takes an index; elsewhere it would join by default route.
        if sys.platform != "linux":
            raise ConfigError(
                f"--interface: expected an IPv4 address of this machine, got {interface!a}"
            ) from None
        return joined.packed + bytes(4) + struct.pack("@i", _index(interface))
    if address.is_unspecified:
        # It would mean "wherever the default route points".
        raise ConfigError(f"--interface: {interface} names no interface: give its own address")
    return joined.packed + address.packed


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        names = ", ".join(known for _, known in socket.if_nameindex())
        raise ConfigError(
            f"--interface: this machine has no interface {name!a}: expected an IPv4 address of it, "
            f"or one of {names}"
        ) from error


def _join(sock: socket.socket, group: str, membership: bytes, interface: str) -> None:
    try:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL):
            problem = (
                f"--interface: no interface of this machine has the address {interface}: "
                f"give one that it has"
            )
        elif error.errno == errno.ENOBUFS:
            problem = (
                f"too many groups: this system refused {group} (on Linux "
                f"net.ipv4.igmp_max_memberships is the limit): join fewer with --group"
            )
        else:
            problem = f"cannot join {group} on {interface} ({error.strerror}): see --interface"
        raise ConfigError(problem) from error
