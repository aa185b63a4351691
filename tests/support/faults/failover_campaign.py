"""Failovers of three PostgreSQL machines under Patroni, one after another, under load, and a judge.

`python -m tests.support.faults.failover_campaign` prints how long each of them took; exit status 1
means that a promise broke. docs/high-availability.md has its figures.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from certs_gen.cli import main as certs_gen
from tests.support.crowd import with_clients
from tests.support.database_machines import (
    ADDRESSES,
    DatabaseMachines,
    block,
    can_write,
    database_machines,
    type_on,
)
from tests.support.faults.followers import Followers, Message, differences, log_at
from tests.support.faults.judge import examine
from tests.support.faults.ledger import Ledger, Load
from tests.support.harness import PATIENCE_S, Server, free_port, rows, running_server, targets

SERVERS = 2
ELECTION_S = 2 * PATIENCE_S  # a bound: with default time-outs a partition has taken a minute
NAMES = ("user0", "user1", "user2")  # the clients of each
PACE_S = 0.05  # of each client, between two check-ins
PROGRESS = 40  # check-ins before and after a fault

Fault = Callable[[DatabaseMachines, str], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def switchover(machines: DatabaseMachines, leader: str) -> Iterator[None]:
    """As an administrator does before maintenance."""
    type_on(machines.machines[leader], block("patronictl -c /etc/patroni/config.yml switchover"))
    yield


@contextlib.contextmanager
def postgresql_killed(machines: DatabaseMachines, leader: str) -> Iterator[None]:
    """PostgreSQL and Patroni of the leader end by kill -9."""
    machines.kill(leader, patroni=True)
    yield


@contextlib.contextmanager
def machine_gone(machines: DatabaseMachines, leader: str) -> Iterator[None]:
    """The leader's cable is out."""
    machines.set_link(leader, "down")
    yield
    machines.set_link(leader, "up")


@contextlib.contextmanager
def partition(machines: DatabaseMachines, leader: str) -> Iterator[None]:
    """The leader is cut off from the other two, and the servers still reach it."""
    others = ", ".join(address for name, address in ADDRESSES.items() if name != leader)
    with machines.dropping(leader, f"ip saddr {{ {others} }}", f"ip daddr {{ {others} }}"):
        yield


@contextlib.contextmanager
def machine_lost(machines: DatabaseMachines, leader: str) -> Iterator[None]:
    """The leader ends at once, and its disk with it; a new machine takes its place."""
    machines.lose(leader)
    yield
    machines.replace(leader)


@contextlib.contextmanager
def standby_gone(machines: DatabaseMachines, leader: str) -> Iterator[None]:
    """The cable of the synchronous standby is out. The leader stays, and waits for another one."""
    [standby] = [m.name for m in machines.members(leader) if m.role == "sync_standby"]
    machines.set_link(standby, "down")
    yield
    machines.set_link(standby, "up")


FAULTS: tuple[Fault, ...] = (switchover, postgresql_killed, machine_gone, partition)
LONGER: tuple[Fault, ...] = (*FAULTS, standby_gone)
# The old leader may take the next write, too; with any other fault it seems to take writes.
MAY_STAY: tuple[Fault, ...] = (postgresql_killed, standby_gone)


def described(fault: Fault) -> str:
    return fault.__name__.replace("_", " ")


class FirstWrite:
    """The moment at which one of some machines takes a write, from now on."""

    def __init__(self, machines: DatabaseMachines, names: Iterable[str]) -> None:
        self._machines = machines
        self._at: list[float] = []
        self._found = threading.Event()
        for name in names:
            self.also(name)

    def also(self, name: str) -> None:
        """Look at one more."""
        url = self._machines.url_of(name)
        threading.Thread(target=self._try, args=(url,), daemon=True).start()

    def _try(self, url: str) -> None:
        deadline = time.monotonic() + ELECTION_S
        while not self._found.wait(0.05) and time.monotonic() < deadline:
            if can_write(url):
                self._at.append(time.monotonic())
                self._found.set()

    def wait(self) -> float:
        assert self._found.wait(ELECTION_S), "no machine took a write"
        return min(self._at)


class Pauses:
    """The longest time without a 204 of one load, from now on."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._stopping = threading.Event()
        self._last = time.monotonic()
        self.longest = (self._last, self._last)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        count = self._ledger.acknowledged
        while not self._stopping.wait(0.01):
            now = time.monotonic()
            if self._ledger.acknowledged != count:
                count = self._ledger.acknowledged
                self.longest = max(self.longest, (self._last, now), key=lambda p: p[1] - p[0])
                self._last = now

    def stop(self) -> tuple[float, float]:
        """Return when it began and ended."""
        self._stopping.set()
        self._thread.join(PATIENCE_S)
        return self.longest


@dataclass(frozen=True)
class Failover:
    """One failover, in seconds."""

    fault: str
    elected: float  # from the fault to the first write that the new leader took
    longest: float  # without a 204, over all servers
    behind: float  # from that first write to the last server's first 204

    def __str__(self) -> str:
        return (
            f"{self.fault}: new leader's first write after {self.elected:.2f} s, "
            f"no 204 for {self.longest:.2f} s, "
            f"the first {self.behind:+.2f} s from the new leader's first write"
        )


@dataclass(frozen=True)
class Loss:
    """The log of a leader. No other machine got its events after the number `fork`."""

    old: list[Message]
    fork: int


@dataclass
class Campaign:
    """Servers under load on database machines."""

    machines: DatabaseMachines
    servers: Sequence[Server]
    followers: Followers
    loads: Sequence[Load]  # one for each server
    began_at: int = 0  # the head of the log before the first check-in
    failovers: list[Failover] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows(self.machines.writable_url, "CREATE TABLE IF NOT EXISTS probe ()")

    def go_on(self) -> None:
        """Wait until each server has acknowledged more check-ins."""
        for load in self.loads:
            load.ledger.wait_more(204, PROGRESS)

    def fail_over(self, fault: Fault) -> Failover:
        """Let one fault happen and end; return once everything is as before it."""
        leader = self.machines.leader()
        self.go_on()
        pauses = [Pauses(load.ledger) for load in self.loads]
        began = time.monotonic()
        first = FirstWrite(self.machines, [name for name in ADDRESSES if name != leader])
        with fault(self.machines, leader):
            if fault in MAY_STAY:
                first.also(leader)
            elected = first.wait()
            self.go_on()
            found = [each.stop() for each in pauses]
        self.machines.wait_whole()
        failover = Failover(
            described(fault),
            elected - began,
            max(end - start for start, end in found),
            max(end for _, end in found) - elected,
        )
        self.failovers.append(failover)
        return failover

    def lose_the_newest(self) -> Loss:
        """Have a leader acknowledge what no standby gets, and another machine take its place.

        The replication must be asynchronous.
        """
        leader = self.machines.leader()
        asked, *_ = (name for name in ADDRESSES if name != leader)
        others = ", ".join(address for name, address in ADDRESSES.items() if name != leader)
        self.go_on()
        replication = (
            f"tcp dport 5432 ip saddr {{ {others} }}",
            f"tcp sport 5432 ip daddr {{ {others} }}",
        )
        with self.machines.dropping(leader, *replication):
            self.go_on()
            for load in self.loads:
                load.pause()
            old = log_at(self.machines.url_of(leader))
            self.followers.wait_for(old[-1]["seq"])
            self.machines.set_link(leader, "down")
            first = FirstWrite(self.machines, [name for name in ADDRESSES if name != leader])
            self.machines.release_lock(asked)
            first.wait()
        fork = log_at(self.machines.writable_url)[-1]["seq"]
        for load in self.loads:
            load.go_on()
        self.go_on()
        self.machines.set_link(leader, "up")
        self.machines.wait_whole(synchronous=False)
        return Loss(old, fork)

    def verdict(self) -> list[str]:
        """End the load; return what is wrong with the log, in sentences."""
        for load in self.loads:
            load.stop()
        return examine(merged([load.ledger for load in self.loads]), self.machines.writable_url)

    def told(self, *expected: Message) -> list[str]:
        """After `verdict`: return what is wrong with what followers were told, in sentences.

        They were told `expected`, or by default the log. The last check-in of all comes after that.
        """
        log = self.log()
        self.followers.end(log[-1]["seq"])
        wanted = [*(expected or log), self.log()[-1]]
        return [each for follower in self.followers.all for each in differences(follower, wanted)]

    def log(self) -> list[Message]:
        """Return the log since the campaign began, from the table."""
        return [each for each in log_at(self.machines.writable_url) if each["seq"] > self.began_at]


@contextlib.contextmanager
def campaign(machines: DatabaseMachines, certs: Path, directory: Path) -> Iterator[Campaign]:
    """Two servers with the shipped time-outs; on each, clients whose check-ins have own ids."""
    with contextlib.ExitStack() as stack:
        port = free_port(socket.SOCK_DGRAM)
        servers = [
            stack.enter_context(
                running_server(
                    directory / f"server_{number}",
                    certs,
                    machines.url,
                    prefix=machines.with_names,
                    server={"port": free_port()},
                    announce={"targets": targets(port), "heartbeat_s": 1},
                )
            )
            for number in range(SERVERS)
        ]
        [(head,)] = rows(machines.writable_url, "SELECT coalesce(max(seq), 0) FROM check_in")
        followers = stack.enter_context(Followers(servers, port).running())
        loads = [
            stack.enter_context(Load(certs, server.port, NAMES, fresh=NAMES, pace_s=PACE_S))
            for server in servers
        ]
        yield Campaign(machines, servers, followers, loads, head)


def merged(ledgers: Sequence[Ledger]) -> Ledger:
    """Return one ledger of several, whose keys differ."""
    found = Ledger()
    for ledger in ledgers:
        found.statuses += ledger.statuses
        found.tallies.update(ledger.tallies)
        found.certificates.update(ledger.certificates)
        found.sent += ledger.sent
    return found


# ------------------------------------------------------------------------------------ make failover

ROUNDS = 2
# Everything of the page's configuration that makes a failover faster.
TIME_OUTS = (
    *("ttl", "loop_wait", "retry_timeout", "primary_start_timeout"),
    *("wal_sender_timeout", "wal_receiver_timeout", "wal_retrieve_retry_interval"),
)


def with_default_time_outs(configuration: str) -> str:
    lines, count = re.subn(rf"(?m)^ *({'|'.join(TIME_OUTS)}): .*\n", "", configuration)
    assert count == len(TIME_OUTS)
    return lines


SETUPS: dict[str, dict[str, Any]] = {
    "default time-outs": {"release_silent": False, "edit": with_default_time_outs},
    "patroni.yml": {"release_silent": False},
    "patroni.yml and release-silent-leader": {},
}


def main() -> int:
    """Run every fault in turn with each setup. Print a table, and what is wrong."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # machines and networks end, too
    wrong: list[str] = []
    longest: defaultdict[str, dict[str, str]] = defaultdict(dict)
    behind: list[float] = []
    for setup, options in SETUPS.items():
        with tempfile.TemporaryDirectory(prefix="status-failover-") as name:
            directory = Path(name)
            directory.chmod(0o755)  # PostgreSQL's user reads there
            with contextlib.redirect_stdout(io.StringIO()):
                assert certs_gen(["--out", str(directory / "set")]) == 0
            emails = {name: f"{name}@example.com" for name in NAMES}
            certs = with_clients(directory / "set", directory / "certs", emails)
            with (
                database_machines(directory, **options) as machines,
                campaign(machines, certs, directory) as running,
            ):
                for fault in (*LONGER * ROUNDS, machine_lost):
                    print(f"{setup}: {running.fail_over(fault)}", file=sys.stderr, flush=True)
                wrong += [f"{setup}: {each}" for each in running.verdict() + running.told()]
                behind += [each.behind for each in running.failovers]
                for fault in (*LONGER, machine_lost):
                    name = described(fault)
                    found = [each.longest for each in running.failovers if each.fault == name]
                    longest[name][setup] = f"{min(found):.1f} to {max(found):.1f}"
    load = f"load average {os.getloadavg()[0]:.1f}"
    print(f"{datetime.date.today():%-d %B %Y}, {os.cpu_count()} cores, {load}, {ROUNDS} rounds")
    print(f"| seconds without a 204 | {' | '.join(SETUPS)} |")
    print("|---" * (len(SETUPS) + 1) + "|")
    for name, found_by in longest.items():
        print(f"| {name} | {' | '.join(found_by[setup] for setup in SETUPS)} |")
    print(f"The servers went on {max(behind):.2f} s or less after the new leader's first write.")
    for each in wrong:
        print(each)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
