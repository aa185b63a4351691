"""A program in a terminal, and the screen that it draws."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import struct
import subprocess
import sys
import termios
import threading

import pyte

from tests.support.harness import PATIENCE_S, ROOT, plain_environment, require, wait_until


class Terminal:
    """A program in a pseudo-terminal of its own, and what is on its screen."""

    def __init__(self, *command: object, size: tuple[int, int] = (100, 20)) -> None:
        setsid = shutil.which("setsid")
        require("setsid", setsid is not None, "Debian: util-linux")
        self.master, slave = os.openpty()
        self._lock = threading.Lock()
        self._screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self.resize(*size)
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        self.process = subprocess.Popen(
            [str(setsid), "--ctty", sys.executable, "-W", "error", *map(str, command)],
            cwd=ROOT,
            env={**plain_environment(), "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while payload := os.read(self.master, 65536):
                with self._lock:
                    self.raw += payload
                    # Sequences that ask or set what pyte does not have: nothing is drawn by them.
                    self._stream.feed(re.sub(rb"\x1b\[[<>=?][0-9;]*[a-zA-Z$]p?", b"", payload))

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        with self._lock:
            self._screen.resize(lines, columns)

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    @property
    def screen(self) -> str:
        with self._lock:
            return "\n".join(line.rstrip() for line in self._screen.display)

    def wait(self, pattern: str) -> str:
        """Return the screen once a line matches."""
        try:
            wait_until(lambda: re.search(pattern, self.screen), pattern)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.screen}") from None
        return self.screen

    def wait_said(self, pattern: str) -> None:
        """Wait for text that is left when the board is gone."""
        wait_until(
            lambda: re.search(pattern, self.raw.rpartition(b"\x1b[?1049l")[2].decode()), pattern
        )

    def ended(self) -> int:
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE_S)
        with contextlib.suppress(OSError):
            os.close(self._slave)
        self._thread.join(PATIENCE_S)
        with contextlib.suppress(OSError):
            os.close(self.master)

    @property
    def restored(self) -> bool:
        """Whether the terminal is as it was: its modes, its screen, its cursor."""
        entered, left = self.raw.rfind(b"\x1b[?1049h"), self.raw.rfind(b"\x1b[?1049l")
        modes = termios.tcgetattr(self._slave) == self.before
        return 0 <= entered < left and modes and self.raw.rfind(b"\x1b[?25h") > entered
