"""The data directory of the embedded PostgreSQL: checked, and created with initdb."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import tempfile
from pathlib import Path

import structlog

from tornado_status.errors import ConfigError
from tornado_status.store.embedded.child import ended, error_in, spawn
from tornado_status.store.embedded.run_as import RunAs

USER = "postgres"
INITDB_TIMEOUT_S = 60.0  # 0.5 to 2.6 s measured


def check(data_dir: Path, major: int) -> None:
    """Raises `ConfigError` if the directory holds anything but data of PostgreSQL `major`."""
    version_file = data_dir / "PG_VERSION"
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
                f"database.data_dir: {data_dir} belongs to PostgreSQL {found}, the "
                f"embedded one is {major}: move it away, or dump it with {found} and restore it"
            )
        return
    if data_dir.exists() and any(data_dir.iterdir()):
        raise ConfigError(
            f"database.data_dir: {data_dir} is not empty and no PostgreSQL data directory"
        )


def fresh(data_dir: Path) -> Path:
    """Return the directory beside it in which it is made, always the same."""
    return data_dir.with_name(f".initdb-{data_dir.name}")


async def create(data_dir: Path, binaries: Path, run_as: RunAs) -> None:
    """Run initdb beside the data directory, then rename: a half-made one is never used.

    Files that a killed start has left there are removed.
    """
    structlog.get_logger().info("creating the database", data_dir=str(data_dir))
    try:
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        lock = await _take(fresh(data_dir))
    except OSError as error:
        raise ConfigError(
            f"database.data_dir: cannot create {data_dir}: {error.strerror}"
        ) from error
    try:
        await _make(data_dir, binaries, run_as, lock)
    finally:
        shutil.rmtree(fresh(data_dir), ignore_errors=True)
        os.close(lock)


async def _take(directory: Path) -> int:
    """Make the directory, or empty a left one; return a descriptor that holds its lock.

    As long as an initdb of another start runs, that has the lock too. Raises `OSError`.
    """
    deadline = asyncio.get_running_loop().time() + INITDB_TIMEOUT_S
    while True:
        directory.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not any(directory.iterdir()) and directory.stat().st_ino == os.fstat(lock).st_ino:
                return lock
            shutil.rmtree(directory)
        except (BlockingIOError, FileNotFoundError):
            if asyncio.get_running_loop().time() > deadline:
                os.close(lock)
                raise
        os.close(lock)
        await asyncio.sleep(0.05)


async def _make(data_dir: Path, binaries: Path, run_as: RunAs, lock: int) -> None:
    if (data_dir / "PG_VERSION").exists():
        return  # by another start, which had the lock
    try:
        run_as.own(fresh(data_dir))
        await _initdb(fresh(data_dir), binaries, run_as, lock)
        if data_dir.exists():
            data_dir.rmdir()  # empty: see check
        fresh(data_dir).rename(data_dir)
    except OSError as error:
        raise ConfigError(f"database.data_dir: cannot create {data_dir}: {error}") from error


async def _initdb(directory: Path, binaries: Path, run_as: RunAs, lock: int) -> None:
    options = f"--username={USER} --auth=trust --encoding=UTF8 --locale=C.UTF-8".split()
    with tempfile.TemporaryFile() as output:
        process = spawn(
            [str(binaries / "initdb"), f"--pgdata={directory}", *options], run_as, output, [lock]
        )
        try:
            async with asyncio.timeout(INITDB_TIMEOUT_S):
                status = await ended(process)
        except TimeoutError as error:
            raise ConfigError("database.data_dir: initdb takes too long") from error
        finally:
            if process.poll() is None:  # cancelled: the server stops
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if status != 0:
            output.seek(0)
            raise ConfigError(
                f"database.data_dir: cannot create a database in {directory.parent}: "
                f"{error_in(output.read())}"
            )
