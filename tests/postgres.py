"""A PostgreSQL for the tests: `python -m tests.postgres DIRECTORY` until its input ends.

The project's own embedded PostgreSQL, so it runs as root too and ends with the tests. Prints its
connection URL.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tornado_status import logs
from tornado_status.config import Logging
from tornado_status.store.embedded import EmbeddedPostgres


async def main(directory: Path) -> None:
    logs.configure(Logging(level="warning"))
    server = EmbeddedPostgres(directory)
    await server.start()
    parameters = server.parameters
    print(f"postgresql://{parameters['user']}@/postgres?host={parameters['host']}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
