"""The option `--config`, which every command takes, before or after its name."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_config(parser: argparse.ArgumentParser, default: object = argparse.SUPPRESS) -> None:
    """Add `--config`. Suppressed, a default does not undo what stood before the command."""
    parser.add_argument(
        "--config",
        type=Path,
        default=default,
        metavar="FILE",
        help="settings; paths in it are relative to it (default: config.yaml, if there is one)",
    )
