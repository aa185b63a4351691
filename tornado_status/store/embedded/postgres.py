"""Starts, supervises and stops the embedded PostgreSQL: a child that ends with this process.

It runs with fsync on and is reachable only through a Unix socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import psycopg2
import psycopg2.extensions
import structlog

from tornado_status.errors import ConfigError
from tornado_status.runtime.backoff import Backoff
from tornado_status.runtime.program_names import program
from tornado_status.store.embedded import data_directory
from tornado_status.store.embedded.binaries import find_binaries
from tornado_status.store.embedded.child import (
    children,
    ends_within,
    error_in,
    parent_of,
    spawn,
)
from tornado_status.store.embedded.run_as import RunAs, choose_user
from tornado_status.store.failover import Parameters

DATABASE = "tornado_status"

MAX_SOCKET_PATH = 107  # sun_path of unix(7), less its NUL
START_TIMEOUT_S = 60.0  # crash recovery included; beyond it something is wrong
PREVIOUS_TIMEOUT_S = 20.0  # how long the previous server of the same data may take to stop
STOP_TIMEOUT_S = 20.0  # a fast shutdown writes a checkpoint
KILL_TIMEOUT_S = 0.5  # a killed process ends at once, unless the kernel holds it; the loop waits
FAST_SHARE, IMMEDIATE_SHARE = 0.7, 0.15  # of the time to stop
RESTART_MIN_S, RESTART_MAX_S = 0.1, 5.0  # between attempts that fail before PostgreSQL accepts
CHECK_SOCKET_S = 1.0  # PostgreSQL does not notice that its socket file was deleted


class EmbeddedPostgres:
    """One `postgres` over one data directory, with `settings` beside or instead of ours."""

    def __init__(self, data_dir: Path, settings: Mapping[str, str] | None = None) -> None:
        self._settings = settings or {}
        self._data_dir = data_dir.absolute()
        self._log = structlog.get_logger()
        self._bin = Path()
        self._run_as = RunAs()
        self._socket_dir = self._data_dir
        self._own_socket_dir: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def parameters(self) -> Parameters:
        """libpq's connection parameters, once started."""
        return {"host": str(self._socket_dir), "user": data_directory.USER, "dbname": DATABASE}

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Make the data directory if there is none, start PostgreSQL, wait until it accepts.

        Call from the main thread: the child's life is tied to the thread that forks it. Raises
        `ConfigError` if it cannot be done.
        """
        self._bin, major = find_binaries()
        try:
            needed = [self._data_dir, data_directory.fresh(self._data_dir)]
            self._run_as = choose_user(needed, self._bin)
            data_directory.check(self._data_dir, major)
            if not (self._data_dir / "PG_VERSION").exists():
                await data_directory.create(self._data_dir, self._bin, self._run_as)
            self._choose_socket_dir()
            await self._wait_for_previous()
            await self._launch()
        except OSError as error:
            raise ConfigError(
                f"database.data_dir: cannot use {error.filename or self._data_dir}: "
                f"{error.strerror}"
            ) from error
        await asyncio.to_thread(self._create_database)
        self._supervisor = asyncio.create_task(self._supervise(), name="embedded PostgreSQL")

    def running(self) -> Parameters | None:
        """Return the connection parameters of a server that uses this data; None without one."""
        if self._previous_pid() is None:
            return None
        with contextlib.suppress(OSError):  # it is just starting, or ending
            lines = (self._data_dir / "postmaster.pid").read_text().splitlines()
            # The socket is named after its directory, line 5, and the port, line 4.
            if len(lines) >= 5 and lines[4]:
                port, directory = lines[3:5]
                return {
                    "host": directory,
                    "port": port,
                    "user": data_directory.USER,
                    "dbname": DATABASE,
                }
        return None

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop PostgreSQL in `timeout_s`, and lose nothing that is committed.

        First by a fast shutdown, then by an immediate one without a checkpoint, at last by SIGKILL,
        which a paused process needs.
        """
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        if self._process is not None:
            await self._end(self._process, timeout_s)
        self._process = None
        if self._own_socket_dir is not None:
            shutil.rmtree(self._own_socket_dir, ignore_errors=True)
            self._own_socket_dir = None

    async def _end(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        if process.poll() is not None:
            return
        process.send_signal(signal.SIGINT)
        if not await ends_within(process, timeout_s * FAST_SHARE):
            self._log.warning("embedded PostgreSQL stops slowly, now without a checkpoint")
            process.send_signal(signal.SIGQUIT)
            if not await ends_within(process, timeout_s * IMMEDIATE_SHARE):
                self._log.warning("embedded PostgreSQL does not stop, killed")
                self.kill()

    def kill(self) -> None:
        """End PostgreSQL and its processes at once, paused ones too.

        A process that waits for a dead disk is left to the kernel after `KILL_TIMEOUT_S`.
        """
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGSTOP)  # so that it starts no other meanwhile
        for pid in children(process.pid):  # which have no children themselves
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=KILL_TIMEOUT_S)

    def _spawn(self, command: list[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
        return spawn(command, self._run_as, output)

    def _choose_socket_dir(self) -> None:
        if len(str(self._data_dir / ".s.PGSQL.5432")) <= MAX_SOCKET_PATH:
            self._socket_dir = self._data_dir
            return
        self._own_socket_dir = Path(tempfile.mkdtemp(prefix="tornado_status-", dir="/tmp"))
        self._run_as.own(self._own_socket_dir)
        self._socket_dir = self._own_socket_dir

    async def _wait_for_previous(self) -> None:
        """Wait for a server of the same data that still stops, as after kill -9 of its parent."""
        deadline = asyncio.get_running_loop().time() + PREVIOUS_TIMEOUT_S
        logged = False
        while (pid := self._previous_pid()) is not None:
            if asyncio.get_running_loop().time() > deadline:
                raise ConfigError(
                    f"database.data_dir: {self._data_dir} is in use by {_owner(pid)}: stop it, or "
                    "set another database.data_dir"
                )
            if not logged:
                self._log.info("waiting for the previous PostgreSQL to stop", pid=pid)
                logged = True
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
            **self._settings,
        }
        command = [str(self._bin / "postgres"), "-D", str(self._data_dir)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        self._keep_socket_dir()
        # Without a name: in a directory of another user, that user may have put a link there.
        with tempfile.TemporaryFile() as output:
            self._process = self._spawn(command, output)
            await self._wait_accepts(self._process, output)

    async def _wait_accepts(self, process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
        loop = asyncio.get_running_loop()
        logged = False
        try:
            async with asyncio.timeout(START_TIMEOUT_S) as limit:
                while not self._accepts():
                    if self._recovers():  # which takes as long as it takes
                        limit.reschedule(loop.time() + START_TIMEOUT_S)
                        if not logged:
                            self._log.info("recovering the database from its archive")
                            logged = True
                    if process.poll() is not None:
                        output.seek(0)
                        raise ConfigError(
                            "database: the embedded PostgreSQL does not start: "
                            f"{error_in(output.read())} (see {self._data_dir}/log)"
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
                f"database: the embedded PostgreSQL in {self._data_dir} fails: "
                f"{' '.join(str(error).split())}"
            ) from error

    async def _supervise(self) -> None:
        while (process := self._process) is not None:
            await self._wait_died(process)
            backoff = Backoff(RESTART_MIN_S, RESTART_MAX_S)  # anew: it has served
            while True:
                await asyncio.sleep(backoff.next_s())
                try:
                    await self._wait_for_previous()
                    await self._launch()
                    break
                except (ConfigError, OSError) as error:
                    self._log.error("embedded PostgreSQL does not restart", reason=str(error))

    async def _wait_died(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until PostgreSQL ends. End it if its socket file is gone: it makes no other."""
        socket = self._socket_dir / ".s.PGSQL.5432"
        while not await ends_within(process, CHECK_SOCKET_S):
            if not os.path.lexists(socket):
                self._log.error("embedded PostgreSQL lost its socket, restarting")
                await self._end(process, STOP_TIMEOUT_S)
                return
        self._log.error("embedded PostgreSQL died, restarting", status=process.returncode)

    def _keep_socket_dir(self) -> None:
        """Make the directory of the socket again, if a cleaner of /tmp has removed it."""
        directory = self._own_socket_dir
        if directory is None:
            return
        if not os.path.lexists(directory):
            directory.mkdir(mode=0o700)
            self._run_as.own(directory)
        owner = os.geteuid() if self._run_as.uid is None else self._run_as.uid
        if directory.lstat().st_uid != owner:
            raise ConfigError(f"database: {directory}, for the socket, belongs to another user")


def _owner(pid: int) -> str:
    """Return the server that started a PostgreSQL, or that PostgreSQL if it is an orphan."""
    try:
        parent = parent_of(pid)
        return program(parent if parent > 1 else pid)
    except OSError:
        return f"PostgreSQL, process {pid}"
