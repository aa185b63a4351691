"""nginx: where it is, and the configuration that both peers with it have in common."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.peers.base import Command, Site, find_program

_CONFIGURATION = """\
daemon off;
{user}
worker_processes auto;
worker_rlimit_nofile {files};
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_timeout 180s;
    keepalive_requests 1000000000;
    {http}
    server {{
        listen 127.0.0.1:{port} ssl backlog=1024;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.3;
        ssl_client_certificate {ca};
        ssl_verify_client on;
        ssl_session_cache off;      # the tickets of TLS 1.3 need none
        ssl_session_tickets on;
        location / {{ {location} }}
    }}
}}
"""
FILES = 16384  # descriptors of a worker: idle connections, and those to the application


def find_nginx() -> Path:
    """Raises `Unavailable`."""
    return find_program("nginx", "nginx", "/usr/sbin", "/usr/local/sbin")


def nginx(program: Path, site: Site, *, location: str, http: str = "") -> Command:
    """Return the command for an nginx that verifies clients and does `location` for them."""
    identities = site.identities
    configuration = site.directory / "nginx.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            # As root the workers would become another user, who cannot reach the socket.
            user="user root;" if os.geteuid() == 0 else "",
            files=FILES,
            directory=site.directory,
            port=site.port,
            certificate=f'"{identities.server_certificate}"',
            key=f'"{identities.server_key}"',
            ca=f'"{identities.ca}"',
            location=location,
            http=http,
        )
    )
    return Command([str(program), "-e", "stderr", "-c", str(configuration)])
