"""Listening on a port: which addresses, and errors with what to do about them."""

from __future__ import annotations

import contextlib
import errno

from tornado_status.runtime.program_names import PROC, program

PRIVILEGED = 1024  # Linux's default of ip_unprivileged_port_start


def bind_address(host: str) -> str | None:
    """Return the address to bind; None for `::`, which means all of IPv6 and of IPv4.

    With sockets of their own, so that an IPv4 client is not `::ffff:…`.
    """
    return None if host in ("", "::") else host


def error_text(section: str, host: str, port: int, error: OSError) -> str:
    """Return what is wrong with `section`.host or `section`.port, and what to do about it."""
    return ": ".join(explain(section, host, port, error))


def explain(section: str, host: str, port: int, error: OSError) -> tuple[str, str]:
    """Return what is wrong, and what to do about it."""
    if error.errno == errno.EADDRINUSE:
        taken = f"{section}.port: {port} is taken by {holder(port)}"
        return taken, "stop it, or set another port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"{section}.port: this user may not listen on {port}",
            "grant CAP_NET_BIND_SERVICE (in a systemd unit "
            "AmbientCapabilities=CAP_NET_BIND_SERVICE), or run "
            f"`sysctl net.ipv4.ip_unprivileged_port_start={port}` as root, or set a port of "
            f"{PRIVILEGED} or above",
        )
    advice = "`ip address` shows this machine's addresses"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{section}.host: this machine has no address {host}", advice
    reason = error.strerror or error
    return f"{section}.host: cannot listen on {host} port {port}: {reason}", advice


def holder(port: int, protocol: str = "tcp") -> str:
    """Return which program has a port, with its process id if this user may know it."""
    sockets = _sockets(port, protocol)
    for directory in PROC.glob("[0-9]*") if sockets else ():
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if any(str(each.readlink()) in sockets for each in (directory / "fd").iterdir()):
                return program(int(directory.name))
    option = "u" if protocol == "udp" else "t"
    return f"another program (as root `ss -l{option}np` shows it)"


def _sockets(port: int, protocol: str) -> set[str]:
    """Return what /proc/PID/fd shows for the sockets that listen on a port (proc_net(5))."""
    found = set()
    for table in (protocol, f"{protocol}6"):
        with contextlib.suppress(OSError):
            for line in (PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                # 0A: TCP listens; 07: an unconnected UDP socket.
                listens = fields[3] == ("0A" if protocol == "tcp" else "07")
                if listens and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{fields[9]}]")
    return found
