"""How tornado_status runs: as it is shipped, with everything on, and a database like the others."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from typing import Any

from benchmarks.peers.base import BROADCAST, GROUP, LOOPBACK, Command, Peer, Site, free_port


class ThisServer(Peer):
    name = "tornado_status"
    title = "tornado_status"
    writes = "status row, log row and gapless number, and signs its datagrams"
    schema = ""  # it migrates by itself

    def __init__(self, servers: int = 1) -> None:
        self._servers = servers
        self._management_ports: list[int] = []

    @property
    def management_ports(self) -> tuple[int, ...]:
        """Where each server that was started shows its metrics."""
        return tuple(self._management_ports)

    def commands(self, site: Site) -> list[Command]:
        self._management_ports = [free_port(socket.SOCK_STREAM) for _ in range(self._servers)]
        return [self._command(site, management_port) for management_port in self._management_ports]

    def is_ready(self, site: Site) -> bool:
        return all(_is_ready(port) for port in self._management_ports)

    def _command(self, site: Site, management_port: int) -> Command:
        identities = site.identities
        target = {"port": site.announce_port, "interfaces": [LOOPBACK]}
        settings: dict[str, Any] = {
            "server": {"host": LOOPBACK, "port": site.port, "reuse_port": self._servers > 1},
            "tls": {
                "certificate": str(identities.server_certificate),
                "private_key": str(identities.server_key),
                "client_ca": str(identities.ca),
            },
            "database": {
                "url": f"postgresql://{site.database_user}@/{site.database}"
                f"?host={site.database_socket}"
            },
            "announce": {
                "source_port": site.source_port,
                "signing_key": str(identities.announcer_key),
                "targets": [
                    {"kind": "multicast", "address": GROUP, **target},
                    {"kind": "broadcast", "address": BROADCAST, **target},
                ],
            },
            "access": {"readers": [identities.emails[0]]},  # for the streams alone
            "management": {"host": LOOPBACK, "port": management_port},
            "logging": {"format": "json"},
        }
        config = site.directory / f"config-{management_port}.yaml"
        config.write_text(json.dumps(settings))  # JSON is YAML
        return Command([sys.executable, "-m", "tornado_status", "--config", str(config)])


def _is_ready(management_port: int) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, management_port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False  # not listening yet
    finally:
        connection.close()
