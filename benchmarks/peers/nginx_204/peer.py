"""How the ceiling runs."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.base import Command, Peer, Site
from benchmarks.peers.nginx import find_nginx, nginx


class Nginx204(Peer):
    name = "nginx"
    title = "ceiling: nginx `return 204`"
    writes = "nothing, and announces nothing"
    does_the_job = False
    schema = ""

    def prepare(self, build: Path) -> None:
        self._nginx = find_nginx()

    def commands(self, site: Site) -> list[Command]:
        return [nginx(self._nginx, site, location="return 204;")]
