"""The hosts of the database's URL: which of them to use, by a race as of RFC 8305.

Knows how libpq names several hosts, not how to connect to one: it is handed that. libpq itself
tries no second address in asynchronous mode, and looks names up without letting anybody else run.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from tornado_status.errors import ConfigError, StoreUnavailable
from tornado_status.runtime.resolver import NameNotFound, look_up

Parameters = dict[str, str]

STAGGER_S = 0.25  # before the next host is begun beside a silent one: RFC 8305, section 5
# Before a silent address is begun anew beside itself, since a database that is back should be
# noticed within a second. What TCP lost is sent again after 1, 3, 7 s only: with another begun
# every 2 s a packet goes out each second, and a slow login is seldom asked for twice.
AGAIN_S = 2.0
MAX_AT_ONCE = 16  # attempts; a pool of standbys has fewer, and a name's hundred addresses can wait
UNKNOWN = "the database's name does not resolve"


class Closable(Protocol):
    """A connection."""

    def abandon(self) -> None:
        """Close it, at once."""


C = TypeVar("C", bound=Closable)


def split(parameters: Parameters) -> list[Parameters]:
    """Return one set of parameters for each host (libpq, 34.1.1.3), in the order given.

    Raises `ConfigError` where there are not as many ports or addresses as hosts.
    """
    names = ("host", "hostaddr", "port")
    lists = {name: parameters[name].split(",") for name in names if parameters.get(name)}
    count = max((len(lists.get(name, [])) for name in ("host", "hostaddr")), default=0)
    if count == 0:
        return [parameters]  # libpq's own: a Unix socket
    ports = lists.get("port", [""])
    lists["port"] = ports * count if len(ports) == 1 else ports
    if any(len(each) != count for each in lists.values()):
        raise ConfigError("database.url: not as many ports or addresses as hosts")
    rest = {name: value for name, value in parameters.items() if name not in names}
    return [
        {**rest, **{name: each[number] for name, each in lists.items()}, "port": port or "5432"}
        for number, port in enumerate(lists["port"])
    ]


def needs_look_up(parameters: Parameters) -> bool:
    """Say whether the parameters name a host whose address is not known yet."""
    host = parameters.get("host", "")
    return bool(host) and not host.startswith(("/", "@")) and not parameters.get("hostaddr")


def _silence(parameters: Parameters) -> str:
    if needs_look_up(parameters):
        return f"{UNKNOWN}: {parameters['host']}: no answer from the name server"
    return "the database does not answer"


async def addresses(parameters: Parameters, timeout_s: float) -> list[Parameters]:
    """Return the parameters of one host with each address of its name beside it.

    The name stays: certificates are verified by it. Raises `StoreUnavailable` where there is none.
    """
    try:
        found = await look_up(parameters["host"], int(parameters["port"]), timeout_s=timeout_s)
    except (NameNotFound, ValueError, OverflowError) as error:
        raise StoreUnavailable(f"{UNKNOWN}: {error}") from error
    return [{**parameters, "hostaddr": _with_scope(address)} for _, address in found]


def _with_scope(address: tuple[Any, ...]) -> str:
    """Return the address of a socket address; behind "%" the link that a link-local one is of."""
    scope = address[3] if len(address) > 3 else 0
    return f"{address[0]}%{scope}" if scope else str(address[0])


async def first(
    hosts: Sequence[Parameters],
    connect: Callable[[Parameters], Awaitable[C]],
    timeout_s: float,
) -> C:
    """Return the first connection that `connect` makes, and close all others.

    The next host is begun once one has failed, or has said nothing for `STAGGER_S`; in the end a
    silent one once more, every `AGAIN_S`. It takes `timeout_s`, and the staggering, at most.
    Raises `StoreUnavailable` with every host's reason.
    """
    race = _Race(hosts, connect, timeout_s)
    try:
        return await race.run()
    finally:
        await race.end()


class _Race(Generic[C]):
    def __init__(
        self,
        hosts: Sequence[Parameters],
        connect: Callable[[Parameters], Awaitable[C]],
        timeout_s: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connect = connect
        self._deadline = self._loop.time() + timeout_s + STAGGER_S * (len(hosts) - 1)
        self._left = deque(enumerate(hosts))  # with their places in the URL
        self._running: dict[asyncio.Task[C | list[Parameters]], tuple[int, Parameters]] = {}
        self._silent: deque[tuple[float, int, Parameters]] = deque()  # and when to begin them anew
        self._reasons: dict[int, str] = {}

    async def run(self) -> C:
        next_at = self._loop.time()
        while True:
            now = self._loop.time()
            if now >= self._deadline:
                break
            while self._silent and not self._left and self._silent[0][0] <= now:
                _, place, parameters = self._silent.popleft()
                if (place, parameters) not in self._running.values():
                    continue
                if len(self._running) < MAX_AT_ONCE:
                    self._begin(place, parameters)
                else:
                    # None gives way to it: a login may take as long as an attempt may.
                    self._silent.append((now + AGAIN_S, place, parameters))
            if self._left and now >= next_at:
                self._begin(*self._left.popleft())
                next_at = now + STAGGER_S
            if not self._running and not self._left:
                break
            wake_at = self._deadline
            if self._left:
                wake_at = min(wake_at, next_at)
            elif self._silent:
                wake_at = min(wake_at, self._silent[0][0])
            if not self._running:
                next_at = now  # nothing to wait for
                continue
            done, _ = await asyncio.wait(
                self._running,
                timeout=max(0.0, wake_at - now),
                return_when=asyncio.FIRST_COMPLETED,
            )
            # Of two at once the one that stands first in the URL.
            for task in sorted(done, key=lambda task: self._running[task][0]):
                place, _ = self._running[task]
                error = task.exception()
                if error is not None and not isinstance(error, StoreUnavailable):
                    raise error
                if error is not None:
                    del self._running[task]
                    self._reasons[place] = str(error)
                    next_at = now
                    continue
                result = task.result()
                del self._running[task]
                if not isinstance(result, list):
                    return result
                self._left.extendleft((place, each) for each in reversed(result))
                next_at = now
        for place, parameters in self._running.values():
            self._reasons.setdefault(place, _silence(parameters))
        reasons = dict.fromkeys(self._reasons[place] for place in sorted(self._reasons))
        raise StoreUnavailable("; ".join(reasons) or "no address to connect to")

    async def end(self) -> None:
        """Give up all that still runs."""
        running = []
        for task in self._running:
            if task.done():
                _abandon(task)  # it came second, in the same turn
            else:
                task.add_done_callback(_abandon)
                task.cancel()
                running.append(task)
        if running:
            await asyncio.wait(running)

    def _begin(self, place: int, parameters: Parameters) -> None:
        if len(self._running) >= MAX_AT_ONCE:
            oldest = next(iter(self._running))
            del self._running[oldest]
            oldest.add_done_callback(_abandon)
            oldest.cancel()
        task = asyncio.create_task(self._attempt(parameters), name="database host")
        self._running[task] = (place, parameters)
        if not needs_look_up(parameters):
            self._silent.append((self._loop.time() + AGAIN_S, place, parameters))

    async def _attempt(self, parameters: Parameters) -> C | list[Parameters]:
        if needs_look_up(parameters):
            return await addresses(parameters, self._deadline - self._loop.time())
        return await self._connect(parameters)


def _abandon(task: asyncio.Task[C | list[Parameters]]) -> None:
    if not task.cancelled() and task.exception() is None:
        result = task.result()
        if not isinstance(result, list):
            result.abandon()
