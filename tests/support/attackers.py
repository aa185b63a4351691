"""Attackers: each works with all it has, in a process of its own, until the test ends it."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def attacking(attack: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Meanwhile `attack(*arguments)` runs in a process of its own, which may have many sockets."""
    process = multiprocessing.get_context("spawn").Process(
        target=_run, args=(attack, *arguments), daemon=True
    )
    process.start()
    try:
        yield
        assert process.is_alive(), "the attack ended early"
    finally:
        process.kill()
        process.join()


def _run(attack: Callable[..., None], *arguments: Any) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    attack(*arguments)
