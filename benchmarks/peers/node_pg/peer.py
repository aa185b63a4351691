"""How the Node.js peer runs: one process, packages exactly as package-lock.json says."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.peers.base import Command, Peer, Site, find_program, run_tool

HERE = Path(__file__).parent
LOCK = HERE / "package-lock.json"


class NodePg(Peer):
    name = "node"
    title = "Node.js https + pg"
    writes = "status row"

    def prepare(self, build: Path) -> None:
        self._node = find_program("node", "nodejs")
        npm = find_program("npm", "npm")
        directory = build / "node"
        self._modules = directory / "node_modules"
        mark = directory / "installed.json"
        if mark.exists() and mark.read_text() == LOCK.read_text():
            return
        directory.mkdir(parents=True, exist_ok=True)
        for file in (LOCK, HERE / "package.json"):
            shutil.copy(file, directory)
        options = ["--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund"]
        run_tool([npm, "ci", "--prefix", directory, *options], "installing the Node.js peer")
        shutil.copy(LOCK, mark)

    def commands(self, site: Site) -> list[Command]:
        environment = {"NODE_PATH": str(self._modules), "NODE_ENV": "production"}
        return [Command([str(self._node), str(HERE / "server.js")], environment)]
