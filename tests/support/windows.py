"""Runs a program without the parts of Python that Windows lacks: `-m tests.support.windows`.

An emulation, not Windows: paths, processes and sockets are still Linux's. It finds imports and
names that do not exist there, and calls that fail there.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
import getpass
import http.client
import os
import runpy
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, NoReturn

# Imported before anything is taken away: they know Windows, and decide at import.
IMPORTED = (datetime, email.utils, getpass, http.client, shutil, ssl, subprocess, tempfile)

MODULES = (
    *("fcntl", "termios", "tty", "pty", "pwd", "grp", "resource", "syslog", "curses", "crypt"),
    *("readline", "_posixshmem", "_posixsubprocess", "asyncio.unix_events"),
)
NAMES: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (
        os,
        (
            *("getuid", "geteuid", "getgid", "getegid", "getgroups", "setuid", "setgid", "chown"),
            *("fchmod", "fchown", "fork", "forkpty", "killpg", "setsid", "getpgid", "getsid"),
            *("mkfifo", "uname", "sysconf", "nice", "wait4", "sched_getaffinity", "sched_yield"),
            *("O_CLOEXEC", "O_DIRECTORY", "O_NONBLOCK", "O_NOFOLLOW", "O_SYNC", "posix_spawn"),
            *("pidfd_open", "statvfs", "fdatasync", "sendfile", "pread", "pwrite", "getrandom"),
        ),
    ),
    (
        signal,
        (
            *("SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPIPE"),
            *("SIGCHLD", "SIGWINCH", "SIGSTOP", "SIGCONT", "SIGTSTP", "pause", "siginterrupt"),
            *("pthread_sigmask", "sigwait", "alarm", "setitimer", "pthread_kill"),
        ),
    ),
    (
        socket,
        (
            *("AF_UNIX", "AF_NETLINK", "AF_PACKET", "SO_REUSEPORT", "SO_BINDTODEVICE", "SO_MARK"),
            *("IP_MULTICAST_ALL", "IP_PKTINFO", "IP_TRANSPARENT", "IP_BIND_ADDRESS_NO_PORT"),
            *("TCP_DEFER_ACCEPT", "TCP_INFO", "TCP_USER_TIMEOUT", "TCP_CORK", "TCP_QUICKACK"),
            *("MSG_DONTWAIT", "MSG_NOSIGNAL", "MSG_ERRQUEUE", "MSG_TRUNC", "MSG_CTRUNC"),
            *("CMSG_LEN", "CMSG_SPACE", "sethostname", "SCM_RIGHTS"),
        ),
    ),
)


def emulate() -> None:
    """Take away what Windows lacks, and let fail what fails there."""
    for owner, names in NAMES:
        for name in names:
            if hasattr(owner, name):
                delattr(owner, name)
    for module in MODULES:
        sys.modules[module] = None  # type: ignore[assignment]

    def unavailable(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError

    # The proactor's loop, which asyncio uses there, has none of these.
    for name in ("add_reader", "remove_reader", "add_writer", "remove_writer"):
        setattr(asyncio.SelectorEventLoop, name, unavailable)
    for name in ("add_signal_handler", "remove_signal_handler"):
        setattr(asyncio.SelectorEventLoop, name, unavailable)

    opened, replaced = os.open, os.replace

    def open_no_directory(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", path)
        return opened(path, flags, *rest, **more)

    def replace_no_read_only(source: Any, target: Any, **more: Any) -> None:
        with contextlib.suppress(FileNotFoundError):
            if not Path(target).stat().st_mode & 0o200:
                raise PermissionError(13, "Permission denied", target)
        replaced(source, target, **more)

    for owner, name, function in (
        (os, "open", open_no_directory),
        (os, "replace", replace_no_read_only),
        (socket, "socketpair", socketpair),
    ):
        setattr(owner, name, function)
    sysconfig.get_config_vars()  # reads a file that is named after the system
    sys.platform = "win32"


def socketpair(*_: object) -> tuple[socket.socket, socket.socket]:
    """Return a connected pair: over TCP, since there are no pairs."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        first = socket.create_connection(listening.getsockname())
        second, _address = listening.accept()
    return first, second


def main() -> None:
    """Emulate Windows, then run a module as `python -m` does, with its arguments."""
    _, program, *arguments = sys.argv
    emulate()
    sys.argv = [program, *arguments]
    runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
