"""Connections to PostgreSQL through aiopg: opened and closed, errors turned into our own.

Knows nothing of check-ins. Raises `StoreUnavailable` and `StatementFailed`, never a psycopg2
exception.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import aiopg
import psycopg2
import psycopg2.extensions

from tornado_status.errors import ConfigError, StoreError, StoreUnavailable
from tornado_status.store import failover
from tornado_status.store.failover import Parameters
from tornado_status.store.remote_database import authenticated

Row = tuple[Any, ...]
Values = Sequence[object] | Mapping[str, object]

APPLICATION_NAME = "tornado_status"

# With these the kernel notices a peer that vanished silently (frozen network, pulled plug) well
# before TCP's own two hours. Values as libpq reads them.
LIVENESS = {
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}


_ADDRESS = re.compile(
    r'^connection to server (?:at|on socket) ".*?"(?: \(.*?\))?(?:, port \d+)? failed: '
)
_IS_IT_RUNNING = re.compile(r" Is the server running (?:locally|on that host) and accepting .*\?$")


class StatementFailed(StoreError):
    """PostgreSQL refused a statement and rolled it back; the connection is still good.

    `sqlstate` is the five-character code (PostgreSQL documentation, appendix A), or "".
    """

    def __init__(self, message: str, sqlstate: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class _ReadOnly(StoreUnavailable):
    """The server answers, and accepts no writes."""


def parse_url(url: str) -> Parameters:
    """Return libpq's connection parameters of a URL. Raises `ConfigError` without the password."""
    try:
        parameters = psycopg2.extensions.parse_dsn(url)
    except psycopg2.ProgrammingError as error:
        raise ConfigError("database.url: not a PostgreSQL connection URL") from error
    return {name: str(value) for name, value in parameters.items()}


class Connection:
    """One aiopg connection, always in autocommit (the driver's only mode when asynchronous)."""

    def __init__(self, raw: aiopg.Connection, parameters: Parameters) -> None:
        self._raw = raw
        self._cursor: aiopg.Cursor | None = None  # of all statements
        # One timer of all statements too. It comes at a statement's deadline or earlier.
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = math.inf  # of the statement under way, in the loop's time
        self._timed_out = False
        self._abandoned = False
        self.parameters = parameters

    @classmethod
    async def open(
        cls, parameters: Parameters, timeout_s: float, *, writable: bool = True
    ) -> Connection:
        """Connect to the first host that answers; see `failover.first` for the order and the time.

        A standby or a read-only server is skipped; without `writable` it is used if there is no
        other. Raises `StoreUnavailable` with the reason of each host, and `ConfigError` if hosts
        and ports do not match.
        """
        read_only = False

        async def connect(candidate: Parameters) -> Connection:
            nonlocal read_only
            connection = await cls.open_one(candidate, timeout_s)
            try:
                await connection._check_writable(timeout_s)
            except _ReadOnly:
                read_only = True
                raise
            return connection

        async def connect_to_any(candidate: Parameters) -> Connection:
            return await cls.open_one(candidate, timeout_s)

        try:
            return await failover.first(failover.split(parameters), connect, timeout_s)
        except StoreUnavailable:
            if writable or not read_only:
                raise
        return await failover.first(failover.split(parameters), connect_to_any, timeout_s)

    @classmethod
    async def open_one(cls, parameters: Parameters, timeout_s: float) -> Connection:
        """Connect to the one address of the parameters. Raises `StoreUnavailable`.

        A database that is not local must prove its identity, unless the parameters say otherwise.
        """
        parameters = authenticated(parameters)
        settings: dict[str, Any] = {"application_name": APPLICATION_NAME, **LIVENESS, **parameters}
        if parameters.get("host", "").startswith("/"):
            settings = {name: settings[name] for name in settings if name not in LIVENESS}
        try:
            async with asyncio.timeout(timeout_s):
                raw = await aiopg.connect(
                    None,
                    timeout=cast(float, None),  # of statements: `execute` has a cheaper one
                    enable_json=False,
                    enable_hstore=False,  # else a query at each connect
                    enable_uuid=False,
                    **settings,
                )
        except TimeoutError as error:
            raise _unavailable(parameters, "the database does not answer") from error
        except (psycopg2.Error, OSError) as error:
            raise _unavailable(parameters, _one_line(error)) from error
        except asyncio.CancelledError as error:
            if _is_own_cancellation():
                raise
            raise _unavailable(parameters, "the database closed the connection") from error
        connection = cls(raw, parameters)
        try:
            _raise_swallowed_cancellation()
        except asyncio.CancelledError:
            connection.abandon()
            raise
        return connection

    async def _check_writable(self, timeout_s: float) -> None:
        """Close it and raise `StoreUnavailable` if it accepts no writes."""
        try:
            (read_only,) = await self.fetch_one("SHOW transaction_read_only", timeout_s=timeout_s)
        except StatementFailed as error:
            self.abandon()
            raise _unavailable(self.parameters, str(error)) from error
        except BaseException:
            self.abandon()  # a cancellation that comes with the answer leaves it open
            raise
        if read_only != "off":
            self.abandon()
            raise _ReadOnly(f"{failover.shown(self.parameters)}: the database is read-only")

    @property
    def usable(self) -> bool:
        """False once the connection is known to be lost. Nothing sent after that arrives."""
        return not self._raw.closed

    @property
    def backend_pid(self) -> int:
        return cast(int, self._raw.raw.get_backend_pid())

    async def close(self) -> None:
        self.abandon()

    def abandon(self) -> None:
        """Close it, at once. Idempotent: by then its descriptor may be another connection's."""
        if not self._abandoned:
            self._abandoned = True
            if self._timer is not None:
                self._timer.cancel()
            self._raw.close()

    async def notification(self) -> tuple[int, str, str]:
        """Wait for a NOTIFY on a channel that was LISTENed to: backend's pid, channel, payload.

        May wait beside a statement that runs. Raises `StoreUnavailable` once the connection is
        lost.
        """
        try:
            notify = await self._raw.notifies.get()
        except psycopg2.Error as error:
            raise _unavailable(self.parameters, _one_line(error)) from error
        return notify.pid, notify.channel, notify.payload

    async def execute(
        self,
        sql: str,
        parameters: Values | None = None,
        *,
        timeout_s: float = 5.0,
        durable: bool = False,
    ) -> list[Row]:
        """Run `sql` (several statements without parameters are one transaction); return the rows.

        The rows are the last statement's. Raises `StatementFailed` if PostgreSQL refused and
        rolled back. Raises `StoreUnavailable` if the connection is lost or too slow: PostgreSQL may
        or may not have run `sql`, and the connection is closed. With `durable` that is also raised
        if PostgreSQL has committed and warned.
        """
        self._start_timeout(timeout_s)
        try:
            del self._raw.raw.notices[:]
            cursor = self._cursor
            if cursor is None:
                cursor = self._cursor = await self._raw.cursor()
            await cursor.execute(sql, parameters)
            _raise_swallowed_cancellation()
            rows = [] if cursor.description is None else await cursor.fetchall()
            if durable and _has_warning(self._raw.raw):
                # If the wait for a synchronous standby is cancelled, the commit is on this
                # server only. PostgreSQL says so by a warning, translated and without a code.
                await self.close()
                raise _unavailable(
                    self.parameters, f"the database warns: {self._raw.raw.notices[0]}"
                )
            return cast(list[Row], rows)
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            if error.pgcode and self._alive():
                raise StatementFailed(_one_line(error), error.pgcode) from error
            await self.close()
            reason = "the database does not answer in time" if self._timed_out else _one_line(error)
            raise _unavailable(self.parameters, reason) from error
        except psycopg2.Error as error:
            if self._alive():
                raise StatementFailed(_one_line(error), error.pgcode or "") from error
            await self.close()
            raise _unavailable(self.parameters, _one_line(error)) from error
        except AssertionError as error:
            # aiopg asserts its own state, which a backend that dies between two polls breaks.
            await self.close()
            raise _unavailable(self.parameters, "the database closed the connection") from error
        except asyncio.CancelledError as error:
            # aiopg reports a server-side statement_timeout as a cancellation.
            if _is_own_cancellation():
                await (
                    self.close()
                )  # the statement may still run: the connection must not be used again
                raise
            if self._alive():
                raise StatementFailed("canceled by the database", "57014") from error
            await self.close()
            raise _unavailable(self.parameters, "the database closed the connection") from error
        finally:
            self._deadline = math.inf

    def _start_timeout(self, timeout_s: float) -> None:
        """Close the connection if the statement that begins now takes longer."""
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + timeout_s
        if self._timer is not None:
            if self._timer.when() <= self._deadline:
                return
            self._timer.cancel()
        self._timer = loop.call_at(self._deadline, self._on_timeout)

    def _on_timeout(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        if self._deadline <= loop.time():
            self._timed_out = True
            self.abandon()
        elif self._deadline < math.inf:
            self._timer = loop.call_at(self._deadline, self._on_timeout)

    async def fetch_one(
        self,
        sql: str,
        parameters: Values | None = None,
        *,
        timeout_s: float = 5.0,
        durable: bool = False,
    ) -> Row:
        """Run `sql` and return its first row. Raises `StatementFailed` if there is none."""
        rows = await self.execute(sql, parameters, timeout_s=timeout_s, durable=durable)
        if not rows:
            raise StatementFailed("the statement returned no row", "")
        return rows[0]

    def _alive(self) -> bool:
        return not self._raw.closed and not self._raw.raw.isexecuting()


class Pool:
    """A few connections for reading, opened when needed and kept."""

    def __init__(self, size: int, connect_timeout_s: float, acquire_timeout_s: float) -> None:
        self._parameters: Parameters | None = None
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(size)
        self._connect_timeout_s = connect_timeout_s
        self._acquire_timeout_s = acquire_timeout_s

    async def point_to(self, parameters: Parameters) -> None:
        """Connect to this one address from now on: the writer found it to be the primary."""
        if parameters != self._parameters:
            self._parameters = parameters
            await self.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Borrow a connection. Raises `StoreUnavailable` if none is free in time."""
        if self._parameters is None:
            raise StoreUnavailable("the database is not connected yet")
        try:
            async with asyncio.timeout(self._acquire_timeout_s):
                await self._free.acquire()
        except TimeoutError as error:
            raise StoreUnavailable("too many reads at once") from error
        connection: Connection | None = None
        try:
            while self._idle and connection is None:
                candidate = self._idle.pop()
                connection = candidate if candidate.usable else None
            if connection is None:
                connection = await Connection.open_one(self._parameters, self._connect_timeout_s)
            yield connection
        finally:
            self._free.release()
            if connection is not None and connection.usable:
                if connection.parameters == self._parameters and connection._alive():
                    self._idle.append(connection)
                else:
                    await connection.close()

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()


def _is_own_cancellation() -> bool:
    task = asyncio.current_task()
    return task is not None and bool(task.cancelling())


def _raise_swallowed_cancellation() -> None:
    """Up to Python 3.11 `asyncio.wait_for`, which aiopg waits with, loses a cancellation that
    comes together with the result (python/cpython issue 81839)."""
    if _is_own_cancellation():
        raise asyncio.CancelledError


def _has_warning(raw: psycopg2.extensions.connection) -> bool:
    """Return whether the last statement came with a warning: see `client_min_messages`.

    Raises `psycopg2.OperationalError` if the connection has ended since.
    """
    raw.poll()  # waits for nothing; what came with the last packet is in `notices` only after it
    return bool(raw.notices)


def _unavailable(parameters: Parameters, text: str) -> StoreUnavailable:
    return StoreUnavailable(f"{failover.shown(parameters)}: {text}")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    # libpq names the address, as our own message does for every error.
    return _IS_IT_RUNNING.sub("", _ADDRESS.sub("", text)) or type(error).__name__
