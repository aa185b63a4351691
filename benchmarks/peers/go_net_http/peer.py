"""How the Go peers run: one process, as many threads as there are cores.

Built with what Debian packages: no module is fetched from anywhere.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.errors import Unavailable
from benchmarks.peers.base import Command, Peer, Site, find_program, run_tool

HERE = Path(__file__).parent
DEBIAN_SOURCES = Path("/usr/share/gocode")
PGX = DEBIAN_SOURCES / "src" / "github.com" / "jackc" / "pgx" / "v4"


class GoPool(Peer):
    name = "go"
    title = "Go net/http + pgx"
    writes = "status row"

    def prepare(self, build: Path) -> None:
        self._program = _build(build)

    def commands(self, site: Site) -> list[Command]:
        return [Command([str(self._program), "pool"])]


class GoGroupCommit(Peer):
    name = "go-group-commit"
    title = "Go net/http + group commit"
    writes = "status row, log row and gapless number, and signs its datagrams"
    schema = (HERE / "schema.sql").read_text()

    def prepare(self, build: Path) -> None:
        self._program = _build(build)

    def commands(self, site: Site) -> list[Command]:
        environment = {"PEER_RECORD": (HERE / "record.sql").read_text()}
        return [Command([str(self._program), "group-commit"], environment)]


def _build(build: Path) -> Path:
    go = find_program("go", "golang-go", "/usr/lib/go/bin", "/usr/local/go/bin")
    if not PGX.is_dir():
        raise Unavailable("pgx is not installed (Debian: golang-github-jackc-pgx-v4-dev)")
    directory = build / "go"
    program = directory / "go_net_http"
    run_tool(
        [go, "build", "-trimpath", "-o", program, *sorted(HERE.glob("*.go"))],
        "building the Go peers",
        GO111MODULE="off",
        GOPATH=str(DEBIAN_SOURCES),
        GOCACHE=str(directory / "cache"),
        GOFLAGS="",
        CGO_ENABLED="0",
    )
    return program
