"""The name of the program that a process runs, for error messages."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")
OURS = ("tornado-status", "tornado_status")  # the script, and the module of `python -m`


def program(pid: int) -> str:
    """Return which program a process is. Raises `OSError` if it has ended."""
    return f"{_name(PROC / str(pid))}, process {pid}"


def _name(directory: Path) -> str:
    command = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")
    if any(Path(word).name in OURS for word in command[:8]):
        return "another tornado-status server"
    return (directory / "comm").read_text().strip()
