"""Standard output and standard error, written by a thread: an unread log delays nothing else.

A terminal after Ctrl-S, or a stuck log driver, blocks `write` without end. All text of this
process, tracebacks included, goes to a bounded queue, and a daemon thread writes it.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import sys
import threading
import time
from collections import deque
from typing import Any, TextIO, cast

import structlog

MAX_WAITING_BYTES = 1024 * 1024  # bytes: some thousand lines, with a few tracebacks
FLUSH_S = 1.0  # at the end of the process: a reader that is there takes milliseconds

_outputs: list[_Output] = []


def start() -> None:
    """Replace `sys.stdout` and `sys.stderr`. Text then gets out in the order in which it came."""
    atexit.register(flush)
    log = None
    if sys.stderr is not None:  # None if it was closed when the process started
        log = _Output(2)
        sys.stderr = log.as_text(sys.stderr)
    if sys.stdout is not None:
        shared = log if log is not None and os.path.sameopenfile(1, 2) else None
        sys.stdout = (shared or _Output(1)).as_text(sys.stdout)


def flush() -> None:
    """Wait until all text is written, for `FLUSH_S` at most."""
    until = time.monotonic() + FLUSH_S
    for output in _outputs:
        output.wait_written(until - time.monotonic())


def dropped() -> int:
    """Return how many lines were dropped, because too much waited or writing failed."""
    return sum(output.dropped for output in _outputs)


class _Output(io.RawIOBase):
    def __init__(self, descriptor: int) -> None:
        self.dropped = 0
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._size = 0  # of what waits or is being written
        # Reentrant: a signal's handler may write or flush whatever it has interrupted.
        self._changed = threading.Condition(threading.RLock())
        _outputs.append(self)
        threading.Thread(target=self._run, name="output", daemon=True).start()

    def as_text(self, like: TextIO) -> TextIO:
        """Return a text stream that passes on whole lines, in the encoding of another."""
        return io.TextIOWrapper(
            cast(Any, self), like.encoding, "backslashreplace", line_buffering=True
        )

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        """Queue `data`, or drop it if too much waits already."""
        data = bytes(data)
        with self._changed:
            if self._size + len(data) > MAX_WAITING_BYTES:
                self.dropped += data.count(b"\n")
            else:
                self._waiting.append(data)
                self._size += len(data)
                self._changed.notify_all()
        return len(data)

    def wait_written(self, timeout_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._size, timeout_s)

    def _run(self) -> None:
        reported = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                data = self._next()
            written = self._write(data)
            with self._changed:
                self._size -= len(data)
                self.dropped += 0 if written else data.count(b"\n")
                self._changed.notify_all()
                lines, caught_up = self.dropped - reported, written and not self._size
            if lines and caught_up:
                reported += lines
                structlog.get_logger().warning("log lines dropped", lines=lines)

    def _next(self) -> bytes:
        # More at once where much waits: after each call this thread waits for the interpreter's
        # lock. Not more than a pipe takes whole: other processes may write to it, too.
        chosen = [self._waiting.popleft()]
        size = len(chosen[0])
        while self._waiting and (size := size + len(self._waiting[0])) <= select.PIPE_BUF:
            chosen.append(self._waiting.popleft())
        return b"".join(chosen)

    def _write(self, data: bytes) -> bool:
        """Return False if it fails: the reader has gone, or the disk is full."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another process that shares it wanted that
                select.select([], [self._descriptor], [])
            except OSError:
                return False
        return True
