"""All contenders, in the order of the table. Ratios refer to the first that is measured.

Each program that has to be built or installed is made on first use, below `BUILD`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.contender import BROADCAST, GROUP, LOOPBACK, Contender, Site, accepts, management
from benchmarks.postgresql import PostgreSql
from benchmarks.programs import (
    BENCHMARKS,
    BUILD,
    BenchmarkError,
    Unavailable,
    find_program,
    run_tool,
)
from tornado_status.store.group_commit import PREPARE_RECORD

PEERS = Path(__file__).parent
WHOLE_LOG = "status row, log row and gapless number, and signs its datagrams"
QUICK = ("tornado", "go", "tornado_status", "nginx")

Commands = list[list[object]]

# -------------------------------------------------------------------------------- Python and nginx


def _installed(mark: Path, lock: Path) -> bool:
    """Return whether `mark` is the copy of `lock` that is made after its packages are installed."""
    return mark.exists() and mark.read_text() == lock.read_text()


def _environment() -> Path:
    """Return the Python of a virtual environment with exactly what requirements.txt says."""
    lock = BENCHMARKS / "requirements.txt"
    directory = BUILD / f"venv-{sys.version_info.major}.{sys.version_info.minor}"
    python, mark = directory / "bin" / "python", directory / "installed.txt"
    if not _installed(mark, lock):
        run_tool([sys.executable, "-m", "venv", "--clear", directory], "making an environment")
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        run_tool([*pip, "--require-hashes", "-r", lock], "installing the Python peers")
        shutil.copy(lock, mark)
    return python


def _tornado(site: Site) -> Commands:
    # In the project's own environment, with the same Tornado and aiopg.
    return [[sys.executable, "-m", "benchmarks.peers.plain_tornado"]]


def _aiohttp(site: Site) -> Commands:
    return [[_environment(), "-m", "benchmarks.peers.aiohttp_asyncpg"]]


THREADS = 64  # of gunicorn in all, each with a database connection: as many as there are clients
DESCRIPTORS = 16384  # of an nginx worker: idle connections, and those to the application

_NGINX = """\
daemon off;
{user}
worker_processes auto;
worker_rlimit_nofile {descriptors};
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
    upstream application {{
        server unix:{directory}/gunicorn.sock;
        keepalive 64;
    }}
    server {{
        listen 127.0.0.1:{port} ssl backlog=1024;
        ssl_certificate "{certificate}";
        ssl_certificate_key "{key}";
        ssl_protocols TLSv1.3;
        ssl_client_certificate "{ca}";
        ssl_verify_client on;
        ssl_session_cache off;      # the tickets of TLS 1.3 need none
        ssl_session_tickets on;
        location / {{ {location} }}
    }}
}}
"""
_TO_GUNICORN = """
            proxy_pass http://application;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Client-Subject $ssl_client_s_dn;
            proxy_set_header X-Client-IP $remote_addr;
            proxy_set_header X-Client-Port $remote_port;
"""


def _find_nginx() -> Path:
    return find_program("nginx", "nginx", "/usr/sbin", "/usr/local/sbin")


def _nginx(site: Site, location: str = "return 204;") -> Commands:
    """An nginx that verifies clients and does `location` for them."""
    configuration = site.directory / "nginx.conf"
    configuration.write_text(
        _NGINX.format(
            # As root the workers would become another user, who cannot reach the socket.
            user="user root;" if os.geteuid() == 0 else "",
            descriptors=DESCRIPTORS,
            directory=site.directory,
            port=site.port,
            certificate=site.identities.certificate("server"),
            key=site.identities.key("server"),
            ca=site.identities.certificate("ca"),
            location=location,
        )
    )
    return [[_find_nginx(), "-e", "stderr", "-c", configuration]]


def _gunicorn_socket(site: Site) -> str:
    return str(site.directory / "gunicorn.sock")


def _django(site: Site) -> Commands:
    # A worker for each core. Twice as many and one, as gunicorn advises, was slower here.
    workers = os.cpu_count() or 1
    options: dict[str, object] = {
        "bind": f"unix:{_gunicorn_socket(site)}",
        "worker-class": "gthread",
        "workers": workers,
        "threads": max(THREADS // workers, 1),
        "keep-alive": 180,
        "backlog": 1024,
        "log-level": "warning",
        "worker-tmp-dir": "/dev/shm",  # noqa: S108 - where gunicorn wants memory
    }
    gunicorn: list[object] = [_environment(), "-m", "gunicorn"]
    gunicorn += [f"--{name}={value}" for name, value in options.items()]
    return [[*gunicorn, "benchmarks.peers.django_site:application"], *_nginx(site, _TO_GUNICORN)]


def _django_is_ready(site: Site) -> bool:
    return accepts(_gunicorn_socket(site)) and accepts((LOOPBACK, site.port))


# --------------------------------------------------------------------------------- Node.js and Go


def _node_modules() -> Path:
    """Install exactly what package-lock.json says."""
    lock = PEERS / "node_pg" / "package-lock.json"
    npm = find_program("npm", "npm")
    directory = BUILD / "node"
    mark = directory / "installed.json"
    if not _installed(mark, lock):
        directory.mkdir(parents=True, exist_ok=True)
        for file in (lock, lock.with_name("package.json")):
            shutil.copy(file, directory)
        options = ["--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund"]
        run_tool([npm, "ci", "--prefix", directory, *options], "installing the Node.js peer")
        shutil.copy(lock, mark)
    return directory / "node_modules"


def _node(site: Site) -> Commands:
    settings = [f"NODE_PATH={_node_modules()}", "NODE_ENV=production"]
    return [["env", *settings, find_program("node", "nodejs"), PEERS / "node_pg" / "server.js"]]


DEBIAN_SOURCES = Path("/usr/share/gocode")
PGX = DEBIAN_SOURCES / "src" / "github.com" / "jackc" / "pgx" / "v4"
GO_PROGRAM = BUILD / "go" / "go_net_http"


def _build_go() -> None:
    """Build with what Debian packages: no module is fetched from anywhere."""
    go = find_program("go", "golang-go", "/usr/lib/go/bin", "/usr/local/go/bin")
    if not PGX.is_dir():
        raise Unavailable("pgx is not installed (Debian: golang-github-jackc-pgx-v4-dev)")
    sources = sorted((PEERS / "go_net_http").glob("*.go"))
    run_tool(
        [go, "build", "-trimpath", "-o", GO_PROGRAM, *sources],
        "building the Go peers",
        GO111MODULE="off",
        GOPATH=str(DEBIAN_SOURCES),
        GOCACHE=str(GO_PROGRAM.parent / "cache"),
        GOFLAGS="",
        CGO_ENABLED="0",
    )


def _go_pool(site: Site) -> Commands:
    return [[GO_PROGRAM, "pool"]]


def _go_group_commit(site: Site) -> Commands:
    """With this server's own statement, on its own tables."""
    return [["env", f"PEER_RECORD={PREPARE_RECORD}", GO_PROGRAM, "group-commit"]]


# --------------------------------------------------------------------------------- tornado_status


def _tornado_status(site: Site) -> Commands:
    """As it is shipped, with everything on, and a database like the others."""
    target = {"port": site.announce_port, "interfaces": [LOOPBACK]}
    commands: Commands = []
    for management_port in site.management_ports:
        settings: dict[str, Any] = {
            "server": {
                "host": LOOPBACK,
                "port": site.port,
                "reuse_port": len(site.management_ports) > 1,
            },
            "tls": {
                "certificate": str(site.identities.certificate("server")),
                "private_key": str(site.identities.key("server")),
                "client_ca": str(site.identities.certificate("ca")),
            },
            "database": {"url": site.postgres.url(site.database)},
            "announce": {
                "source_port": site.source_port,
                "signing_key": str(site.identities.key("announcer")),
                "targets": [
                    {"kind": "multicast", "address": GROUP, **target},
                    {"kind": "broadcast", "address": BROADCAST, **target},
                ],
            },
            "access": {"readers": [site.identities.emails[0]]},  # for the streams alone
            "management": {"host": LOOPBACK, "port": management_port},
            "logging": {"format": "json"},
        }
        config = site.directory / f"config-{management_port}.yaml"
        config.write_text(json.dumps(settings))  # JSON is YAML
        commands.append([sys.executable, "-m", "tornado_status", "--config", config])
    return commands


def _tornado_status_is_ready(site: Site) -> bool:
    try:
        for management_port in site.management_ports:
            management(management_port, "readyz")
    except BenchmarkError:
        return False  # not listening yet, or not ready
    return True


def _no_tables(postgres: PostgreSql, database: str) -> None:
    """It makes them by itself, or has none."""


THIS_SERVER = Contender(
    "tornado_status",
    "tornado_status",
    _tornado_status,
    writes=WHOLE_LOG,
    make_tables=_no_tables,
    is_ready=_tornado_status_is_ready,
)

CONTENDERS = (
    Contender(
        "django",
        "nginx + gunicorn + Django",
        _django,
        (_find_nginx, _environment),
        is_ready=_django_is_ready,
    ),
    Contender("tornado", "Tornado RequestHandler + aiopg pool", _tornado),
    Contender("aiohttp", "aiohttp + asyncpg (uvloop)", _aiohttp, (_environment,)),
    Contender(
        "node", "Node.js https + pg", _node, (lambda: find_program("node", "nodejs"), _node_modules)
    ),
    Contender("go", "Go net/http + pgx", _go_pool, (_build_go,)),
    Contender(
        "go-group-commit",
        "Go net/http + group commit",
        _go_group_commit,
        (_build_go,),
        writes=WHOLE_LOG,
        make_tables=PostgreSql.migrate,
    ),
    THIS_SERVER,
    Contender(
        "nginx",
        "ceiling: nginx `return 204`",
        _nginx,
        (_find_nginx,),
        writes="nothing, and announces nothing",
        does_the_job=False,
        make_tables=_no_tables,
    ),
)
