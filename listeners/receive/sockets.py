"""Opens the UDP sockets of a listener: their options, addresses and groups.

One socket for IPv4 receives groups and broadcasts alike. One for IPv6 is opened if there are IPv6
groups or the address is IPv6. A socket that is bound to one unicast address has its port to itself.
Otherwise the kernel could give its datagrams to another user's socket. `Sockets.rejoin` keeps
the groups joined as interfaces come and go.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from tornado_status.errors import ConfigError

WILDCARD = "0.0.0.0"  # noqa: S104 - the only address that receives both groups and broadcasts

# A full buffer loses datagrams silently. This one holds about 1,800 of the largest with the
# kernel's own overhead, some 12,000 updates. Systems with a lower limit grant less.
RECEIVE_BUFFER = 4 * 1024 * 1024
_SMALLEST_BUFFER = 64 * 1024

_IP_MULTICAST_ALL = 49  # from linux/in.h; not every Python has the name
_IPV6_MULTICAST_ALL = 29  # from linux/in6.h
_SIOCGIFADDR = 0x8915  # netdevice(7)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Sockets:
    """The open sockets and what they have joined. A context manager that closes them."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self._memberships: list[_Membership] = []

    def __enter__(self) -> Sockets:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()

    def rejoin(self) -> list[str]:
        """Join again if a membership has gone with its interface. Returns what changed.

        The kernel refuses to join a group twice, so this is safe at any time. No system call says
        that an interface came back.
        """
        changes = []
        for membership in self._memberships:
            was = membership.problem
            membership.join()
            if membership.problem != was:
                about = f"{membership.group} on {membership.interface}"
                if membership.problem is None:
                    changes.append(f"joined {about} again")
                else:
                    changes.append(f"no longer in {about}: {membership.problem}")
        return changes

    def add(self, sock: socket.socket, groups: Iterable[tuple[Address, str]]) -> None:
        """Take over a socket and join `groups`, each on an interface. Raises `ConfigError`."""
        self.sockets.append(sock)
        for group, interface in groups:
            membership = _Membership(sock, group, interface)
            membership.join()
            if membership.problem is not None:
                raise ConfigError(membership.problem)
            self._memberships.append(membership)


def open_sockets(
    address: str, port: int, groups: Sequence[str], interfaces: Sequence[str]
) -> Sockets:
    """Return bound, non-blocking UDP sockets that are in `groups` on `interfaces`, and only there.

    `address` is a local address. `groups` are multicast groups of IPv4 or IPv6 (with `%interface`
    on that one alone). `interfaces` are addresses of this machine or, on Linux, names. Raises
    `ConfigError` with a sentence that says what to change. The caller closes the sockets.
    """
    local = _address(address)
    wanted = [
        (group, interface)
        for text in dict.fromkeys(groups)
        for group, interface in _on_interfaces(text, interfaces)
    ]
    opened = Sockets()
    try:
        if isinstance(local, ipaddress.IPv4Address):
            sock = _open(socket.AF_INET, address, port, shared=_is_shared(local))
            opened.add(sock, [(g, i) for g, i in wanted if g.version == 4])
        elif any(group.version == 4 for group, _ in wanted):
            raise ConfigError(
                f"--address: {address} receives no IPv4 group: leave them out with --group"
            )
        of_ipv6 = [(group, interface) for group, interface in wanted if group.version == 6]
        if of_ipv6 or local.version == 6:
            of_address = address if local.version == 6 else "::"
            shared = local.version == 4 or _is_shared(local)
            sock = _open(socket.AF_INET6, of_address, port, shared=shared)
            opened.add(sock, of_ipv6)
    except BaseException:
        opened.close()
        raise
    return opened


def _address(text: str) -> Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(f"--address: expected an IPv4 or IPv6 address, got {text!a}") from None


def _on_interfaces(text: str, interfaces: Sequence[str]) -> list[tuple[Address, str]]:
    """Return a group with each interface to join it on."""
    group, _, scope = text.partition("%")
    try:
        address: Address | None = ipaddress.ip_address(group)
    except ValueError:
        address = None
    if address is None or not address.is_multicast:
        raise ConfigError(
            f"--group: expected a multicast group (224.0.0.0 to 239.255.255.255, or ff00::/8), "
            f"got {text!a}"
        )
    return [(address, interface) for interface in ([scope] if scope else dict.fromkeys(interfaces))]


# ---------------------------------------------------------------------------------------- sockets


def _is_shared(local: Address) -> bool:
    """Return whether a datagram may reach each of several sockets that are bound to this address.

    That is so for a group or a broadcast, which the wildcard receives too. Other systems than Linux
    also deliver groups to a socket on an interface's address.
    """
    if local.is_unspecified or local.is_multicast or sys.platform != "linux":
        return True
    if local.version == 6:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(local), 1))  # sends nothing
        except OSError as error:
            return error.errno == errno.EACCES  # a broadcast address
    return False


def _open(family: socket.AddressFamily, address: str, port: int, *, shared: bool) -> socket.socket:
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM)
    except OSError as error:  # EAFNOSUPPORT
        raise ConfigError(f"this system has no IPv6 ({error.strerror}): see --group") from error
    try:
        if shared:
            _share_port(sock)
        _enlarge_buffer(sock)
        if family == socket.AF_INET6:
            # IPv4 has a socket of its own: both on one would be in each other's way.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _refuse_foreign_groups(sock)
        _bind(sock, address, port)
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
    """Receive only the groups that this socket joined, on the interface where it joined them.

    Linux otherwise delivers to a wildcard socket every group that any program here has joined.
    """
    if sys.platform == "linux":
        with contextlib.suppress(
            OSError
        ):  # ENOPROTOOPT: a kernel without it receives more, not less
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
            else:
                option = getattr(socket, "IP_MULTICAST_ALL", _IP_MULTICAST_ALL)
                sock.setsockopt(socket.IPPROTO_IP, option, 0)


def _bind(sock: socket.socket, address: str, port: int) -> None:
    try:
        # With the scope of a link-local address, if it has one.
        [(*_, local)] = socket.getaddrinfo(
            address, port, sock.family, socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
        )[:1]
        sock.bind(local)
    except OSError as error:
        raise ConfigError(_why_not_bound(error, address, port)) from error


def _why_not_bound(error: OSError, address: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"UDP port {port} on {address} is taken by a program that does not share it: "
                f"end that program or choose another port with --port"
            )
        case errno.EADDRNOTAVAIL | errno.ENODEV:
            return (
                f"{address} is not an address of this machine: "
                f"give one that is with --address, or leave it out to listen on all"
            )
        case errno.EINVAL if address.startswith("fe80:"):
            return f"{address} needs its interface: give it with --address as {address}%INTERFACE"
        case errno.EACCES:
            return (
                f"UDP port {port} on {address} may not be opened by this user: "
                f"choose another port with --port"
            )
        case _:
            return (
                f"cannot listen on {address} port {port} ({error.strerror}): see --address, --port"
            )


# ----------------------------------------------------------------------------------------- groups


class _Membership:
    """One group on one interface of one socket; `problem` says why it is not joined."""

    def __init__(self, sock: socket.socket, group: Address, interface: str) -> None:
        self.group = group
        self.interface = interface
        self.problem: str | None = None
        self._sock = sock
        self._request: bytes | None = None

    def join(self) -> None:
        """Join, or see that it is joined. Sets `problem`; raises nothing."""
        self.problem = None
        level, add, drop = _OPTIONS[self.group.version]
        try:
            request = _request(self.group, self.interface)
            if self._request not in (None, request):
                # The name is another interface's now: leave the group on the old one.
                with contextlib.suppress(OSError):
                    self._sock.setsockopt(level, drop, self._request)
            self._request = request
            self._sock.setsockopt(level, add, request)
        except ConfigError as error:
            self.problem = str(error)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:  # it is a member
                self.problem = _why_not_joined(error, str(self.group), self.interface)


_OPTIONS = {
    4: (socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.IP_DROP_MEMBERSHIP),
    6: (socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.IPV6_LEAVE_GROUP),
}


def _request(group: Address, interface: str) -> bytes:
    """Return the request to join: a struct ip_mreq, an ip_mreqn by index, or an ipv6_mreq."""
    try:
        address: Address | None = ipaddress.ip_address(interface)
    except ValueError:
        address = None
    if address is not None and address.is_unspecified:
        # It would mean "wherever the default route points".
        raise ConfigError(f"--interface: {interface} names no interface: give its own address")
    if isinstance(group, ipaddress.IPv6Address):
        return group.packed + struct.pack("@I", _index(interface, address))
    if isinstance(address, ipaddress.IPv4Address):
        return group.packed + address.packed
    # Only Linux takes an index; other systems would join by default route.
    if sys.platform != "linux":
        raise ConfigError(
            f"--interface: expected an IPv4 address of this machine, got {interface!a}"
        )
    return group.packed + bytes(4) + struct.pack("@i", _index(interface, address))


def _index(interface: str, address: Address | None) -> int:
    if address is None:
        return _index_of_name(interface)
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        return _index_of_name(address.scope_id)
    for index, name in socket.if_nameindex():
        if address in _addresses(name):
            return index
    raise ConfigError(
        f"--interface: no interface of this machine has the address {interface}: "
        f"give one that it has, or its name"
    )


def _index_of_name(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        names = ", ".join(known for _, known in socket.if_nameindex())
        raise ConfigError(
            f"--interface: this machine has no interface {name!a}: expected an address of it, "
            f"or one of {names}"
        ) from error


def _addresses(name: str) -> list[Address]:
    """Return the addresses of an interface; none on other systems than Linux."""
    if sys.platform != "linux":
        return []
    import fcntl

    found: list[Address] = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack("16s24x", name.encode()))
        found.append(ipaddress.IPv4Address(answer[20:24]))
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text("ascii").splitlines():
            digits, *_, interface = line.split()
            if interface == name:
                found.append(ipaddress.IPv6Address(bytes.fromhex(digits)))
    return found


def _why_not_joined(error: OSError, group: str, interface: str) -> str:
    match error.errno:
        case errno.ENODEV | errno.EADDRNOTAVAIL:
            return (
                f"--interface: no interface of this machine has the address {interface}: "
                f"give one that it has"
            )
        case errno.ENOBUFS | errno.ENOMEM:
            return (
                f"too many groups: this system refused {group} (on Linux "
                f"net.ipv4.igmp_max_memberships is the limit): join fewer with --group"
            )
        case errno.ENETDOWN:
            return f"--interface: {interface} is down"
        case _:
            return f"cannot join {group} on {interface} ({error.strerror}): see --interface"
