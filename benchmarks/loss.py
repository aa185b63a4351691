"""The events that are missing before any repair: `python -m benchmarks.loss`.

A simulation: check-ins come at random, a commit takes `COMMIT_S`, and a network loses datagrams.
The announcer with its encoder and the listener with its sequence are the real ones. Each event that
the listener had to fetch was missing. The clock is simulated and the seed is fixed, so that a run
of the same code has the same result. It writes the table into docs/protocol.md.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import platform
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import tables
from benchmarks.programs import exit_status
from listeners.order.sequence import EventSequence, FetchEvents
from tornado_status.announce import Announcer
from tornado_status.config.settings import AnnounceSettings
from tornado_status.model.records import CommittedBatch, Event, EventPage
from tornado_status.wire.datagram import Datagram, decode_json

COMMAND = "python -m benchmarks.loss"
PAGE = Path(__file__).parents[1] / "docs" / "protocol.md"
RATES = (1, 10, 100, 1000)  # check-ins a second
REPEATS = (0, AnnounceSettings().repeat)
EVENTS = 50_000  # a cell of the table; the smallest share that shows is one of them
USERS = 1000
COMMIT_S = 0.001  # about as measured: docs/scaling.md, Batches
BURST_LOSS = 0.05  # of the datagrams, also if they are lost in bursts
LOG_ID = uuid.UUID(int=1)
SOURCE = ("10.0.0.1", 6666)
BEGIN = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)

Network = Callable[[random.Random], Iterator[bool]]  # whether each datagram is lost


@dataclass(slots=True)
class MemorySink:
    """Keeps the datagrams of one announcement."""

    target: str = "simulated"
    via: str = "simulated"
    encoding: str = "json"
    problem: OSError | None = None
    payloads: list[bytes] = field(default_factory=list)

    def send(self, payload: bytes, /) -> bool:
        self.payloads.append(payload)
        return True

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Heard:
    """A datagram, and when it is sent."""

    at_s: float
    datagram: Datagram


def random_loss(share: float) -> Network:
    def network(chance: random.Random) -> Iterator[bool]:
        while True:
            yield chance.random() < share

    return network


def burst_loss(length: int) -> Network:
    begins = BURST_LOSS / (length - BURST_LOSS * (length - 1))

    def network(chance: random.Random) -> Iterator[bool]:
        while True:
            if chance.random() < begins:
                yield from [True] * length
            else:
                yield False

    return network


NETWORKS: dict[str, Network] = {
    "5% lost": random_loss(0.05),
    "10% lost": random_loss(0.1),
    "20% lost": random_loss(0.2),
    "5% in bursts of 3": burst_loss(3),
    "5% in bursts of 10": burst_loss(10),
}


def commits(rate: int, events: int, chance: random.Random) -> Iterator[tuple[float, list[Event]]]:
    """Yield the commits of check-ins that come at random, each with the time of its end."""
    arrival = chance.expovariate(rate)
    free, seq = 0.0, 0
    while seq < events:
        begun = max(free, arrival)
        committed: list[Event] = []
        while arrival <= begun:
            seq += 1
            email = f"user{chance.randrange(USERS)}@example.com"
            committed.append(Event(seq, "check-in", email, None, "10.0.0.7", 51514))
            arrival += chance.expovariate(rate)
        free = begun + COMMIT_S
        at = BEGIN + datetime.timedelta(seconds=begun)
        yield free, [event._replace(last_seen=at) for event in committed]


async def announced(rate: int, repeat: int, events: int) -> tuple[list[Event], list[Heard]]:
    """Return the log, and the datagrams that announce it."""
    settings = AnnounceSettings(repeat=repeat, targets=())
    announcer, sink = Announcer(settings), MemorySink()
    announcer._json.append(sink)
    log: list[Event] = []
    heard: list[Heard] = []
    last = 0.0

    def announce(at_s: float, batch: Sequence[Event]) -> None:
        nonlocal last
        last = at_s
        announcer.announce(CommittedBatch(LOG_ID, len(log), batch))
        heard.extend(Heard(at_s, decode_json(payload)) for payload in sink.payloads)
        sink.payloads.clear()

    for at_s, batch in commits(rate, events, random.Random(rate)):  # noqa: S311
        while last + settings.heartbeat_s < at_s:
            announce(last + settings.heartbeat_s, ())
        log += batch
        announce(at_s, batch)
    for _ in range(REPEATS[-1]):
        announce(last + settings.heartbeat_s, ())
    return log, heard


def missing(log: Sequence[Event], heard: Sequence[Heard], network: Network) -> float:
    """Return the share of the events that a listener had to fetch."""
    chance = random.Random(1)  # noqa: S311 - the same at each run
    sequence = EventSequence(repairs=True, rng=chance.random)
    sequence.begin(LOG_ID, 0, 0, 0.0)
    for each, lost in zip(heard, network(chance), strict=False):
        while (wake := sequence.wake_at()) is not None and wake <= each.at_s:
            fetch = sequence.due_fetch(wake)
            if not isinstance(fetch, FetchEvents):
                raise RuntimeError(f"nothing to fetch, but {fetch}")
            sequence.fetch_started(fetch)
            found = list(log[fetch.after : fetch.after + fetch.limit])
            sequence.receive_page(fetch, EventPage(LOG_ID, sequence.head, found), wake)
        if not lost:
            datagram = each.datagram
            sequence.receive(datagram.head, datagram.updates, SOURCE, each.at_s, datagram.repeated)
        while sequence.next_delivery() is not None:
            pass
    return sequence.counts.repaired / len(log)


def measure(events: int = EVENTS) -> list[list[str]]:
    """Return the lines of the table, the first is its head."""
    lines = [["check-ins a second", "`announce.repeat`", *NETWORKS]]
    for rate in RATES:
        for repeat in REPEATS:
            log, heard = asyncio.run(announced(rate, repeat, events))
            shares = [missing(log, heard, network) for network in NETWORKS.values()]
            lines.append([f"{rate:,}", str(repeat), *(f"{share:.3%}" for share in shares)])
    return lines


def report(events: int = EVENTS) -> str:
    """Return the table, and the machine and the day below it."""
    now = datetime.datetime.now(datetime.UTC)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    below = f"{now:%Y-%m-%d}, {machine}; simulated clock, {events:,} events in each cell."
    return f"{tables.table(measure(events))}\n\n{below}"


def main() -> int:
    """Run the command line and return its exit status."""
    argparse.ArgumentParser(
        prog=COMMAND, description="Simulate which events are missing before any repair."
    ).parse_args()

    def work() -> None:
        text = report()
        PAGE.write_text(tables.fill(PAGE.read_text(), {"loss": text}, COMMAND))
        print(text)

    return exit_status(work)


if __name__ == "__main__":
    raise SystemExit(main())
