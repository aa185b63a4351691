"""How the Django stack runs: nginx ends TLS and hands on to gunicorn by a Unix socket."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.peers.base import LOOPBACK, Command, Peer, Site, accepts
from benchmarks.peers.environment import make_environment
from benchmarks.peers.nginx import find_nginx, nginx

THREADS = 64  # in all, each with a database connection of its own: as many as there are clients

_HTTP = """
    upstream application {{
        server unix:{socket};
        keepalive 64;
    }}
"""
_LOCATION = """
            proxy_pass http://application;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Client-Subject $ssl_client_s_dn;
            proxy_set_header X-Client-IP $remote_addr;
            proxy_set_header X-Client-Port $remote_port;
"""


class DjangoStack(Peer):
    name = "django"
    title = "nginx + gunicorn + Django"
    writes = "status row"

    def prepare(self, build: Path) -> None:
        self._nginx = find_nginx()
        self._python = make_environment(build)

    def commands(self, site: Site) -> list[Command]:
        socket = _socket(site)
        gunicorn = [str(self._python), "-m", "gunicorn", "--bind", f"unix:{socket}"]
        # A worker for each core. Twice as many and one, as gunicorn advises, was slower here.
        workers = os.cpu_count() or 1
        gunicorn += ["--worker-class", "gthread", "--workers", str(workers)]
        gunicorn += ["--threads", str(max(THREADS // workers, 1))]
        gunicorn += ["--keep-alive", "180", "--backlog", "1024", "--log-level", "warning"]
        gunicorn += ["--worker-tmp-dir", "/dev/shm"]  # noqa: S108 - where gunicorn wants memory
        gunicorn += ["benchmarks.peers.django_stack.site:application"]
        return [
            Command(gunicorn),
            nginx(self._nginx, site, location=_LOCATION, http=_HTTP.format(socket=socket)),
        ]

    def is_ready(self, site: Site) -> bool:
        return accepts(_socket(site)) and accepts((LOOPBACK, site.port))


def _socket(site: Site) -> str:
    return str(site.directory / "gunicorn.sock")
