"""`tornado-status version`, and what `--version` prints."""

from __future__ import annotations

import argparse

from tornado_status import __version__

TEXT = f"tornado-status {__version__}"


def run(options: argparse.Namespace) -> int:
    """Print the version."""
    print(TEXT)
    return 0
