"""`tornado-status init`: write a commented configuration and a systemd unit to begin with."""

from __future__ import annotations

import argparse
import importlib.resources
from pathlib import Path

from tornado_status.errors import ConfigError

TEMPLATES = ("config.yaml", "tornado-status.service")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory",
        type=Path,
        nargs="?",
        default=Path(),
        metavar="DIR",
        help="where to write; made if it is missing (default: the current directory)",
    )


def run(options: argparse.Namespace) -> int:
    """Write config.yaml, which explains every setting, and a systemd unit.

    Existing files are never overwritten: if one exists, nothing is written.
    """
    directory: Path = options.directory
    paths = [directory / name for name in TEMPLATES]
    for path in paths:
        if path.exists() or path.is_symlink():
            raise ConfigError(f"{path} exists already; nothing was written")
    templates = importlib.resources.files("tornado_status.commands") / "templates"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path in paths:
            with path.open("x", encoding="utf-8") as file:
                file.write((templates / path.name).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{directory}: cannot write there: {error.strerror}") from error
    print(f"Wrote {' and '.join(map(str, paths))}.")
    print(
        f"Next: edit {paths[0]}, make certificates with status-certs --out "
        f"{directory / 'certs'}, then run tornado-status --config {paths[0]}"
    )
    return 0
