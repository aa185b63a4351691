"""sd_notify: on a real datagram socket, as a service manager would listen."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.harness import (
    PATIENCE_S,
    Postgres,
    Server,
    StartServer,
    free_port,
    running_server,
)
from tornado_status.runtime.systemd import SystemdNotifier


class Manager:
    """The end of a service manager."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.socket.settimeout(PATIENCE_S)

    def one(self) -> dict[str, str]:
        """The next message, by its names."""
        lines = self.socket.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def wait_for(self, matches: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """The next message that matches."""
        deadline = time.monotonic() + PATIENCE_S
        while not matches(message := self.one()):
            assert time.monotonic() < deadline, message
        return message

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = f"{tmp_path}/notify" if request.param == "path" else f"@status-{os.getpid()}"
    with Manager(name) as listening:
        yield listening


def test_systemd_is_told_all_of_it(manager: Manager, start_server: StartServer) -> None:
    """Starting, ready, still turning, reloading, ready again, stopping."""
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"}
    server = start_server(wait=False, environment=environment)
    first = manager.one()
    assert int(first["EXTEND_TIMEOUT_USEC"]) > 0
    assert first["WATCHDOG"] == "1"
    manager.wait_for(lambda message: message.get("READY") == "1")
    for _ in range(3):
        beat = manager.wait_for(lambda message: message.get("WATCHDOG") == "1")
        assert "EXTEND_TIMEOUT_USEC" not in beat
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    server.process.send_signal(signal.SIGHUP)
    reloading = manager.wait_for(lambda message: message.get("RELOADING") == "1")
    assert int(reloading["MONOTONIC_USEC"]) >= before
    manager.wait_for(lambda message: message.get("READY") == "1")
    server.process.send_signal(signal.SIGTERM)
    manager.wait_for(lambda message: message.get("STOPPING") == "1")
    assert server.process.wait(PATIENCE_S) == 0


def test_a_server_without_its_database_is_not_ready_and_not_killed(
    manager: Manager, start_server: StartServer, own_postgres: Postgres
) -> None:
    """It asks for more time and says why; once the database is there it is ready."""
    own_postgres.stop()
    start_server(
        url=own_postgres.url,
        wait=False,
        server={"port": free_port()},
        environment={"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"},
    )
    messages = [manager.one() for _ in range(10)]
    assert all("EXTEND_TIMEOUT_USEC" in message for message in messages)
    assert not any("READY" in message for message in messages)
    [first, *_] = [message["STATUS"] for message in messages if "STATUS" in message]
    assert first == "not connected yet"
    own_postgres.start()
    ready = manager.wait_for(lambda message: message.get("READY") == "1")
    assert ready["STATUS"] == "recording check-ins"  # at once, for who waited for the start


def test_a_failed_reload_ends_ready_again(
    tmp_path: Path, start_server: StartServer, certs: Path
) -> None:
    """The old keys stay in force, and systemd's reload comes to its end."""
    key = tmp_path / "announcer.key"
    key.write_bytes((certs / "announcer.key").read_bytes())
    key.with_suffix(".crt").write_bytes((certs / "announcer.crt").read_bytes())
    with Manager(f"{tmp_path}/notify") as manager:
        server = start_server(
            announce={"signing_key": str(key)}, environment={"NOTIFY_SOCKET": manager.address}
        )
        manager.wait_for(lambda message: message.get("READY") == "1")
        key.write_text("no key")
        manager.wait_for(lambda message: message.get("RELOADING") == "1")
        manager.wait_for(lambda message: message.get("READY") == "1")
        server.wait_event("reload failed, keeping the previous certificates")


def test_postgresql_is_not_given_our_line_to_systemd(tmp_path: Path, certs: Path) -> None:
    """It would say READY=1 in our place."""
    with Manager(f"{tmp_path}/notify") as manager:
        environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000000"}
        with running_server(
            tmp_path / "server", certs, "embedded", environment=environment
        ) as server:
            path = Path(server.settings["database"]["data_dir"]) / "postmaster.pid"
            pid = int(path.read_text().split("\n", 1)[0])
            inherited = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"PATH=" in inherited
            assert b"NOTIFY_SOCKET" not in inherited
            assert b"WATCHDOG" not in inherited


def test_a_socket_that_nobody_listens_on_is_told_once(
    start_server: StartServer, tmp_path: Path
) -> None:
    """And the server serves."""
    server: Server = start_server(environment={"NOTIFY_SOCKET": f"{tmp_path}/nobody"})
    assert server.request("POST", "/api/client").status == 204
    assert len(server.events("NOTIFY_SOCKET does not work")) == 1


@pytest.mark.parametrize(
    ("environment", "watched"),
    [
        ({"WATCHDOG_USEC": "1000000"}, True),
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}, True),
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, False),  # meant for another process
        ({"WATCHDOG_USEC": "0"}, False),
        ({"WATCHDOG_USEC": "soon"}, False),
        ({}, False),
    ],
)
def test_the_watchdog_is_fed_where_it_watches_us(
    tmp_path: Path, environment: dict[str, str], watched: bool
) -> None:
    """And only while all is well: otherwise systemd shall restart us."""
    with Manager(f"{tmp_path}/notify") as manager:
        given = {"NOTIFY_SOCKET": manager.address, **environment}
        notifier = SystemdNotifier.from_environment(given)
        assert given == {}
        notifier.ready("well")
        notifier.beat(False, "ill")
        notifier.beat(True, "well")
        notifier.close()
        assert manager.one() == {"READY": "1", "STATUS": "well"}
        assert manager.one() == {"STATUS": "ill"}
        expected = {"STATUS": "well"}
        assert manager.one() == ({"WATCHDOG": "1", **expected} if watched else expected)


@pytest.mark.parametrize("address", ["", "vsock:2:1", "relative"])
def test_without_a_manager_nothing_is_said(address: str) -> None:
    """As on a terminal, in a container, or with one that speaks in ways unknown to us."""
    notifier = SystemdNotifier.from_environment({"NOTIFY_SOCKET": address})
    notifier.ready("well")
    with notifier.reloading():
        notifier.beat(True, "well")
    notifier.stopping()
    notifier.close()


def fill(notifier: SystemdNotifier) -> None:
    """Send more than the kernel queues for a manager that does not read."""
    for number in range(1000):
        notifier.beat(True, str(number))


def test_a_manager_that_does_not_read_delays_nothing(tmp_path: Path) -> None:
    """Messages that the kernel does not take are dropped; a later beat sends the newest status."""
    with Manager(f"{tmp_path}/notify") as manager:
        notifier = SystemdNotifier.from_environment({"NOTIFY_SOCKET": manager.address})
        fill(notifier)
        queued = []
        manager.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                queued.append(manager.one()["STATUS"])
        assert 0 < len(queued) < 1000
        assert "999" not in queued
        notifier.beat(True, "999")
        assert manager.one()["STATUS"] == "999"
        notifier.close()


def test_ready_is_not_lost(tmp_path: Path) -> None:
    """If READY=1 does not fit, at the start or after a reload, the next beat sends it, once."""
    with Manager(f"{tmp_path}/notify") as manager:
        notifier = SystemdNotifier.from_environment({"NOTIFY_SOCKET": manager.address})
        fill(notifier)
        notifier.ready("well")
        for _ in range(2):
            manager.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    assert "READY" not in manager.one()
            notifier.beat(True, "well")
            assert manager.one()["READY"] == "1"
            notifier.beat(True, "well")
            notifier.beat(True, "ill")
            assert manager.one() == {"STATUS": "ill"}
            with notifier.reloading():
                fill(notifier)
        notifier.close()
