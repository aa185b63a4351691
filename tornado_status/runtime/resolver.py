"""DNS lookups in daemon threads, so that a dead resolver delays neither the loop nor shutdown.

The C library's lookup cannot be cancelled: a silent name server holds it for half a minute and
longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from concurrent.futures import Future
from typing import Any

from tornado_status.runtime.daemon_executor import MAX_THREADS, DaemonExecutor

SocketAddress = tuple[int, Any]  # the family, and what socket.connect() takes in it
_Found = tuple[list[SocketAddress], str]  # the addresses, or why there are none
_Question = tuple[asyncio.AbstractEventLoop, str, int, int]  # loop, host, port and family

# Lookups under way in this process. They only end by themselves, so a caller that retries must not
# begin another each time.
MAX_UNDER_WAY = MAX_THREADS

_executor = DaemonExecutor()
_under_way: dict[_Question, asyncio.Future[_Found]] = {}


class NameNotFound(OSError):
    """The name has no address, or the name server does not answer in time."""


async def look_up(
    host: str, port: int, *, timeout_s: float, family: int = socket.AF_UNSPEC
) -> list[SocketAddress]:
    """Return the addresses of a host for TCP, in the system's order of preference, each once.

    Raises `NameNotFound`, after `timeout_s` at the latest. May be cancelled. The thread of a lookup
    then goes on; callers that ask the same meanwhile share its answer.
    """
    with contextlib.suppress(OSError, UnicodeError):
        return _addresses(host, port, family, socket.AI_NUMERICHOST)  # needs no name server
    question = (asyncio.get_running_loop(), host, port, int(family))
    answer = _under_way.get(question) or _begin(question)
    try:
        async with asyncio.timeout(timeout_s):
            found, problem = await asyncio.shield(answer)
    except TimeoutError as error:
        raise NameNotFound(f"{host}: no answer from the name server") from error
    if not found:
        raise NameNotFound(f"{host}: {problem}")
    return found


def _begin(question: _Question) -> asyncio.Future[_Found]:
    loop, host, port, family = question
    if len(_under_way) >= MAX_UNDER_WAY:
        raise NameNotFound(f"{host}: too many lookups wait for the name server")
    answer = _under_way[question] = loop.create_future()
    lookup = _executor.submit(_addresses, host, port, family)
    lookup.add_done_callback(functools.partial(_deliver, question, answer))
    return answer


def _deliver(
    question: _Question, answer: asyncio.Future[_Found], lookup: Future[list[SocketAddress]]
) -> None:
    """Pass a result to its loop. Runs in the thread of the lookup."""
    del _under_way[question]
    with contextlib.suppress(RuntimeError):  # the loop is closed
        question[0].call_soon_threadsafe(answer.set_result, _found(lookup))


def _found(lookup: Future[list[SocketAddress]]) -> _Found:
    try:
        return lookup.result(), "no address"
    except OSError as error:
        return [], error.strerror or str(error)
    except UnicodeError:
        return [], "not a name"
    except RuntimeError:
        return [], "no thread to ask the name server in"


def _addresses(host: str, port: int, family: int, flags: int = 0) -> list[SocketAddress]:
    infos = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, flags)
    return list(dict.fromkeys((int(info[0]), info[4]) for info in infos))
