"""The cause of an errno for announcements, and its remedy.

docs/target-reference.md has the same table; a test compares them.
"""

from __future__ import annotations

import errno

from tornado_status.announce.sink import SendError

HINTS = {
    errno.ENETUNREACH: "no route to it: name the target's `interfaces`, or add a route",
    errno.EHOSTUNREACH: "no route to it, or its host does not answer: see `ip route get ADDRESS`",
    errno.ENETDOWN: "the interface is down: bring it up, as with `ip link set eth0 up`",
    errno.ENODEV: "the interface is gone: bring it back, or change the target's `interfaces`",
    errno.EADDRNOTAVAIL: "the machine or the interface has no such address: see `ip address`",
    errno.EADDRINUSE: "another program has the port: stop it, or change announce.source_port",
    errno.EACCES: "it is a broadcast address: set kind: broadcast; or a route prohibits it",
    errno.EPERM: "a firewall rule on this machine forbids it: allow UDP out to the target's port",
    errno.EINVAL: "the source address does not fit the route: name the target's `interfaces`",
    errno.EMSGSIZE: "larger than the interface's MTU: 1,500 is enough, see `ip link`",
    errno.ENOBUFS: "the interface's queue is full: see txqueuelen, or announce to fewer targets",
    errno.EAGAIN: "the socket's buffer is full: the interface is slower than the check-ins",
    errno.ECONNREFUSED: "no program listens there: start the listener, or remove the target",
    errno.EAFNOSUPPORT: "this machine has no IPv6: see net.ipv6.conf.all.disable_ipv6",
}


def errno_name(error: OSError) -> str:
    """Return the errno's name, as `ENETUNREACH`, or the `reason` of a `SendError`."""
    if isinstance(error, SendError):
        return error.reason
    return errno.errorcode.get(error.errno or 0, "UNKNOWN")


def hint(error: OSError) -> str:
    """Return what is wrong and what to do about it, in one sentence."""
    return HINTS.get(error.errno or 0, error.strerror or str(error))
