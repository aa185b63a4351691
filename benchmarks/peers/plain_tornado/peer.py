"""How plain Tornado runs: in the project's own environment, with the same Tornado and aiopg."""

from __future__ import annotations

import sys

from benchmarks.peers.base import Command, Peer, Site


class PlainTornado(Peer):
    name = "tornado"
    title = "Tornado RequestHandler + aiopg pool"
    writes = "status row"

    def commands(self, site: Site) -> list[Command]:
        return [Command([sys.executable, "-m", "benchmarks.peers.plain_tornado.server"])]
