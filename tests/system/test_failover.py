"""Several hosts in the database's URL, as libpq names them; and connecting that is given up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import re
import shutil
import socket
import subprocess
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiopg.connection
import pytest

from tests.support.faults.tcp_relay import Relay
from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    Postgres,
    StartServer,
    require,
    rows,
    wait_until,
)
from tests.support.namespaces import check_in_from, network_of_its_own
from tornado_status.errors import ConfigError, StoreUnavailable
from tornado_status.runtime.resolver import NameNotFound
from tornado_status.store import failover
from tornado_status.store.database import APPLICATION_NAME, Connection, parse_url

LONG_S = 3600.0  # whoever waits for a silent host does not end within a test

OURS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"


@contextlib.contextmanager
def silent_host() -> Iterator[int]:
    """A port on loopback where every packet is dropped without a word."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server((LOOPBACK, 0), backlog=0))
        port: int = full.getsockname()[1]
        for _ in range(8):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex((LOOPBACK, port))
        yield port


def url_of(ports: Sequence[int], database_url: str) -> str:
    name = re.sub(r".*/(\w+)\?.*", r"\1", database_url)
    places = ",".join(f"{LOOPBACK}:{port}" for port in ports)
    return f"postgresql://postgres@{places}/{name}?target_session_attrs=read-write"


def closed_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def port_of(url: str, timeout_s: float = LONG_S, *, writable: bool = True) -> str:
    """Connect; return the port that it was. Nothing else is left open meanwhile."""

    waiting: asyncio.Task[Any] | None = None

    async def connect() -> str:
        before = open_to(url)
        connection = await Connection.open(parse_url(url), timeout_s, writable=writable)
        assert open_to(url) == before + 1
        assert len(asyncio.all_tasks()) == len({asyncio.current_task(), waiting})
        port = connection.parameters["port"]
        await connection.close()
        assert open_to(url) == before
        return port

    async def patiently() -> str:
        nonlocal waiting
        waiting = asyncio.current_task()
        return await asyncio.wait_for(connect(), PATIENCE_S)

    return asyncio.run(patiently())


def open_to(url: str) -> int:
    """Count this process's descriptors that are connected, or connecting, to a URL's ports."""
    gc.collect()
    ours = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            ours.add(path.readlink().name)
    ports = {int(port) for port in re.findall(rf"{LOOPBACK}:(\d+)", url)}
    found = 0
    for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        port = int(fields[2].rpartition(":")[2], 16)
        found += port in ports and f"socket:[{fields[9]}]" in ours
    return found


def test_a_silent_host_delays_nobody(database_url: str) -> None:
    """The next one is begun beside it."""
    with silent_host() as silent, silent_host() as other, Relay(lambda: database_url) as relay:
        assert port_of(url_of([silent, other, relay.port], database_url)) == str(relay.port)


def test_a_host_that_accepts_and_says_nothing_delays_nobody(database_url: str) -> None:
    """As one whose PostgreSQL is stopped in its tracks."""
    with Relay(lambda: database_url) as frozen, Relay(lambda: database_url) as relay:
        frozen.freeze()
        assert port_of(url_of([frozen.port, relay.port], database_url)) == str(relay.port)


def test_a_server_starts_beside_a_host_that_a_firewall_hides(
    start_server: StartServer, database_url: str
) -> None:
    """A dropped packet costs no connect_timeout_s at the start."""
    require("root and nftables, for a firewall", shutil.which("nft") is not None, "run as root")
    with network_of_its_own() as enter:
        rules = (
            "add table inet hide",
            "add chain inet hide out { type filter hook output priority 0; }",
            "add rule inet hide out ip daddr 127.0.0.9 drop",
        )
        for rule in rules:
            subprocess.run([*enter, "nft", rule], check=True, timeout=PATIENCE_S)
        server = start_server(
            url=database_url.replace("host=", "host=127.0.0.9,"),
            prefix=enter,
            database={"connect_timeout_s": LONG_S},
        )
        assert check_in_from(enter, server) == "204"
        assert server.stop() == 0


def test_the_order_is_a_preference(database_url: str) -> None:
    """Of two that answer, the first; behind one that refuses, too."""
    with Relay(lambda: database_url) as first, Relay(lambda: database_url) as second:
        url = url_of([closed_port(), first.port, second.port], database_url)
        assert port_of(url) == str(first.port)


def test_a_read_only_host_is_passed_over(database_url: str, own_postgres: Postgres) -> None:
    """A standby answers first and is not fit."""
    name = re.sub(r".*/(\w+)\?.*", r"\1", database_url)
    rows(own_postgres.url, f"CREATE DATABASE {name}")
    rows(own_postgres.url, "ALTER SYSTEM SET default_transaction_read_only = on")
    rows(own_postgres.url, "SELECT pg_reload_conf()")
    with Relay(lambda: own_postgres.url) as standby, Relay(lambda: database_url) as relay:
        url = url_of([standby.port, relay.port], database_url)
        assert port_of(url) == str(relay.port)
        # Without libpq's own check: ours.
        assert port_of(url.partition("?")[0]) == str(relay.port)


def test_who_only_reads_prefers_the_primary_too(database_url: str, own_postgres: Postgres) -> None:
    """However slow it is: a standby would be mistaken for it. Alone, it is read."""
    name = re.sub(r".*/(\w+)\?.*", r"\1", database_url)
    rows(own_postgres.url, f"CREATE DATABASE {name}")
    rows(own_postgres.url, "ALTER SYSTEM SET default_transaction_read_only = on")
    rows(own_postgres.url, "SELECT pg_reload_conf()")
    with Relay(lambda: own_postgres.url) as standby, Relay(lambda: database_url) as primary:
        primary.slow(2 * failover.STAGGER_S)
        url, _, _ = url_of([primary.port, standby.port], database_url).partition("?")
        assert port_of(url, writable=False) == str(primary.port)
        url, _, _ = url_of([closed_port(), standby.port], database_url).partition("?")
        assert port_of(url, writable=False) == str(standby.port)


def test_every_host_says_why(database_url: str) -> None:
    """In the order of the URL, and within the time."""
    with silent_host() as silent:
        url = url_of([silent, closed_port()], database_url)
        with pytest.raises(StoreUnavailable, match=r"does not answer; .*refused"):
            port_of(url, timeout_s=0.5)


def test_attempts_are_bounded(database_url: str) -> None:
    """However many hosts there are, and however long they are silent."""

    async def connect(url: str) -> int:
        opening = asyncio.create_task(Connection.open(parse_url(url), LONG_S))
        most = 0
        for _ in range(100):
            await asyncio.sleep(0.002)
            most = max(most, len(asyncio.all_tasks()) - 2)
        opening.cancel()
        await asyncio.wait({opening})
        assert opening.cancelled()
        return most

    with silent_host() as silent, pytest.MonkeyPatch.context() as patch:
        patch.setattr(failover, "STAGGER_S", 0.001)
        before = open_to(url := url_of([silent] * 50, database_url))  # our own, which fill it
        most = asyncio.run(connect(url))
        assert 1 < most <= failover.MAX_AT_ONCE + 1  # the one that gives way
        assert open_to(url) == before


class Login:
    """In place of a connection: nothing is open."""

    def abandon(self) -> None:
        pass


def race(answer: Callable[[str, int], float | str], *names: str) -> tuple[Any, dict[str, int]]:
    """Let hosts race; return the winner, and how often each was asked.

    `answer` of a host and how often it was asked before: seconds until it has logged in, or why it
    refuses.
    """

    async def run() -> tuple[Any, dict[str, int]]:
        asked = dict.fromkeys(names, 0)

        async def connect(parameters: failover.Parameters) -> Any:
            name = parameters["host"]
            asked[name] += 1
            found = answer(name, asked[name] - 1)
            if isinstance(found, str):
                raise StoreUnavailable(found)
            await asyncio.sleep(found)
            return Login()

        hosts = [{"host": name, "hostaddr": LOOPBACK, "port": "5432"} for name in names]
        return await failover.first(hosts, connect, PATIENCE_S), asked

    return asyncio.run(run())


def test_a_slow_login_is_waited_for() -> None:
    """A host that was just tried is not tried a second time beside itself, nor is a silent one."""
    _, asked = race(lambda name, _: LONG_S if name == "silent" else 1.0, "silent", "slow")
    assert asked == {"silent": 1, "slow": 1}


def test_a_read_only_host_is_asked_again_while_another_is_silent() -> None:
    """It is the standby of a dead primary, and is promoted meanwhile."""

    def answer(name: str, before: int) -> float | str:
        return LONG_S if name == "dead" else "the database is read-only" if before < 2 else 0.0

    _, asked = race(answer, "dead", "standby")
    assert asked == {"dead": 1, "standby": 3}


def test_a_name_is_looked_up_again_while_a_host_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name server may have been away for a moment."""
    lookups = itertools.count()

    async def look_up(_: str, port: int, *, timeout_s: float) -> list[Any]:
        if next(lookups) < 2:
            raise NameNotFound("no answer from the name server")
        return [(socket.AF_INET, (LOOPBACK, port))]

    async def connect(parameters: failover.Parameters) -> Any:
        await asyncio.sleep(LONG_S if parameters["host"] == "silent" else 0)
        return parameters["host"]

    monkeypatch.setattr(failover, "look_up", look_up)
    silent = {"host": "silent", "hostaddr": LOOPBACK, "port": "5432"}
    hosts = [silent, {"host": "standby", "port": "5432"}]
    race = failover.first(hosts, connect, LONG_S)
    found: Any = asyncio.run(asyncio.wait_for(race, PATIENCE_S))
    assert found == "standby"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [{}]),
        ({"port": "1"}, [{"port": "1"}]),
        ({"host": "a"}, [{"host": "a", "port": "5432"}]),
        ({"host": "a,b"}, [{"host": "a", "port": "5432"}, {"host": "b", "port": "5432"}]),
        (
            {"host": "a,/b", "port": "1,"},
            [{"host": "a", "port": "1"}, {"host": "/b", "port": "5432"}],
        ),
        ({"host": "a,b", "port": "7"}, [{"host": "a", "port": "7"}, {"host": "b", "port": "7"}]),
        (
            {"host": "a,b", "hostaddr": "::1,127.0.0.1", "user": "u"},
            [
                {"host": "a", "hostaddr": "::1", "port": "5432", "user": "u"},
                {"host": "b", "hostaddr": "127.0.0.1", "port": "5432", "user": "u"},
            ],
        ),
    ],
)
def test_hosts_are_split_as_libpq_does(
    given: dict[str, str], expected: list[dict[str, str]]
) -> None:
    """One port is for all hosts; several must be as many as hosts."""
    assert failover.split(given) == expected


@pytest.mark.parametrize(
    "given", [{"host": "a,b", "port": "1,2,3"}, {"host": "a,b", "hostaddr": "::1"}]
)
def test_hosts_that_do_not_add_up_are_refused(given: dict[str, str]) -> None:
    """As libpq does; it would say so only for one that it connects to."""
    with pytest.raises(ConfigError, match="as many ports or addresses as hosts"):
        failover.split(given)


def test_a_link_local_address_keeps_its_link() -> None:
    """Without it the kernel does not know the link (RFC 4007)."""
    found = asyncio.run(failover.addresses({"host": "fe80::1%lo", "port": "5432"}, PATIENCE_S))
    assert [each["hostaddr"] for each in found] == [f"fe80::1%{socket.if_nametoindex('lo')}"]


def test_connecting_can_be_given_up_at_any_moment(database_url: str) -> None:
    """A cancellation in any turn of the loop leaves no descriptor and no backend."""

    async def give_up_after(turns: int, url: str) -> bool:
        opening = asyncio.create_task(Connection.open(parse_url(url), PATIENCE_S))
        for _ in range(turns):
            if opening.done():
                break
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait({opening})
        if not opening.cancelled():
            await opening.result().close()
            return True
        return False

    async def give_up(url: str) -> None:
        turns, finished = 0, 0
        while finished < 3:
            finished += await give_up_after(turns, url)
            turns += 1 + turns // 10
            assert open_to(url) == 0, f"after {turns} turns"

    with Relay(lambda: database_url) as relay:
        url = url_of([closed_port(), relay.port], database_url)
        asyncio.run(asyncio.wait_for(give_up(url), PATIENCE_S))
    wait_until(lambda: rows(database_url, OURS, APPLICATION_NAME) == [(0,)], "the backends to end")


def test_closing_twice_leaves_others_alone(database_url: str) -> None:
    """By then the descriptor may be a client's, which would never be heard again."""

    async def close_twice() -> bool:
        loop = asyncio.get_running_loop()
        connection = await Connection.open(parse_url(database_url), PATIENCE_S)
        number = connection._raw.raw.fileno()
        await connection.close()
        ours, theirs = socket.socketpair()
        with theirs:
            given = ours.detach()
            os.dup2(given, number)
            if given != number:
                os.close(given)
            try:
                loop.add_reader(number, lambda: None)
                await connection.close()
                return loop.remove_reader(number)
            finally:
                os.close(number)

    assert asyncio.run(close_twice())


@pytest.mark.parametrize("nth", [1, 2])
def test_a_cancellation_that_comes_with_the_answer_leaves_nothing_open(
    database_url: str, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to Python 3.11 `wait_for` loses it: with the connection made, or with the first answer."""
    ready = aiopg.connection.Connection._ready
    answers = 0

    def cancel_with_the_answer(weak: weakref.ref[Any]) -> None:
        nonlocal answers
        waiter = weak()._waiter  # type: ignore[union-attr] # it is alive
        before = waiter.done()
        ready(weak)
        if waiter.done() and not before:
            answers += 1
            if answers == nth:
                for task in asyncio.all_tasks() - {main}:
                    task.cancel()

    monkeypatch.setattr(aiopg.connection.Connection, "_ready", staticmethod(cancel_with_the_answer))
    main: asyncio.Task[None] | None = None

    async def open_and_lose(url: str) -> None:
        nonlocal main
        main = asyncio.current_task()
        opening = asyncio.create_task(Connection.open(parse_url(url), PATIENCE_S))
        await asyncio.wait({opening})
        assert opening.cancelled()
        assert open_to(url) == 0

    with Relay(lambda: database_url) as relay:
        asyncio.run(open_and_lose(url_of([relay.port], database_url)))
    assert answers >= nth
