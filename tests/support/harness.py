"""The real server as a process of its own, and clients to talk to it."""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest
import yaml

from tests.support import forked_program
from tests.support.announced import updates_in
from tests.support.forked_program import ForkedProgram

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0  # a bound on every wait, generous because test machines are slow and shared

LOOPBACK = "127.0.0.1"
GROUP = "239.255.66.66"
BROADCAST = "127.255.255.255"

_SERVER_NEEDS = "STATUS_TESTS_REQUIRE"


def require(what: str, available: bool, how: str) -> None:
    """Skip the calling test where `what` is missing; fail instead where CI promised it."""
    if available:
        return
    message = f"needs {what}: {how}"
    if os.environ.get(_SERVER_NEEDS):
        pytest.fail(message)
    pytest.skip(message)


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Poll, for what gives no event to wait on: another process, a kernel table."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {PATIENCE_S:.0f} s in vain: {what}")
        time.sleep(0.02)


# Ports for tests lie below those that the kernel chooses by itself (32768 and up): a free one stays
# free until its user binds it. Each worker of pytest-xdist has its own thousand. It begins
# somewhere in it, for other runs on the same machine.
_FIRST_PORT, WORKERS, _PORTS_EACH = 20_000, 12, 1000
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
_ports = itertools.count(os.getpid() * 7)


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Return a free port that no other test of this run is given."""
    for number in itertools.islice(_ports, _PORTS_EACH):
        port = _FIRST_PORT + _WORKER * _PORTS_EACH + number % _PORTS_EACH
        with socket.socket(socket.AF_INET, kind) as sock, contextlib.suppress(OSError):
            sock.bind(("", port))
            return port
    raise AssertionError("no port is free")


class Lines:
    """The lines that a process prints, collected by a thread, with bounded waits on them."""

    def __init__(self, stream: Any) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: Any) -> None:
        with contextlib.suppress(ValueError), stream:
            for line in stream:
                with self._changed:
                    self.lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, matches: Callable[[str], bool], what: str) -> str:
        """Return the first line that matches, waiting for it."""
        deadline = time.monotonic() + PATIENCE_S
        checked = 0
        with self._changed:
            while True:
                for line in self.lines[checked:]:
                    if matches(line):
                        return line
                checked = len(self.lines)
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    raise AssertionError(f"no line with {what} in:\n" + "\n".join(self.lines))
                self._changed.wait(left)

    def all(self) -> list[str]:
        """Return all lines, once the stream has ended."""
        self._thread.join(PATIENCE_S)
        return self.lines

    def wait_end(self) -> str:
        return "\n".join(self.all())


@dataclass
class Server:
    """A running `python -m tornado_status`."""

    process: subprocess.Popen[str] | ForkedProgram
    log: Lines
    out: Lines
    certs: Path
    port: int
    management_port: int
    announce_port: int
    database_url: str
    settings: dict[str, Any] = field(repr=False)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log lines of one event so far."""
        found = []
        for line in list(self.log.lines):
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("event") == name:
                    found.append(entry)
        return found

    def wait_event(self, name: str) -> dict[str, Any]:
        line = self.log.wait_for(lambda text: f'"event": "{name}"' in text, name)
        entry: dict[str, Any] = json.loads(line)
        return entry

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(PATIENCE_S)

    def request(
        self, method: str, path: str, *, cert: str | None = "client", body: bytes | None = None
    ) -> Answer:
        """Send one request over a fresh connection and return the answer."""
        connection = self.connect(cert)
        try:
            return exchange(connection, method, path, body=body)
        finally:
            connection.close()

    def connect(self, cert: str | None = "client") -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            "localhost", self.port, context=self.client_context(cert), timeout=PATIENCE_S
        )

    def connect_raw(self, cert: str | None = "client") -> ssl.SSLSocket:
        """Return a TLS connection to send any bytes over."""
        raw = socket.create_connection((LOOPBACK, self.port), timeout=PATIENCE_S)
        return self.client_context(cert).wrap_socket(raw, server_hostname="localhost")

    def client_context(self, cert: str | None = "client") -> ssl.SSLContext:
        return client_context(self.certs, cert)

    def management(self, path: str, timeout_s: float = PATIENCE_S) -> Answer:
        connection = http.client.HTTPConnection(LOOPBACK, self.management_port, timeout=timeout_s)
        try:
            return exchange(connection, "GET", path)
        finally:
            connection.close()

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return rows(self.database_url, sql, *parameters)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def detail(self) -> str | None:
        """The sentence of a problem+json answer."""
        assert self.headers["Content-Type"] == "application/problem+json"
        detail: str | None = self.json.get("detail")
        assert self.json["status"] == self.status
        return detail


def exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None
) -> Answer:
    connection.request(method, path, body=body)
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read())


@functools.cache
def client_context(certs: Path, cert: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certs / "ca.crt"))
    if cert is not None:
        context.load_cert_chain(certs / f"{cert}.crt", certs / f"{cert}.key")
    return context


def rows(url: str, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Run one statement on a connection of its own, committed; return what it returns."""
    connection = psycopg2.connect(url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        if isinstance(value, Mapping) and isinstance(inner, dict):
            merged[key] = merge(inner, value)
        else:
            merged[key] = value
    return merged


def targets(port: int, *encodings: str) -> list[dict[str, Any]]:
    """Return a multicast and a broadcast target on loopback for each encoding."""
    return [
        {"kind": kind, "address": address, "port": port, "interfaces": [LOOPBACK], "encoding": e}
        for e in encodings or ("json",)
        for kind, address in (("multicast", GROUP), ("broadcast", BROADCAST))
    ]


StartServer = Callable[..., "Server"]  # the fixture `start_server`
SERVER = ("tornado_status",)
FORKS: list[socket.socket] = []  # the socket of `forked_program.forking`, in tests/server
READ_EARLY = ("PYTHON", "OPENSSL", "LD_")  # variables of which a forked program takes no notice


@contextlib.contextmanager
def running_server(
    directory: Path,
    certs: Path,
    database_url: str,
    *,
    wait: bool = True,
    prefix: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
    module: tuple[str, ...] = SERVER,
    constants: Mapping[str, object] | None = None,
    **overrides: Any,
) -> Iterator[Server]:
    """Run the server on free ports, its log as JSON; stop it at the end, whatever happened."""
    announce_port = free_port(socket.SOCK_DGRAM)
    base: dict[str, Any] = {
        # Most tests check in as two identities: the shares of one would slow them down.
        "server": {
            "host": LOOPBACK,
            "port": 0,
            "check_ins_per_second": 100_000,
            "max_connections_per_identity": 0,
        },
        "tls": {
            "certificate": str(certs / "server.crt"),
            "private_key": str(certs / "server.key"),
            "client_ca": str(certs / "ca.crt"),
        },
        "database": {"url": database_url, "data_dir": str(directory / "postgresql")},
        "announce": {
            "source_port": free_port(socket.SOCK_DGRAM),
            "heartbeat_s": 0,
            "signing_key": str(certs / "announcer.key"),
            "targets": targets(announce_port),
        },
        "access": {"readers": ["operator@example.com"]},
        "management": {"host": LOOPBACK, "port": free_port()},
        "logging": {"format": "json", "level": "info"},
    }
    settings = merge(base, overrides)
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    process: subprocess.Popen[str] | ForkedProgram
    given = {**plain_environment(), **(environment or {})}
    plain = (prefix, python, module) == ((), sys.executable, SERVER)
    if FORKS and plain and not any(name.startswith(READ_EARLY) for name in environment or ()):
        arguments = ["--config", str(config)]
        process = ForkedProgram(
            FORKS[-1], forked_program.SERVER, arguments, given, constants=constants
        )
        process.stdin.close()
    else:
        if constants:
            module = ("tests.support.with_constants", json.dumps(constants))
        process = subprocess.Popen(
            [*prefix, python, "-W", "error", "-m", *module, "--config", str(config)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=given,
        )
    server = Server(
        process=process,
        log=Lines(process.stderr),
        out=Lines(process.stdout),
        certs=certs,
        port=settings["server"]["port"],
        management_port=settings["management"]["port"],
        announce_port=announce_port,
        database_url=database_url,
        settings=settings,
    )
    try:
        if wait:
            url = server.wait_event("serving")["url"]
            server.port = int(url.rpartition(":")[2])
        yield server
    finally:
        if process.poll() is None:
            server.stop()
        server.log.wait_end()
        server.out.wait_end()
        tracebacks = [line for line in server.log.lines if "Traceback" in line]
        assert not tracebacks, "\n".join(server.log.lines)


def plain_environment() -> dict[str, str]:
    """The environment without what would change settings, or the size of a terminal (xdist's)."""
    unwanted = ("TORNADO_STATUS_", "DATABASE_URL", "PORT", "PG", "COLUMNS", "LINES")
    return {name: v for name, v in os.environ.items() if not name.startswith(unwanted)}


def run_command(
    *arguments: str,
    given: str = "",
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `tornado-status` to its end."""
    variables = {**plain_environment(), **(environment or {})}
    if not FORKS:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", *SERVER, *arguments],
            cwd=cwd,
            env={**variables, "PYTHONPATH": str(ROOT)},
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * PATIENCE_S,
        )
    process = ForkedProgram(FORKS[-1], forked_program.SERVER, arguments, variables, cwd=cwd)
    streams = [Lines(process.stdout), Lines(process.stderr)]
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(given)
    status = process.wait(2 * PATIENCE_S)
    out, errors = ("".join(f"{line}\n" for line in stream.all()) for stream in streams)
    return subprocess.CompletedProcess(arguments, status, out, errors)


def drop_database(postgres: str, name: str) -> None:
    """Drop a database of the PostgreSQL at a URL, even if a server is connected to it."""
    rows(postgres, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


class Postgres:
    """A PostgreSQL of a test's own, to be stopped, killed and started again."""

    def __init__(
        self,
        directory: Path,
        binaries: Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.directory = directory
        self.url = ""
        self._prefix = prefix
        self.settings = dict(settings or {})  # read at each start
        self._binaries = binaries
        self._environment = environment or {}
        self._process: subprocess.Popen[str] | ForkedProgram | None = None

    def start(self) -> None:
        arguments = [
            str(self.directory),
            *([f"--binaries={self._binaries}"] if self._binaries is not None else []),
            *(f"--set={name}={value}" for name, value in self.settings.items()),
        ]
        if FORKS and not self._prefix and not self._environment:
            self._process = ForkedProgram(FORKS[-1], forked_program.POSTGRES, arguments, os.environ)
            Lines(self._process.stderr)  # else it would wait for a reader one day
        else:
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", forked_program.POSTGRES, *arguments],
                cwd=ROOT,
                env={**os.environ, **self._environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url.startswith("postgresql://"), self.url

    @property
    def pid(self) -> int:
        """The postmaster's."""
        return int((self.directory / "postmaster.pid").read_text().split("\n", 1)[0])

    def kill(self, signum: signal.Signals = signal.SIGKILL) -> None:
        """End PostgreSQL by a signal, for good: nothing starts it again."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGSTOP)
        killed = self.pid
        os.kill(killed, signum)
        self._process.kill()
        self._process.wait(PATIENCE_S)
        # Until its new parent has asked for its status, its lock files look like those of a server.
        wait_until(lambda: not Path(f"/proc/{killed}").exists(), "the end of PostgreSQL")
        self._process.stdin.close()
        self._process.stdout.close()
        self._process = None

    def stop(self) -> None:
        """An orderly stop. Nothing where it does not run."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()
        self._process = None

    def discard(self) -> None:
        """Stop it, if it runs, and delete its data and the directory around that."""
        self.stop()
        shutil.rmtree(self.directory.parent)


class Heard:
    """Sockets that hear a group or a broadcast address on loopback, joined at once."""

    def __init__(self, port: int, *, group: str | None = GROUP, interface: str = LOOPBACK) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        self.socket.settimeout(PATIENCE_S)
        if group is not None:
            self.socket.bind((group, port))
            membership = socket.inet_aton(group) + socket.inet_aton(interface)
            self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        else:
            self.socket.bind((BROADCAST, port))

    def __enter__(self) -> Heard:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def one(self) -> tuple[bytes, tuple[str, int]]:
        payload, source = self.socket.recvfrom(65536)
        return payload, source

    def updates(self, count: int) -> list[dict[str, Any]]:
        """Return the next `count` updates of JSON datagrams."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            found += updates_in(self.one()[0])
        assert len(found) == count
        return found
