"""Run a command as another user who may not search the directories above its files.

`python -I confine.py UID GID PATH... -- COMMAND...`, as root. It has a mount namespace of its own.
There each closed directory above a PATH is an empty one that holds only the next step to the PATH.
The rest stays out of reach. This is a script of its own because the server has threads, and may run
next to nothing between fork and exec.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_CLONE_NEWNS = 0x00020000  # sched.h
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18  # mount(2)
_PR_SET_PDEATHSIG = 1  # prctl(2)

_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> None:
    parent = os.getppid()
    end = arguments.index("--")
    uid, gid = map(int, arguments[:2])
    _open_ways(list(map(Path, arguments[2:end])), uid, gid)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    # Again: the kernel forgets it when the user changes.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() == parent:
        os.execv(arguments[end + 1], arguments[end + 1 :])  # noqa: S606


def _open_ways(paths: list[Path], uid: int, gid: int) -> None:
    steps = _closed(paths, uid, gid)
    if not steps:
        return
    _check(_libc.unshare(_CLONE_NEWNS))
    _mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    for directory in sorted(steps, key=lambda each: len(each.parts)):
        ways = {
            step: os.open(directory / step, os.O_PATH | os.O_CLOEXEC) for step in steps[directory]
        }
        _mount(b"none", bytes(directory), b"tmpfs", 0, b"mode=0755,size=64k")
        for step, descriptor in ways.items():
            (directory / step).mkdir()
            source = f"/proc/self/fd/{descriptor}".encode()
            _mount(source, bytes(directory / step), None, _MS_BIND | _MS_REC, None)


def _closed(paths: list[Path], uid: int, gid: int) -> dict[Path, set[str]]:
    """Return the directories that the user may not search, and the next steps below each."""
    found: dict[Path, set[str]] = {}
    for path in paths:
        if not path.exists():
            continue
        for way in {path.absolute(), path.resolve()}:
            for number in range(1, len(way.parts)):
                directory = Path(*way.parts[:number])
                if not _may_search(directory, uid, gid):
                    found.setdefault(directory, set()).add(way.parts[number])
    return found


def _may_search(directory: Path, uid: int, gid: int) -> bool:
    status = directory.stat()
    bit = 0o100 if status.st_uid == uid else 0o010 if status.st_gid == gid else 0o001
    return bool(status.st_mode & bit)


def _mount(
    source: bytes, target: bytes, kind: bytes | None, flags: int, options: bytes | None
) -> None:
    _check(_libc.mount(source, target, kind, ctypes.c_ulong(flags), options))


def _check(status: int) -> None:
    if status != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


if __name__ == "__main__":
    main(sys.argv[1:])
