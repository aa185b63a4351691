"""Output of status-listener: updates to stdout or a command, the rest to stderr."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shlex
import subprocess
import sys
from typing import IO

from tornado_status.errors import ConfigError
from tornado_status.runtime.printable import printable

COMMAND_END_S = 30.0  # how long a command may take to end once its input is closed


class ReaderGone(Exception):
    """The other end of the pipe is closed, or a signal ended the wait for it."""


class NotWritten(Exception):
    """The update could not be written, as to a full disk."""


class Console:
    """Writes updates to stdout or a command, and all else to stderr. Flushes each at once."""

    def __init__(self) -> None:
        self._writing: IO[str] | None = None
        self._command: subprocess.Popen[str] | None = None

    def start_command(self, line: str) -> None:
        """Send updates to a command's standard input from now on. Raises `ConfigError`."""
        try:
            words = shlex.split(line)
            self._command = subprocess.Popen(words, stdin=subprocess.PIPE, text=True)  # noqa: S603 - the operator's own command, without a shell
        except (OSError, ValueError, IndexError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"--exec: {line!a} cannot be run ({reason})") from error

    def close_command(self) -> int:
        """Close the command's input and wait for its end. Returns its exit status."""
        if self._command is None:
            return 0
        if self._command.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._command.stdin.close()
        try:
            return self._command.wait(COMMAND_END_S)
        except subprocess.TimeoutExpired:
            self._command.terminate()
            return self._command.wait()

    def blocked(self) -> bool:
        """Return whether a write is under way that waits for its reader."""
        if self._writing is None:
            return False
        if sys.platform == "win32":  # select only takes sockets there: assume that it is
            return True
        return not select.select([], [self._writing], [], 0)[1]

    def show(self, text: str) -> None:
        """Write an update. Raises `ReaderGone`, or `NotWritten` as for a full disk."""
        output = sys.stdout if self._command is None else self._command.stdin
        try:
            self._write(output, text)
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EINVAL):  # EINVAL: a closed pipe on Windows
                raise ReaderGone from error
            where = "stdout" if self._command is None else "the command of --exec"
            raise NotWritten(f"{where}: {error.strerror}") from error

    def say(self, sentence: str) -> None:
        """Write a line to stderr, if it is open. Raises `ReaderGone`."""
        if sys.stderr is not None:
            with contextlib.suppress(OSError):
                self._write(sys.stderr, f"{printable(sentence)}\n")

    def _write(self, output: IO[str] | None, text: str) -> None:
        if output is None:  # closed before we started
            raise ReaderGone
        self._writing = output
        try:
            output.write(text)
            output.flush()
        except BaseException:
            # The interpreter would fail, or wait, again when it flushes the rest at exit.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, output.fileno())
            os.close(null)
            raise
        finally:
            self._writing = None
