"""A server whose log goes to a pipe or a terminal that its reader has stopped to read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tests.support.harness import Server, StartServer, free_port


@contextlib.contextmanager
def pipe_at(path: Path) -> Iterator[tuple[int, int]]:
    """Make a named pipe; yield its reading and its writing end."""
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def fill_pipe(writing: int) -> None:
    """Write byte by byte, until not one more has room."""
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"\n")


def start_logging_to(start_server: StartServer, path: str, **more: object) -> Server:
    """Start a server whose standard output and error are `path`; do not wait for it."""
    prefix = ("sh", "-c", 'exec "$@" >"$0" 2>&1', path)
    settings: dict[str, object] = {"server": {"port": free_port()}, **more}
    return start_server(prefix=prefix, wait=False, **settings)


def is_ready(server: Server) -> bool:
    """Return whether `/readyz` says so."""
    with contextlib.suppress(OSError):
        return server.management("/readyz").status == 200
    return False
