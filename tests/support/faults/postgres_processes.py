"""The processes of a PostgreSQL."""

from __future__ import annotations

from pathlib import Path

from tests.support.harness import wait_until


def postmaster(data_dir: Path) -> int:
    def pid() -> int:
        try:
            return int((data_dir / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return 0

    return int(wait_until(pid, "postmaster.pid"))


def processes_in(directory: Path) -> list[int]:
    """The processes that work in a directory, as those of PostgreSQL do in their data."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if path.readlink() == directory:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
