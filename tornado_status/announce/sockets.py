"""Sockets to announce from: their options, each with its reason, and what an errno means."""

from __future__ import annotations

import array
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator

from tornado_status.config import Target
from tornado_status.errors import ConfigError

ADVICE = {
    errno.ENETUNREACH: "no route to it: set `interfaces`, or add a route",
    errno.EHOSTUNREACH: "no route to it: set `interfaces`, or add a route",
    errno.ENETDOWN: "the interface is down",
    errno.EACCES: "forbidden: not a broadcast address of that interface, or a firewall says no",
    errno.EPERM: "forbidden by a firewall rule on this machine",
    errno.EMSGSIZE: "larger than the interface's MTU",
    errno.EADDRNOTAVAIL: "the interface's address is gone",
    errno.ENOBUFS: "the interface's queue is full",
    errno.EAGAIN: "the socket's buffer is full",
    errno.ECONNREFUSED: "nobody listens there",
}

_SIOCGIFADDR = 0x8915  # netdevice(7)
_IPV4_ANY = "0.0.0.0"  # noqa: S104 - the kernel picks the source by the route


def open_sockets(target: Target, source_port: int) -> Iterator[socket.socket]:
    """Yield one UDP socket per interface of `target`, connected to it, bound to `source_port`.

    Without `interfaces` a group is announced on loopback, and any other address by its route.
    Raises `ConfigError` where an interface is unknown or the port is taken.
    """
    default = ("127.0.0.1",) if target.kind == "multicast" else (_IPV4_ANY,)
    for interface in target.interfaces or default:
        yield _open(target, interface, source_port)


def _open(target: Target, interface: str, source_port: int) -> socket.socket:
    address = interface_address(interface)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        # Several servers on one machine announce from the same port. Each option alone is refused
        # next to a socket that has set the other.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Nobody reads what strangers send to this port: keep as little of it as the kernel lets us.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        if target.kind == "multicast":
            # Without this the group leaves by the default route, wherever that goes.
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, target.ttl)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)  # listeners right here
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, max(target.ttl, 1))
        if target.kind == "broadcast":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            if target.address == "255.255.255.255" and address != _IPV4_ANY:
                # The limited broadcast has no route of its own.
                name = _interface_name(address)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
        sock.bind((address, source_port))
        sock.connect((target.address, target.port))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"announce.source_port: UDP port {source_port} is taken by another program"
            ) from error
        advice = ADVICE.get(error.errno or 0, error.strerror)
        raise ConfigError(f"announce.targets: {target} from {interface}: {advice}") from error
    return sock


def interface_address(interface: str) -> str:
    """Return the IPv4 address of an interface given by name, or an address as it is.

    Raises `ConfigError` where there is no such interface, or it has no IPv4 address.
    """
    try:
        return str(ipaddress.IPv4Address(interface))
    except ValueError:
        pass
    names = ", ".join(name for _, name in socket.if_nameindex())
    try:
        socket.if_nametoindex(interface)
        return _ioctl_address(interface)
    except OSError as error:
        what = "has no IPv4 address" if error.errno == errno.EADDRNOTAVAIL else "does not exist"
        raise ConfigError(
            f"announce.targets: interface {interface!r} {what}; there are {names}"
        ) from error


def _ioctl_address(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = array.array("B", struct.pack("16s24x", os.fsencode(name)))
        fcntl.ioctl(sock, _SIOCGIFADDR, request)
    return socket.inet_ntoa(request[20:24].tobytes())


def _interface_name(address: str) -> str:
    for _, name in socket.if_nameindex():
        try:
            if _ioctl_address(name) == address:
                return name
        except OSError:
            continue  # down, or without an IPv4 address
    raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
