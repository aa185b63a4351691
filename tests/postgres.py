"""A PostgreSQL for the tests: `python -m tests.postgres DIRECTORY [BIN]` until its input ends.

The project's own embedded PostgreSQL, so it runs as root too and ends with the tests; with BIN that
of another version. Prints its connection URL.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tornado_status import logs
from tornado_status.config import Logging
from tornado_status.store import embedded
from tornado_status.store.embedded import EmbeddedPostgres


async def main(directory: Path, binaries: Path | None) -> None:
    logs.configure(Logging(level="warning"))
    if binaries is not None:
        major = int(binaries.parent.name)
        embedded.find_binaries = lambda: (binaries, major)
    server = EmbeddedPostgres(directory)
    await server.start()
    parameters = server.parameters
    print(f"postgresql://{parameters['user']}@/postgres?host={parameters['host']}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
