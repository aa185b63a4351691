"""The command line: `python -m tornado_status`, also installed as `tornado-status`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tornado_status import __version__, config
from tornado_status.errors import ConfigError

EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="tornado-status",
        description="A check-in service: a client certificate is the identity.",
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=("serve", "version"),
        default="serve",
        help="serve (the default): run the server until SIGTERM or Ctrl-C; version: print it",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("config.yaml"),
        metavar="FILE",
        help="settings; relative paths in it are relative to it (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.command == "version":
        print(f"tornado_status {__version__}")
        return 0
    try:
        return _serve(options.config)
    except ConfigError as error:
        print(f"tornado_status: {error}", file=sys.stderr)
        return EXIT_USAGE


def _serve(path: Path) -> int:
    settings = config.load(path, os.environ)
    # Imported here, so that a wrong setting is told at once.
    from tornado_status import logs, server

    logs.configure(settings.logging)
    asyncio.run(server.serve(settings))
    return 0
