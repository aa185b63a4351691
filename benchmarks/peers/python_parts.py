"""What the Python peers share, so that they differ in their stacks alone. Standard library only."""

from __future__ import annotations

import datetime
import json
import os
import re
import socket
import ssl
from collections.abc import Iterable

PATH = "/api/client"
BAD_NAME = b"CN must be a valid email address"

# What a web form calls an e-mail address (HTML Living Standard, 4.10.5.1.5), with a dot in it.
_EMAIL = re.compile(
    r"[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]+@[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
    r"(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)+"
)


def setting(name: str) -> str:
    return os.environ[f"PEER_{name}"]


def server_context() -> ssl.SSLContext:
    """Return a context that demands a client certificate of the private CA, TLS 1.3."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(setting("CERTIFICATE"), setting("KEY"))
    context.load_verify_locations(setting("CA"))
    return context


def email_or_none(common_names: Iterable[str]) -> str | None:
    """Return the one common name, if it is an e-mail address."""
    names = list(common_names)
    return names[0] if len(names) == 1 and _EMAIL.fullmatch(names[0]) else None


def email_of(certificate: object) -> str | None:
    """Return the e-mail in what `ssl` calls a peer certificate, None where there is none."""
    if not isinstance(certificate, dict):
        return None
    subject = certificate.get("subject", ())
    return email_or_none(value for part in subject for name, value in part if name == "commonName")


class Announcer:
    """Sends each check-in to the group and to the broadcast address, by loopback."""

    def __init__(self) -> None:
        port = int(setting("ANNOUNCE_PORT"))
        group = self._group = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        group.setblocking(False)
        group.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        group.connect((setting("GROUP"), port))
        broadcast = self._broadcast = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        broadcast.setblocking(False)
        broadcast.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        broadcast.connect((setting("BROADCAST"), port))

    def announce(
        self, email: str, last_seen: datetime.datetime, client_ip: str, client_port: int
    ) -> None:
        payload = json.dumps(
            {
                "email": email,
                "last_seen": last_seen.isoformat(),
                "client_ip": client_ip,
                "client_port": client_port,
            }
        ).encode()
        for sock in (self._group, self._broadcast):
            sock.send(payload)
