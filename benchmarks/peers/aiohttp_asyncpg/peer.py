"""How aiohttp runs: one process, in the benchmark's own environment."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.base import Command, Peer, Site
from benchmarks.peers.environment import make_environment


class Aiohttp(Peer):
    name = "aiohttp"
    title = "aiohttp + asyncpg (uvloop)"
    writes = "status row"

    def prepare(self, build: Path) -> None:
        self._python = make_environment(build)

    def commands(self, site: Site) -> list[Command]:
        return [Command([str(self._python), "-m", "benchmarks.peers.aiohttp_asyncpg.server"])]
