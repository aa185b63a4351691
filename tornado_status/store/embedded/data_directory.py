"""The data directory of the embedded PostgreSQL: checked, and created with initdb."""

from __future__ import annotations

import asyncio
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


async def create(data_dir: Path, binaries: Path, run_as: RunAs) -> None:
    """Run initdb beside the data directory, then rename: a half-made one is never used."""
    structlog.get_logger().info("creating the database", data_dir=str(data_dir))
    try:
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".initdb-", dir=data_dir.parent))
    except OSError as error:
        raise ConfigError(
            f"database.data_dir: cannot create {data_dir}: {error.strerror}"
        ) from error
    try:
        run_as.own(fresh)
        await _initdb(fresh, binaries, run_as)
        if data_dir.exists():
            data_dir.rmdir()  # empty: see check
        fresh.rename(data_dir)
    except OSError as error:
        raise ConfigError(f"database.data_dir: cannot create {data_dir}: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


async def _initdb(directory: Path, binaries: Path, run_as: RunAs) -> None:
    options = f"--username={USER} --auth=trust --encoding=UTF8 --locale=C.UTF-8".split()
    with tempfile.TemporaryFile() as output:
        process = spawn(
            [str(binaries / "initdb"), f"--pgdata={directory}", *options], run_as, output
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
