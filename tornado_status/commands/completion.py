"""`tornado-status completion`: completion scripts for shells, made from the parser."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell to complete in")


def run(options: argparse.Namespace) -> int:
    """Print a completion script.

    In bash: `source <(tornado-status completion bash)`; in zsh, after compinit:
    `eval "$(tornado-status completion zsh)"`. See docs/completion.md.
    """
    import shtab

    _complete_files(options.parser, shtab.FILE)
    print(shtab.complete(options.parser, shell=options.shell))
    return 0


def _complete_files(parser: argparse.ArgumentParser, choices: object) -> None:
    for action in parser._actions:
        if action.type is Path:
            action.complete = choices  # type: ignore[attr-defined] # where shtab looks for it
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _complete_files(inner, choices)
