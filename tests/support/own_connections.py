"""This process's own connections to PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path


def break_connections() -> None:
    """Shut this process's own connections to PostgreSQL for reading, as a network would."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        descriptor = int(entry.name)
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
        except OSError:
            continue  # the directory's own
        with socket.socket(fileno=os.dup(descriptor)) as duplicate:
            if duplicate.family != socket.AF_UNIX:
                continue
            with contextlib.suppress(OSError):  # one of a pair, or not connected
                if ".s.PGSQL" in str(duplicate.getpeername()):
                    duplicate.shutdown(socket.SHUT_RD)
