"""The user that the embedded PostgreSQL runs as: never root, for the system either."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tornado_status.errors import ConfigError

_CONFINE = Path(__file__).with_name("confine.py")


class RunAs:
    """The user that PostgreSQL runs as; without `uid`, ours. `prefix` is put before its commands.

    With both, the prefix becomes that user.
    """

    def __init__(
        self, prefix: tuple[str, ...] = (), uid: int | None = None, gid: int | None = None
    ) -> None:
        self.prefix = prefix
        self.uid = uid
        self.gid = gid

    def own(self, path: Path) -> None:
        """Make `path` that user's, if it is another one than ours."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


def choose_user(paths: Sequence[Path], binaries: Path) -> RunAs:
    """Return a user that PostgreSQL accepts: it refuses root. Raises `ConfigError`.

    `paths` are those that it must reach: the first is its data directory.
    """
    if _is_root():
        return _other_user(paths, binaries)
    if os.geteuid() != 0 and _has_name(os.geteuid()):
        return RunAs()
    # PostgreSQL also refuses a user without a name, such as the numeric one of many containers. It
    # refuses the root of a user namespace, too, who is an ordinary user outside. In a user
    # namespace of its own it is user 1, and the files stay ours.
    unshare = shutil.which("unshare")
    if unshare is not None:
        prefix = (unshare, "--user", "--map-user=1", "--map-group=1")
        if _works([*prefix, "true"]):
            return RunAs(prefix)
    raise ConfigError(
        f"database.url: embedded needs a user with a name, and {os.geteuid()} has none, nor "
        "can it make a user namespace: add one to /etc/passwd, or use another PostgreSQL"
    )


def _is_root() -> bool:
    """Return whether we are the root of the machine, and not only that of a user namespace."""
    if os.geteuid() != 0:
        return False
    try:
        _, outside, _ = Path("/proc/self/uid_map").read_text().splitlines()[0].split()
    except (OSError, IndexError):
        return True
    return outside == "0"


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _other_user(paths: Sequence[Path], binaries: Path) -> RunAs:
    """Return the owner of the data, else `postgres`, else `nobody`."""
    data_dir = paths[0]
    owner = data_dir.stat().st_uid if data_dir.exists() else 0
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwuid(owner) if owner != 0 else pwd.getpwnam(name)
            break
    else:
        raise ConfigError(
            f"database.url: embedded as root needs the user postgres, or the owner of {data_dir}"
        )
    run_as = RunAs((), entry.pw_uid, entry.pw_gid)
    test = shutil.which("test") or "/usr/bin/test"
    for path in (binaries / "postgres", _nearest(data_dir)):
        if _works([test, "-x", str(path)], run_as):
            continue
        # A directory above it is closed, as the home of root is.
        needed = [str(each) for each in (*paths, binaries.parent)]
        ids = (str(entry.pw_uid), str(entry.pw_gid))
        prefix = (sys.executable, "-I", str(_CONFINE), *ids, *needed, "--")
        if not _works([*prefix, test, "-x", str(binaries / "postgres")]):
            raise ConfigError(
                f"database.url: embedded runs as user {entry.pw_name} here, who cannot reach "
                f"{path}: make it accessible, or start the server as an ordinary user"
            )
        run_as = RunAs(prefix, entry.pw_uid, entry.pw_gid)
        break
    if owner == 0 and data_dir.exists():
        _hand_over(data_dir, run_as)
    return run_as


def _works(command: Sequence[str], run_as: RunAs | None = None) -> bool:
    """Return whether a command runs, as that user, with status 0."""
    uid, gid = (None, None) if run_as is None else (run_as.uid, run_as.gid)
    groups: list[int] | None = None if uid is None else []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            command,
            user=uid,
            group=gid,
            extra_groups=groups,
            cwd="/",
            capture_output=True,
            timeout=10,
            check=True,
        )
        return True
    return False


def _nearest(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _hand_over(data_dir: Path, run_as: RunAs) -> None:
    """Make the data that user's, as a copy that root has made is not.

    Only what root owns as a whole: in a directory of another user, that user may have put a link to
    any file. The directory itself is last, so that an interrupted run is repeated.
    """
    uid, gid = run_as.uid, run_as.gid
    if uid is None or gid is None:
        return
    try:
        for _, directories, files, descriptor in os.fwalk(data_dir, topdown=False):
            for name in (*directories, *files):
                os.chown(name, uid, gid, dir_fd=descriptor, follow_symlinks=False)
        os.chown(data_dir, uid, gid)
    except OSError as error:
        raise ConfigError(
            f"database.data_dir: cannot give {data_dir} to user {uid}: {error.strerror}"
        ) from error
