"""What a listener costs, and how much it can hear: `python -m benchmarks.cost_of_listening`.

A real listener, which verifies every datagram and repairs from a real server, hears entries of
the log that are announced to it on loopback (`hearing`): at several paces, in one burst, and not at
all, so that it must fetch them. Its own counters say what became of them.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import hearing, machine
from benchmarks.errors import BenchmarkError
from benchmarks.hearing import Listener, Sender
from benchmarks.peers.this_server.peer import ThisServer
from benchmarks.processes import Meter
from benchmarks.results import Results
from benchmarks.rig import AtWork, Rig, rig
from benchmarks.workloads import Numbers

PACES = (1_000, 5_000, 10_000, 20_000, 40_000, 80_000)  # updates a second
QUICK_PACES = (1_000, 10_000, 80_000)
BURST = 20_000  # updates at once, 2,900 datagrams: what a receive buffer of 4 MiB takes
FETCHED = 20_000  # updates that are not announced
ROUNDS, SECONDS = 3, 2.0
QUICK_ROUNDS, QUICK_SECONDS = 1, 1.0
CLIENTS = 16
FULL = 512  # check-ins in a commit under load: datagrams are full
IN_TIME = 0.98  # shown at the end of the sending: it keeps up

ALONE = "alone"  # one update a datagram, as under light load


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of a sender: what the listener did of it, and what it took."""

    updates: int
    datagrams: int
    seconds: float  # of sending
    all_shown_s: float  # since the sending began
    shown_in_time: int
    heard: hearing.Heard
    kernel_drops: int
    cpu_s: float
    server_s: float
    database_s: float

    def numbers(self) -> Numbers:
        return {
            "updates": self.updates,
            "datagrams": self.datagrams,
            "rate": self.updates / self.seconds if self.seconds else 0.0,
            "heard_rate": self.updates / self.all_shown_s,
            "in_time": self.shown_in_time / self.updates,
            "repaired": self.heard.repaired,
            "missed": self.heard.missed,
            "dropped": self.heard.dropped,
            "kernel_drops": self.kernel_drops,
            "cpu_us_per_update": self.cpu_s / self.updates * 1e6,
            "cpu_us_per_datagram": self.cpu_s / self.datagrams * 1e6 if self.datagrams else 0.0,
            "server_us_per_update": self.server_s / self.updates * 1e6,
            "database_us_per_update": self.database_s / self.updates * 1e6,
        }


@dataclass(frozen=True, slots=True)
class Hearing:
    """A listener beside a server at work, and what announces to it."""

    listener: Listener
    sender: Sender
    working: AtWork
    database: int  # PostgreSQL's process

    def run(
        self, updates: int, seconds: float, *, batch: int = FULL, withheld: slice | None = None
    ) -> Outcome:
        """Announce so many updates over `seconds` (0: at once), and wait until all are shown.

        The datagrams that `withheld` picks of all are not sent. Raises `BenchmarkError` where the
        listener refuses something, or does not get everything.
        """
        before = self.listener.heard()
        events = self.sender.write(updates)
        datagrams = self.sender.datagrams(events, batch)
        if withheld is not None:
            del datagrams[withheld]
        drops, cpu_s = hearing.kernel_drops(self.listener.port), self.listener.cpu_s()
        meter = Meter(self.working.processes, [self.database])
        meter.start()
        begun = time.monotonic()
        took_s = self.sender.send(datagrams, seconds)
        in_time = self.listener.heard() - before
        heard = self.listener.wait_shown(before.shown + before.missed + updates) - before
        all_shown_s = time.monotonic() - begun
        meter.stop()
        if heard.refused:
            raise BenchmarkError(f"a listener refused {heard.refused} datagrams")
        return Outcome(
            updates,
            len(datagrams),
            took_s,
            all_shown_s,
            in_time.shown,
            heard,
            hearing.kernel_drops(self.listener.port) - drops,
            self.listener.cpu_s() - cpu_s,
            meter.server_s,
            meter.database_s,
        )


def measure(surroundings: Rig, results: Results, paces: Sequence[int], seconds: float) -> None:
    """Add one round to `results`: workloads `listening` (by pace), `burst`, `fetching`."""
    with (
        surroundings.at_work(ThisServer()) as working,
        hearing.listening(working) as listener,
    ):
        site = working.site
        sender = Sender(surroundings.postgres, site.database, site.identities, listener.port)
        at_work = Hearing(listener, sender, working, surroundings.postgres.pid)
        slow = min(paces)
        numbers = at_work.run(round(slow * seconds), seconds, batch=1).numbers()
        results.add("listening", ALONE, numbers)
        for pace in paces:
            numbers = at_work.run(round(pace * seconds), seconds).numbers()
            results.add("listening", str(pace), numbers)
        results.add("burst", str(BURST), at_work.run(BURST, 0).numbers())
        # The last one says what the others were.
        fetched = at_work.run(FETCHED, 0, withheld=slice(0, -1)).numbers()
        results.add("fetching", str(FETCHED), fetched)
        listener.stop()


def keeps_up(results: Results) -> int:
    """Return the highest pace that was shown in time, nothing repaired, in all rounds; or 0."""
    found = 0
    for name in results.rounds.get("listening", {}):
        if name == ALONE:
            continue
        repaired = results.summary("listening", name, "repaired")
        in_time = results.summary("listening", name, "in_time")
        if repaired and in_time and repaired.high == 0 and in_time.median >= IN_TIME:
            found = max(found, int(name))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost_of_listening",
        description="Measure what a listener costs, and how much it can hear.",
    )
    parser.add_argument("--quick", action="store_true", help="a first look")
    options = parser.parse_args(arguments)
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    seconds = QUICK_SECONDS if options.quick else SECONDS
    paces: Sequence[int] = QUICK_PACES if options.quick else PACES
    begun = time.monotonic()
    try:
        with rig(CLIENTS) as surroundings:
            results = Results(
                date=datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
                machine=machine.describe(surroundings.postgres),
                settings={"rounds": rounds, "seconds": seconds},
                rows=[],
            )
            for _ in range(rounds):
                measure(surroundings, results, paces, seconds)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    # Imported here: the report of all of them knows this one.
    from benchmarks.scaling_report import listening

    print("\n\n".join(listening(results)))
    print(f"\n{time.monotonic() - begun:.0f} s; medians of {rounds} rounds of {seconds:g} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
