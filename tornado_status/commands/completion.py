"""`tornado-status completion`: scripts for shells, made from the parser of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

import shtab

SHELLS = ("bash", "zsh")


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script that one of `SHELLS` is to read; options that name files complete them."""
    _mark_files(parser)
    text: str = shtab.complete(parser, shell=shell)
    return text


def _mark_files(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined] # as shtab wants it
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _mark_files(inner)
