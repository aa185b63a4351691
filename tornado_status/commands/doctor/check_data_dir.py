"""The doctor's checks of the embedded database's directory: owner, permissions, free space."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from tornado_status.commands.doctor.finding import Finding, note, ok, problem
from tornado_status.config.settings import EMBEDDED, Settings

TOPIC = "database"
FULL = 100_000_000  # bytes; a new database needs 40 MB, and its log of transactions more
NEARLY_FULL = 1_000_000_000


def examine(settings: Settings) -> Iterator[Finding]:
    """Run these checks, if the database is embedded."""
    if settings.database.url != EMBEDDED:
        return
    directory = settings.database.data_dir
    broken = [*_permissions(directory)]
    yield from broken
    if not broken:
        yield ok(TOPIC, f"database.data_dir: this user may write in {directory}")
    yield from _space(directory)


def _permissions(directory: Path) -> Iterator[Finding]:
    place = _nearest(directory)
    owner, me = place.stat().st_uid, os.geteuid()
    foreign = place == directory and owner != me
    if foreign and me == 0:
        yield note(
            TOPIC,
            f"database.data_dir: {directory} belongs to {_name(owner)}",
            f"Run the doctor as {_name(owner)}, if the server runs as that user.",
        )
    elif foreign:
        yield problem(
            TOPIC,
            f"database.data_dir: {directory} belongs to {_name(owner)}, and PostgreSQL starts only "
            "as its owner",
            f"Start the server as {_name(owner)}, or run `chown -R {_name(me)} {directory}` as "
            "root.",
        )
    elif not os.access(place, os.W_OK | os.X_OK):
        yield problem(
            TOPIC,
            f"database.data_dir: {_name(me)} may not write in {place}, which belongs to "
            f"{_name(owner)} or is read-only",
            "Set database.data_dir to a directory that the server's user may write in.",
        )
    elif place == directory and stat.S_IMODE(place.stat().st_mode) & 0o027:
        yield problem(
            TOPIC,
            f"database.data_dir: other users may read or write {directory}, and PostgreSQL refuses "
            "that",
            f"Run `chmod 700 {directory}`.",
        )


def _space(directory: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(_nearest(directory)).free
    sentence = f"database.data_dir: {_size(free)} free on the file system of {directory}"
    if free < FULL:
        advice = "Free some space, or set database.data_dir to a larger file system."
        yield problem(TOPIC, sentence, f"PostgreSQL stops when it is full. {advice}")
    elif free < NEARLY_FULL:
        yield note(
            TOPIC,
            sentence,
            "Shorten history.retention, or set database.data_dir to a larger file system.",
        )
    else:
        yield ok(TOPIC, sentence)


def _nearest(directory: Path) -> Path:
    """Return the directory, or the nearest above it that this user can see."""
    for each in (directory, *directory.parents):
        with contextlib.suppress(OSError):  # it does not exist, or is in a closed directory
            each.stat()
            return each
    return Path("/")


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _size(size: int) -> str:
    return f"{size / 1e9:.0f} GB" if size >= 10e9 else f"{size / 1e6:.0f} MB"
