"""A PostgreSQL for the tests: `python -m tests.support.postgres DIRECTORY` until its input ends.

It is the project's own embedded PostgreSQL: it runs as root too, ends with the tests and is started
again if it dies. `--binaries` takes another version, `--set` other settings. Prints its connection
URL.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from tornado_status.config.settings import LoggingSettings
from tornado_status.observe import logging_setup
from tornado_status.store.embedded import postgres
from tornado_status.store.embedded.postgres import EmbeddedPostgres


async def run(directory: Path, binaries: Path | None, settings: list[str]) -> None:
    logging_setup.configure(LoggingSettings(level="warning"))
    if binaries is not None:
        major = int(binaries.parent.name)
        vars(postgres)["find_binaries"] = lambda: (binaries, major)
    server = EmbeddedPostgres(directory)
    spawn = server._spawn
    options = [option for setting in settings for option in ("-c", setting)]
    server._spawn = lambda command, output: spawn(  # type: ignore[method-assign]
        [*command, *options] if command[0].endswith("/postgres") else command, output
    )
    server._accepts = lambda: (  # type: ignore[method-assign]
        _state(directory, server.pid) in ("ready", "standby")
    )
    await server.start()
    parameters = server.parameters
    print(f"postgresql://{parameters['user']}@/postgres?host={parameters['host']}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()


def _state(directory: Path, pid: int | None) -> str:
    try:
        lines = (directory / "postmaster.pid").read_text().splitlines()
        return lines[7].strip() if lines[0] == str(pid) else ""  # not who was killed
    except (OSError, IndexError):
        return ""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--binaries", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    given = parser.parse_args(arguments)
    asyncio.run(run(given.directory, given.binaries, given.set))
    return 0


if __name__ == "__main__":
    sys.exit(main())
