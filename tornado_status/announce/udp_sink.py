"""One target on one interface: a UDP socket, reopened as needed, each option with its reason."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tornado_status.announce.interfaces import Address, Interface, Interfaces, Network
from tornado_status.config.settings import AUTO, UdpTarget
from tornado_status.errors import ConfigError

_LOOPBACK = "127.0.0.1"  # for a multicast group without `interfaces`
_ANY = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - the kernel picks the source by the route
_LIMITED = "255.255.255.255"
_IPV6_UNICAST_IF = 76  # from linux/in6.h; Python has no name for it


@dataclass(frozen=True, slots=True)
class _Path:
    """Source and destination. The socket is kept as long as they stay the same.

    `sources` are the addresses that the kernel may choose from, if `source` is none of them.
    """

    source: str
    index: int
    device: str
    destination: str
    sources: tuple[Address, ...] = ()


class UdpSink:
    """Sends to one target by one interface, or by the route if none is named.

    `refresh` opens it, and reopens it if an interface has changed. While there is a `problem`,
    `send` raises it.
    """

    def __init__(self, target: UdpTarget, interface: str | None, source_port: int) -> None:
        self.target = str(target)
        self.via = interface or "the route"
        self.encoding = target.encoding
        self.problem: OSError | None = None
        self._settings = target
        self._interface = interface
        self._source_port = source_port
        self._path: _Path | None = None
        self._socket: socket.socket | None = None

    def send(self, payload: bytes, /) -> bool:
        if self._socket is None:
            # A new one each time: the traceback of a raised exception grows.
            raise _error((self.problem and self.problem.errno) or errno.ENODEV)
        try:
            self._socket.send(payload)
        except ConnectionRefusedError:
            # The error of an earlier datagram: this one has not been sent yet.
            self._socket.send(payload)
            raise
        return True

    def check(self, interfaces: Interfaces) -> None:
        """Raise `ConfigError` if the interface does not exist, as with a typing error."""
        if self._interface is None:
            return
        try:
            address: Address | None = ipaddress.ip_address(self._interface)
        except ValueError:
            address = None
        known = (
            interfaces.named(self._interface)
            if address is None
            else interfaces.with_address(address)
        )
        if known is None:
            there = "; ".join(
                " ".join([each.name, *(str(network.address) for network in each.networks)])
                for each in interfaces
            )
            raise ConfigError(
                f"announce.targets: {self.target}: interface {self._interface!r} does not exist; "
                f"there are {there}"
            )

    def doubt(self, interfaces: Interfaces) -> str | None:
        """Return what is probably wrong with an address that the kernel accepts."""
        address = self._settings.address
        if self._settings.kind != "broadcast" or address in (AUTO, _LIMITED):
            return None
        known = [
            f"{each.name} {network.broadcast}"
            for each in interfaces
            for network in each.networks
            if network.broadcast is not None
        ]
        if any(each.endswith(f" {address}") for each in known):
            return None
        return (
            "no interface has this broadcast address, so it goes to a host of that address, or to "
            f"another network; there are {', '.join(known)}; address: auto finds the right one"
        )

    def refresh(self, interfaces: Interfaces) -> None:
        """Open the socket, or reopen it if its path has changed. Sets `problem`."""
        try:
            path = self._find_path(interfaces)
            if path != self._path or self._socket is None:
                fresh = self._open(path)
                self.close()
                self._path, self._socket = path, fresh
            self.problem = None
        except OSError as error:
            self.close()
            self.problem = error

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # -------------------------------------------------------------------------------- the path

    def _find_path(self, interfaces: Interfaces) -> _Path:
        target = self._settings
        version = 6 if ":" in target.address else 4
        if self._interface is None:
            return _Path(_ANY[version], 0, "", target.address)
        interface, network = _look_up(self._interface, version, interfaces)
        if not interface.up:
            raise _error(errno.ENETDOWN)
        if target.address == AUTO:
            if network is None or network.broadcast is None:
                raise _error(errno.EADDRNOTAVAIL)
            source, destination = str(network.address), str(network.broadcast)
            return _Path(source, interface.index, interface.name, destination)
        if network is not None:
            source = str(network.address)
            if _is_address(self._interface):  # 127.0.0.5, or one with its scope
                source = self._interface.partition("%")[0]
            return _Path(source, interface.index, interface.name, target.address)
        # By name with IPv6: the kernel chooses the address that fits the destination's scope.
        sources = tuple(each.address for each in interface.of_version(6))
        if not sources:
            raise _error(errno.EADDRNOTAVAIL)
        return _Path("::", interface.index, interface.name, target.address, sources)

    def _open(self, path: _Path) -> socket.socket:
        version = 6 if ":" in path.destination else 4
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            # Several servers on one machine announce from the same port. A socket with only one of
            # these options cannot bind beside one that has the other.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # Datagrams to this port are never read: make the buffer as small as the kernel allows.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            set_options = self._set_ipv6_options if version == 6 else self._set_ipv4_options
            set_options(sock, path)
            sock.bind(_socket_address(path.source, self._source_port, path.index))
            # Connected: the route is looked up once, and ICMP errors are reported.
            port = self._settings.port
            sock.connect(_socket_address(path.destination, port, path.index))
        except BaseException:
            sock.close()
            raise
        return sock

    def _set_ipv4_options(self, sock: socket.socket, path: _Path) -> None:
        target = self._settings
        if target.kind == "multicast":
            # Without this the default route decides. A struct ip_mreqn: the index tells interfaces
            # with the same address apart.
            choice = bytes(4) + socket.inet_aton(path.source) + struct.pack("@i", path.index)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, choice)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, target.ttl)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, int(target.loop))
            return
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, max(target.ttl, 1))
        if target.kind == "broadcast":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            if path.destination == _LIMITED:
                # The limited broadcast has no route of its own.
                device = path.device.encode()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)

    def _set_ipv6_options(self, sock: socket.socket, path: _Path) -> None:
        target = self._settings
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has the port to itself
        if target.kind == "multicast":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, path.index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, target.ttl)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, int(target.loop))
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, max(target.ttl, 1))
            index = struct.pack("!I", path.index)  # 0 leaves it to the routes
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_UNICAST_IF, index)


def udp_sinks(target: UdpTarget, source_port: int) -> Iterator[UdpSink]:
    """Yield a sink for each interface of `target`, not open yet.

    Without `interfaces` a group is announced on loopback, and any other address by its route.
    """
    default = (_LOOPBACK,) if target.kind == "multicast" else (None,)
    for interface in target.interfaces or default:
        yield UdpSink(target, interface, source_port)


def _look_up(text: str, version: int, interfaces: Interfaces) -> tuple[Interface, Network | None]:
    """Return the interface, and the network to send from; None if the kernel chooses it."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        interface = interfaces.named(text)
        if interface is None:
            raise _error(errno.ENODEV) from None
        if version == 6:
            return interface, None
        networks = interface.of_version(4)
        if not networks:
            raise _error(errno.EADDRNOTAVAIL) from None
        return interface, networks[0]
    found = interfaces.with_address(address)
    if found is None:
        raise _error(errno.EADDRNOTAVAIL)
    return found


def _is_address(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(text))
    return False


def _socket_address(
    address: str, port: int, index: int
) -> tuple[str, int] | tuple[str, int, int, int]:
    return (address, port, 0, index) if ":" in address else (address, port)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
