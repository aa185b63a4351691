"""Real proxies for the tests: each runs its own configuration until the end of a `with` block."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.harness import LOOPBACK, Lines, require, wait_until


def accepts(port: int, host: str = LOOPBACK) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def running(
    command: Sequence[str], port: int | None, *, host: str = LOOPBACK, prefix: tuple[str, ...] = ()
) -> Iterator[Lines]:
    """Run a proxy in the foreground, once its port (None: do not look) answers; end it."""
    process = subprocess.Popen(
        [*prefix, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    output = Lines(process.stdout)
    try:

        def ready() -> bool:
            assert process.poll() is None, output.wait_end()
            return port is None or accepts(port, host)

        wait_until(ready, "a proxy that answers")
        yield output
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        output.wait_end()


def program(name: str) -> str:
    """The path of a proxy's program; the test is skipped where it is not installed."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    require(name, found is not None, f"Debian: {name}")
    return str(found)


@contextlib.contextmanager
def haproxy(
    directory: Path, configuration: str, port: int, host: str = LOOPBACK
) -> Iterator[Lines]:
    """Run HAProxy."""
    path = directory / "haproxy.cfg"
    path.write_text(textwrap.dedent(configuration).strip() + "\n")
    with running([program("haproxy"), "-db", "-f", str(path)], port, host=host) as output:
        yield output
