"""All contenders, in the order of the table. Ratios refer to the first that is measured.

Each program that has to be built or installed is made on first use, below `BUILD`.
"""

from __future__ import annotations

import functools
import os
import shutil
import string
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contender import LOOPBACK, Contender, Site, accepts, management
from benchmarks.identities import READERS
from benchmarks.postgresql import PostgreSql
from benchmarks.programs import (
    BENCHMARKS,
    BUILD,
    BenchmarkError,
    Unavailable,
    find_program,
    run_tool,
)
from tornado_status.store import batch_statements

PEERS = Path(__file__).parent
SERVER_TEMPLATE = PEERS / "tornado_status.yaml"
WHOLE_LOG = "status row, log row and gapless number, and signs its datagrams"
QUICK = ("tornado", "go", "tornado_status", "nginx")

Commands = list[list[object]]


def _installed(mark: Path, lock: Path) -> bool:
    """Return whether `mark` is the copy of `lock` that is made after its packages are installed."""
    return mark.exists() and mark.read_text() == lock.read_text()


def _configuration(site: Site, template: Path, name: str, **settings: object) -> Path:
    """Fill in a template, into the site's directory."""
    path = site.directory / name
    text = string.Template(template.read_text())
    path.write_text(text.substitute(site.settings(), **settings))
    return path


# -------------------------------------------------------------------------------- Python and nginx


@functools.cache
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


def _nginx(site: Site, location: str = "return 204") -> Commands:
    """An nginx that verifies clients and does `location` for them."""
    nginx = find_program("nginx", "nginx", "/usr/sbin", "/usr/local/sbin")
    # As root the workers would become another user, who cannot reach the socket.
    user = "user root;" if os.geteuid() == 0 else ""
    configuration = _configuration(
        site, PEERS / "nginx.conf", "nginx.conf", USER_DIRECTIVE=user, LOCATION=location
    )
    return [[nginx, "-e", "stderr", "-c", configuration]]


THREADS = 64  # of gunicorn in all, each with a database connection: as many as there are clients


def _django(site: Site, style: str) -> Commands:
    # A worker for each core. Twice as many and one, as gunicorn advises, was slower here.
    workers = os.cpu_count() or 1
    options: dict[str, object] = {
        "bind": f"unix:{site.directory}/gunicorn.sock",
        "worker-class": "gthread",
        "workers": workers,
        "threads": max(THREADS // workers, 1),
        "keep-alive": 180,
        "backlog": 1024,
        "log-level": "warning",
        "worker-tmp-dir": "/dev/shm",  # noqa: S108 - where gunicorn wants memory
    }
    gunicorn: list[object] = ["env", f"PEER_DJANGO={style}", _environment(), "-m", "gunicorn"]
    gunicorn += [f"--{name}={value}" for name, value in options.items()]
    proxy = _nginx(site, "proxy_pass http://application")
    return [[*gunicorn, "benchmarks.peers.django_site:application"], *proxy]


def _django_tuned(site: Site) -> Commands:
    return _django(site, "tuned")


def _django_orm(site: Site) -> Commands:
    return _django(site, "orm")


def _django_is_ready(site: Site) -> bool:
    return accepts(f"{site.directory}/gunicorn.sock") and accepts((LOOPBACK, site.port))


# --------------------------------------------------------------------------------- Node.js and Go


def _node(site: Site) -> Commands:
    """With exactly what package-lock.json says."""
    node, npm = find_program("node", "nodejs"), find_program("npm", "npm")
    lock, directory = PEERS / "node_pg" / "package-lock.json", BUILD / "node"
    mark = directory / "installed.json"
    if not _installed(mark, lock):
        shutil.copytree(lock.parent, directory, dirs_exist_ok=True)
        options = ["--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund"]
        run_tool([npm, "ci", "--prefix", directory, *options], "installing the Node.js peer")
        shutil.copy(lock, mark)
    settings = [f"NODE_PATH={directory}/node_modules", "NODE_ENV=production"]
    return [["env", *settings, node, PEERS / "node_pg" / "server.js"]]


DEBIAN_SOURCES = Path("/usr/share/gocode")


@functools.cache
def _go_program() -> Path:
    """Build with what Debian packages: no module is fetched from anywhere."""
    go = find_program("go", "golang-go", "/usr/lib/go/bin", "/usr/local/go/bin")
    if not (DEBIAN_SOURCES / "src/github.com/jackc/pgx/v4").is_dir():
        raise Unavailable("pgx is not installed (Debian: golang-github-jackc-pgx-v4-dev)")
    program = BUILD / "go" / "go_net_http"
    run_tool(
        [go, "build", "-trimpath", "-o", program, *sorted((PEERS / "go_net_http").glob("*.go"))],
        "building the Go peers",
        GO111MODULE="off",
        GOPATH=str(DEBIAN_SOURCES),
        GOCACHE=str(program.parent / "cache"),
        GOFLAGS="",
        CGO_ENABLED="0",
    )
    return program


def _go_pool(site: Site) -> Commands:
    return [[_go_program(), "pool"]]


def _go_group_commit(site: Site) -> Commands:
    """With this server's own statements, on its own tables."""
    prepare = "; ".join(batch_statements.PREPARE)
    return [["env", f"PEER_PREPARE={prepare}", _go_program(), "group-commit"]]


# --------------------------------------------------------------------------------- tornado_status


def server_commands(site: Site, python: Sequence[object], template: Path) -> Commands:
    """Return what starts tornado_status with `python`, a server for each management port."""
    configurations = [
        _configuration(
            site,
            template,
            f"config-{management_port}.yaml",
            REUSE_PORT=str(len(site.management_ports) > 1).lower(),
            DATABASE_URL=site.postgres.url(site.database),
            SOURCE_PORT=site.source_port,
            READERS=", ".join(site.identities.emails[:READERS]),
            MANAGEMENT_PORT=management_port,
        )
        for management_port in site.management_ports
    ]
    return [[*python, "-m", "tornado_status", "--config", path] for path in configurations]


def _tornado_status(site: Site) -> Commands:
    return server_commands(site, [sys.executable], SERVER_TEMPLATE)


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
        "django", "nginx + gunicorn + Django, tuned", _django_tuned, is_ready=_django_is_ready
    ),
    Contender(
        "django-orm",
        "nginx + gunicorn + Django, ORM",
        _django_orm,
        is_ready=_django_is_ready,
    ),
    Contender("tornado", "Tornado RequestHandler + aiopg pool", _tornado),
    Contender("aiohttp", "aiohttp + asyncpg (uvloop)", _aiohttp),
    Contender("node", "Node.js https + pg", _node),
    Contender("go", "Go net/http + pgx", _go_pool),
    Contender(
        "go-group-commit",
        "Go net/http + group commit",
        _go_group_commit,
        writes=WHOLE_LOG,
        make_tables=PostgreSql.migrate,
    ),
    THIS_SERVER,
    Contender(
        "nginx",
        "ceiling: nginx `return 204`",
        _nginx,
        writes="nothing, and announces nothing",
        does_the_job=False,
        make_tables=_no_tables,
    ),
)
