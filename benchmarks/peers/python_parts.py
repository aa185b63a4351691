"""The shared parts of the Python peers, which differ in their stacks. Standard library only."""

from __future__ import annotations

import datetime
import json
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterable

PATH = "/api/client"
METHODS = ("PATCH", "POST", "PUT")
BAD_NAME = b"CN must be a valid email address"
# One statement in autocommit, for psycopg's placeholders.
UPSERT = """
INSERT INTO user_status (email, last_seen, client_ip, client_port) VALUES (%s, %s, %s, %s)
ON CONFLICT (email) DO UPDATE SET last_seen = excluded.last_seen,
    client_ip = excluded.client_ip, client_port = excluded.client_port
"""

# An e-mail address of a web form (HTML Living Standard, 4.10.5.1.5), with a dot in it.
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
    """Return the e-mail in what `ssl` calls a peer certificate, None if there is none."""
    if not isinstance(certificate, dict):
        return None
    subject = certificate.get("subject", ())
    return email_or_none(value for part in subject for name, value in part if name == "commonName")


def announcing() -> Callable[[str, datetime.datetime, str, int], None]:
    """Return what sends a check-in to the group and to the broadcast address, by loopback."""
    sockets = []
    for target in ("GROUP", "BROADCAST"):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))  # chooses the interface
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.connect((setting(target), int(setting("ANNOUNCE_PORT"))))
        sockets.append(sock)

    def announce(
        email: str, last_seen: datetime.datetime, client_ip: str, client_port: int
    ) -> None:
        members = {"email": email, "last_seen": last_seen.isoformat()}
        payload = json.dumps(members | {"client_ip": client_ip, "client_port": client_port})
        for sock in sockets:
            sock.send(payload.encode())

    return announce
