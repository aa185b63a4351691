"""The hosts of the database's URL: which of them to use, by a race as in RFC 8305.

Knows how libpq names several hosts, not how to connect to one: `connect` is passed in. It does not
use libpq's own failover: aiopg 1.4 keeps waiting for the descriptor of the first address. Besides,
no time-out ends libpq's attempt at a silent host, and it resolves names on the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tornado_status.errors import ConfigError, StoreUnavailable
from tornado_status.runtime.resolver import NameNotFound, look_up

if TYPE_CHECKING:
    from tornado_status.store.database import Connection

Parameters = dict[str, str]
Connect = Callable[[Parameters], Awaitable["Connection"]]

STAGGER_S = 0.25  # before the next host is tried beside a silent one: RFC 8305, section 5
# Before a host that refused is asked again while others stay silent. A standby that answered
# "read-only" may be promoted meanwhile; the silent host may be the dead primary.
ASK_AGAIN_S = 0.2
MAX_AT_ONCE = 16  # attempts; a pool of standbys has fewer, and a name's hundred addresses can wait
UNKNOWN = "the database's name does not resolve"


def split(parameters: Parameters) -> list[Parameters]:
    """Return one set of parameters for each host (libpq, 34.1.1.3), in the order given.

    Raises `ConfigError` if there are not as many ports or addresses as hosts.
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


def shown(parameters: Parameters) -> str:
    """Return host, port and database for messages, never the password."""
    host = parameters.get("host") or parameters.get("hostaddr") or "the local socket"
    port = parameters.get("port") or "5432"
    address = parameters.get("hostaddr", "").partition("%")[0]
    if host.startswith("/"):
        where = f"{host}/.s.PGSQL.{port}"
    else:
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if address and address != host:
        where += f" ({address})"
    name = parameters.get("dbname") or parameters.get("user")
    return f"{where}, database {name}" if name else where


def needs_look_up(parameters: Parameters) -> bool:
    """Return whether the parameters name a host whose address is not known yet."""
    host = parameters.get("host", "")
    return bool(host) and not host.startswith(("/", "@")) and not parameters.get("hostaddr")


def _silence(parameters: Parameters) -> str:
    if needs_look_up(parameters):
        return f"{UNKNOWN}: {parameters['host']}: no answer from the name server"
    return f"{shown(parameters)}: the database does not answer"


async def addresses(parameters: Parameters, timeout_s: float) -> list[Parameters]:
    """Return the parameters of one host with each address of its name beside it.

    The name stays: certificates are verified by it. Raises `StoreUnavailable` if it has no address.
    """
    try:
        found = await look_up(parameters["host"], int(parameters["port"]), timeout_s=timeout_s)
    except (NameNotFound, ValueError, OverflowError) as error:
        raise StoreUnavailable(f"{UNKNOWN}: {error}") from error
    return [{**parameters, "hostaddr": _with_scope(address)} for _, address in found]


def _with_scope(address: tuple[Any, ...]) -> str:
    """Return the IP address of a socket address, with `%` and the scope of a link-local one."""
    scope = address[3] if len(address) > 3 else 0
    return f"{address[0]}%{scope}" if scope else str(address[0])


async def first(hosts: Sequence[Parameters], connect: Connect, timeout_s: float) -> Connection:
    """Return the first connection that `connect` makes, and close all others.

    The next host is tried once one has failed, or has been silent for `STAGGER_S`. A host that
    failed is asked again every `ASK_AGAIN_S` while another is silent. The race takes `timeout_s`
    and the staggering at most. Raises `StoreUnavailable` with every host's reason.
    """
    race = _Race(hosts, connect, timeout_s)
    try:
        return await race.run()
    finally:
        await race.end()


class _Race:
    """`place` is everywhere a host's place in the URL: of two at once the first one wins."""

    def __init__(self, hosts: Sequence[Parameters], connect: Connect, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._connect = connect
        self._deadline = self._loop.time() + timeout_s + STAGGER_S * (len(hosts) - 1)
        self._left = deque(enumerate(hosts))
        self._next_at = 0.0  # when the first one left is tried
        self._running: dict[asyncio.Task[Connection | list[Parameters]], tuple[int, Parameters]]
        self._running = {}
        self._failed: deque[tuple[float, int, Parameters]] = deque()  # and when to ask again
        self._reasons: dict[int, str] = {}

    async def run(self) -> Connection:
        while self._running or self._left:
            now = self._loop.time()
            if now >= self._deadline:
                break
            self._begin_due(now)
            done, _ = await asyncio.wait(
                self._running,
                timeout=max(0.0, self._wake_at() - now),
                return_when=asyncio.FIRST_COMPLETED,
            )
            connection = self._take(done)
            if connection is not None:
                return connection
        for place, parameters in self._running.values():
            self._reasons.setdefault(place, _silence(parameters))
        reasons = dict.fromkeys(self._reasons[place] for place in sorted(self._reasons))
        raise StoreUnavailable("; ".join(reasons) or "no address to connect to")

    async def end(self) -> None:
        """Cancel the attempts that still run, and close what they have connected."""
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

    def _begin_due(self, now: float) -> None:
        while self._failed and self._failed[0][0] <= now and len(self._running) < MAX_AT_ONCE:
            _, place, parameters = self._failed.popleft()
            self._begin(place, parameters)
        if self._left and (now >= self._next_at or not self._running):
            self._begin(*self._left.popleft())
            self._next_at = now + STAGGER_S

    def _wake_at(self) -> float:
        wake_at = self._deadline
        if self._left:
            wake_at = min(wake_at, self._next_at)
        if self._failed and len(self._running) < MAX_AT_ONCE:
            wake_at = min(wake_at, self._failed[0][0])
        return wake_at

    def _begin(self, place: int, parameters: Parameters) -> None:
        if len(self._running) >= MAX_AT_ONCE:
            oldest = next(iter(self._running))
            del self._running[oldest]
            oldest.add_done_callback(_abandon)
            oldest.cancel()
        task = asyncio.create_task(self._attempt(parameters), name="database host")
        self._running[task] = (place, parameters)

    async def _attempt(self, parameters: Parameters) -> Connection | list[Parameters]:
        if needs_look_up(parameters):
            return await addresses(parameters, self._deadline - self._loop.time())
        return await self._connect(parameters)

    def _take(
        self, done: Iterable[asyncio.Task[Connection | list[Parameters]]]
    ) -> Connection | None:
        """Return the connection that an attempt has made; note what became of the others."""
        for task in sorted(done, key=lambda task: self._running[task][0]):
            place, parameters = self._running[task]
            error = task.exception()
            if error is not None and not isinstance(error, StoreUnavailable):
                raise error
            del self._running[task]
            self._next_at = 0.0
            if error is not None:
                self._reasons[place] = str(error)
                self._failed.append((self._loop.time() + ASK_AGAIN_S, place, parameters))
                continue
            result = task.result()
            if not isinstance(result, list):
                return result
            self._left.extendleft((place, each) for each in reversed(result))
        return None


def _abandon(task: asyncio.Task[Connection | list[Parameters]]) -> None:
    if not task.cancelled() and task.exception() is None:
        result = task.result()
        if not isinstance(result, list):
            result.abandon()
