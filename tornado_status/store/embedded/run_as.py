"""The user that the embedded PostgreSQL runs as."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from pathlib import Path

from tornado_status.errors import ConfigError


class RunAs:
    """The user that PostgreSQL runs as. `prefix` is put before its commands."""

    def __init__(self, prefix: tuple[str, ...] = (), uid: int | None = None, gid: int = 0) -> None:
        self.prefix = prefix
        self.uid = uid
        self.gid = None if uid is None else gid

    def own(self, path: Path) -> None:
        """Make `path` that user's, if it is another one than ours."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


def choose_user(data_dir: Path, binaries: Path) -> RunAs:
    """Return a user that PostgreSQL accepts: it refuses root. Raises `ConfigError`."""
    if os.geteuid() != 0 and _has_name(os.geteuid()):
        return RunAs()
    # In a user namespace root is user 1, and the files stay root's. PostgreSQL also refuses a user
    # without a name, such as the numeric one of many containers.
    unshare = shutil.which("unshare")
    if unshare is not None:
        prefix = (unshare, "--user", "--map-user=1", "--map-group=1")
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run([*prefix, "true"], capture_output=True, timeout=10, check=True)
            return RunAs(prefix)
    if os.geteuid() != 0:
        raise ConfigError(
            f"database.url: embedded needs a user with a name, and {os.geteuid()} has none, nor "
            "can it make a user namespace: add one to /etc/passwd, or use another PostgreSQL"
        )
    return _other_user(data_dir, binaries)


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _other_user(data_dir: Path, binaries: Path) -> RunAs:
    """Return `postgres`, else `nobody`: some containers have no user namespaces."""
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        break
    else:
        raise ConfigError("database.url: embedded as root needs user namespaces or a user postgres")
    run_as = RunAs(uid=entry.pw_uid, gid=entry.pw_gid)
    nearest = data_dir
    while not nearest.exists():
        nearest = nearest.parent
    for path in (binaries / "postgres", nearest):
        check = subprocess.run(
            ["test", "-x", path],  # noqa: S607 - any test(1) will do
            user=entry.pw_uid,
            group=entry.pw_gid,
            extra_groups=[],
            check=False,
        )
        if check.returncode != 0:
            raise ConfigError(
                f"database.url: embedded runs as user {name} here, who cannot reach {path}: "
                "make it accessible, or start the server as an ordinary user"
            )
    if data_dir.exists():
        shutil.chown(data_dir, entry.pw_uid, entry.pw_gid)
    return run_as
