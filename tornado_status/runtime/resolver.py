"""Names to addresses, in threads that nobody has to wait for: the loop, the caller, or the end.

The C library's look-up cannot be given up, and a silent name server holds it for half a minute and
longer. The event loop's own way is a pool of threads that an ending process waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any

Address = tuple[int, Any]  # the family, and what socket.connect() takes in it
_Question = tuple[str, int, int]
_Answer = tuple[list[Address], str]  # the addresses, or why there are none

# Look-ups under way in this process, whoever asked: they only end by themselves, so that who asks
# again and again must not begin another each time.
MAX_UNDER_WAY = 32


class NameNotFound(OSError):
    """The name has no address, or the name server does not say so in time."""


async def look_up(
    host: str, port: int, *, timeout_s: float, family: int = socket.AF_UNSPEC
) -> list[Address]:
    """Return the addresses of a host for TCP, in the system's order of preference, each once.

    Raises `NameNotFound` after `timeout_s` at the latest. May be cancelled. The thread of a look-up
    goes on behind either; who asks the same meanwhile gets its answer too.
    """
    with contextlib.suppress(OSError, UnicodeError):
        # An address is none of the name server's business.
        return _addresses(host, port, family, socket.AI_NUMERICHOST)
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Answer] = loop.create_future()
    question = (host, port, int(family))
    waiter = (loop, future)
    with _lock:
        waiters = _under_way.get(question)
        if waiters is not None:
            waiters.append(waiter)
        elif len(_under_way) >= MAX_UNDER_WAY:
            raise NameNotFound(f"{host}: too many look-ups wait for the name server")
        else:
            try:
                threading.Thread(
                    target=_ask, args=(question,), name=f"look-up of {host}", daemon=True
                ).start()
            except RuntimeError as error:
                raise NameNotFound(f"{host}: no thread to ask the name server in") from error
            _under_way[question] = [waiter]  # the thread needs the lock to answer
    try:
        async with asyncio.timeout(timeout_s):
            found, problem = await future
    except TimeoutError as error:
        raise NameNotFound(f"{host}: no answer from the name server") from error
    finally:
        with _lock:
            waiters = _under_way.get(question)
            if waiters is not None and waiter in waiters:
                waiters.remove(waiter)
    if not found:
        raise NameNotFound(f"{host}: {problem}")
    return found


_lock = threading.Lock()
_under_way: dict[_Question, list[tuple[asyncio.AbstractEventLoop, asyncio.Future[_Answer]]]] = {}


def _ask(question: _Question) -> None:
    found: list[Address] = []
    problem = "no address"
    try:
        found = _addresses(*question)
    except OSError as error:
        problem = error.strerror or str(error)
    except UnicodeError:
        problem = "not a name"
    with _lock:
        waiters = _under_way.pop(question)
    for loop, future in waiters:
        with contextlib.suppress(RuntimeError):  # that loop has ended meanwhile
            loop.call_soon_threadsafe(_settle, future, (found, problem))


def _settle(future: asyncio.Future[_Answer], answer: _Answer) -> None:
    if not future.done():
        future.set_result(answer)


def _addresses(host: str, port: int, family: int, flags: int = 0) -> list[Address]:
    infos = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, flags)
    return list(dict.fromkeys((int(info[0]), info[4]) for info in infos))
