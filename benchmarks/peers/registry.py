"""All peers, in the order of the table. The first that is measured is what ratios refer to."""

from __future__ import annotations

from benchmarks.peers.aiohttp_asyncpg.peer import Aiohttp
from benchmarks.peers.base import Peer
from benchmarks.peers.django_stack.peer import DjangoStack
from benchmarks.peers.go_net_http.peer import GoGroupCommit, GoPool
from benchmarks.peers.nginx_204.peer import Nginx204
from benchmarks.peers.node_pg.peer import NodePg
from benchmarks.peers.plain_tornado.peer import PlainTornado
from benchmarks.peers.this_server.peer import ThisServer

QUICK = ("tornado", "go", "tornado_status", "nginx")


def all_peers() -> list[Peer]:
    return [
        DjangoStack(),
        PlainTornado(),
        Aiohttp(),
        NodePg(),
        GoPool(),
        GoGroupCommit(),
        ThisServer(),
        Nginx204(),
    ]
