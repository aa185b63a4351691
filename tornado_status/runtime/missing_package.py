"""The error of a program whose packages this Python does not have. Standard library only."""

from __future__ import annotations

import sys
from pathlib import Path

_OURS = ("tornado_status", "listeners", "certs_gen", "clients")


def explain(program: str, error: ModuleNotFoundError) -> str:
    """Return what to run instead. Raises `error` if it is a module of this project.

    The common case is `python3 -m tornado_status` in a checkout, with the system's Python.
    """
    package = (error.name or "").partition(".")[0]
    if not package or package in _OURS:
        raise error
    installed = Path(".venv/bin", program)
    remedy = f"run {installed}" if installed.exists() else f"run `make run` once, then {installed}"
    return f"{program}: {sys.executable} does not have the package {package}: {remedy}"
