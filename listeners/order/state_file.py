"""A file that holds a listener's position: a log id and the number up to which it delivered."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import uuid
from pathlib import Path

from listeners.order.sequence import Position
from tornado_status.errors import ConfigError
from tornado_status.wire.json_members import MAX_SEQ

MAX_SIZE = 4096  # bytes: a longer file is not a state file
SAVE_INTERVAL_S = 1.0  # a crash repeats at most this much; one write a second costs a disk little


class StateFile:
    """Replaced as a whole at each save, so that a crash leaves the old state or the new one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saved: Position | None = None
        self._saved_at = float("-inf")

    def load(self) -> Position | None:
        """Return what was saved, or None if there is no file. Raises `ConfigError`."""
        try:
            if not stat.S_ISREG(self._path.stat().st_mode):
                raise ConfigError(f"--state: {self._path} is no regular file")
            with self._path.open("rb") as file:
                text = file.read(MAX_SIZE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"--state: {self._path} cannot be read ({error.strerror})") from error
        try:
            members = json.loads(text)
            log_id, seq = uuid.UUID(members["log"]), members["seq"]
            if type(seq) is not int or not 0 <= seq <= MAX_SEQ:
                raise ValueError("seq")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(
                f"--state: {self._path} is no listener's state: "
                f"name another file, or delete it to start without a position"
            ) from error
        self._saved = Position(log_id, seq)
        return self._saved

    def check(self) -> None:
        """Raise `ConfigError` if the file cannot be written."""
        if not os.access(self._path.parent, os.W_OK):
            raise ConfigError(f"--state: the directory {self._path.parent} cannot be written")

    def save(self, position: Position, now: float, *, at_once: bool = False) -> None:
        """Write the position if it is due, or `at_once`. Raises `OSError`."""
        if position == self._saved or (now < self._saved_at + SAVE_INTERVAL_S and not at_once):
            return
        self._saved_at = now
        text = json.dumps({"log": str(position.log_id), "seq": position.seq}) + "\n"
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            # In a directory of many users another one may have put a link there.
            temporary.unlink(missing_ok=True)
            with temporary.open("x", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
            _sync_directory(self._path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        self._saved = position


def _sync_directory(path: Path) -> None:
    """Make a rename in `path` survive a crash of the machine."""
    if os.name != "posix":
        return
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    except OSError:
        pass  # a file system that cannot sync a directory
    finally:
        os.close(directory)
