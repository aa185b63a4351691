"""Child processes: started so that they end with us, waited for without a thread."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from tornado_status.store.embedded.run_as import RunAs

_PR_SET_PDEATHSIG = 1  # prctl(2)
# PostgreSQL's lines begin with the time, and initdb's with what it was doing.
_ERROR = re.compile(r"\b(?:FATAL|PANIC|ERROR|error):\s+(.+)")


def spawn(
    command: list[str], run_as: RunAs, output: IO[bytes], held: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a child. Call from the main thread: it ends with the thread that forked it.

    The child and its own children keep the descriptors `held` open.
    """
    uid, gid = (None, None) if run_as.prefix else (run_as.uid, run_as.gid)
    return subprocess.Popen(
        [*run_as.prefix, *command],
        user=uid,
        group=gid,
        extra_groups=[] if uid is not None else None,
        pass_fds=held,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # A session of its own: Ctrl-C must reach us first, and PostgreSQL after the drain.
        start_new_session=True,
        preexec_fn=_end_with_parent(),
    )


async def ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for a child to end; return its status."""
    descriptor = os.pidfd_open(process.pid)
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return process.wait()


async def ends_within(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Wait for a child to end; return False if that takes longer than `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            await ended(process)
    except TimeoutError:
        return False
    return True


def children(parent: int) -> list[int]:
    """Return the ids of a process's children."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid = int(path.parent.name)
            if parent_of(pid) == parent:
                found.append(pid)
    return found


def parent_of(pid: int) -> int:
    """Return the id of a process's parent. Raises `OSError` if the process has ended."""
    # proc(5): after the name, which may hold anything, the state and the parent.
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def error_in(output: bytes) -> str:
    """Return the first error in a command's output, else its last line, for an error message.

    The last line is often about the clean-up after the error.
    """
    lines = output.decode(errors="replace").strip().splitlines()
    for line in lines:
        if (found := _ERROR.search(line)) is not None:
            return found[1].strip()
    return lines[-1].strip() if lines else "no output"


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
