"""The cost of a listener, and how much it can hear.

A real listener verifies every datagram and repairs from a real server over HTTPS. It hears entries
of the log that are announced on loopback: at several paces, in one burst, and not at all, which it
must fetch. Its own counters say what became of them. This process announces them, as another server
on the same database would, signed with the announcer's key, to a port of its own.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import signal
import socket
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from benchmarks.contender import GROUP, LOOPBACK, free_port
from benchmarks.processes import cpu_s
from benchmarks.programs import BenchmarkError, Child
from benchmarks.results import Numbers
from benchmarks.rig import Bench
from benchmarks.scaling_tables import ALONE
from tornado_status.config.settings import AnnounceSettings
from tornado_status.model.records import Event
from tornado_status.pki.announcer_keys import Signer
from tornado_status.wire.datagram import DatagramEncoder

BURST = 20_000  # updates at once, 800 datagrams: what a receive buffer of 4 MiB takes
REPEAT = AnnounceSettings().repeat
FETCHED = 20_000  # updates that are not announced
FULL = 512  # check-ins in a commit under load: datagrams are full

ANSWER_TIMEOUT_S = 30.0  # to start, to answer one SIGUSR1, to end: a listener with much to do
HEAR_TIMEOUT_S = 60.0  # to hear, or fetch, all of it
TICK_S = 0.002  # between two bursts of a paced sender
POLL_S = 0.02

_SUMMARY = re.compile(
    r"Heard (?P<datagrams>\d+) datagrams: (?P<shown>\d+) updates shown, \d+ duplicates, "
    r"(?P<refused>\d+) refused.*?(?:, (?P<dropped>\d+) dropped in a flood)?, "
    r"\d+ of the other encoding, \d+ healed, (?P<repaired>\d+) repaired, (?P<missed>\d+) missed, "
)

_ANOTHER_SERVERS = """\
WITH locked AS (SELECT seq FROM head FOR UPDATE), written AS (
    INSERT INTO check_in (seq, at, event, email, client_ip, client_port, issuer, serial)
    SELECT locked.seq + n, now(), 'check-in', u.email, u.client_ip, u.client_port,
           u.issuer, u.serial
    FROM locked, generate_series(1, %s) n,
         (SELECT *, row_number() OVER (ORDER BY email) - 1 AS i, count(*) OVER () AS of
          FROM user_status) u
    WHERE u.i = n %% u.of
    RETURNING seq, email, at, host(client_ip), client_port
), moved AS (
    UPDATE head SET seq = (SELECT max(seq) FROM written)
)
SELECT * FROM written ORDER BY seq
"""


def parse_line(line: str) -> dict[str, Any] | None:
    """Read the lines of a listener: that it listens, and its summary; None for any other."""
    if line.startswith("Listening on "):
        return {"event": "listening"}
    match = _SUMMARY.search(line)
    if match is None:
        return None
    counts = {name: int(value or 0) for name, value in match.groupdict().items()}
    return {"event": "summary", "counts": Counter(counts)}


class LoadedListener:
    """`status-listener` beside a server at work, and what announces to it.

    Its updates are thrown away. `kernel_drops` is what the kernel dropped at its full socket.
    """

    def __init__(self, child: Child, bench: Bench, port: int) -> None:
        self._child, self._bench, self._port = child, bench, port
        site = bench.site
        key = load_pem_private_key(site.identities.key("announcer").read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise RuntimeError("the announcer's key is not one of Ed25519")
        self._signer = Signer(key)
        ((log_id,),) = site.postgres.execute(site.database, "SELECT log_id::text FROM head")
        self._log_id = uuid.UUID(log_id)

    def run(
        self, updates: int, seconds: float, *, batch: int = FULL, withheld: slice | None = None
    ) -> Numbers:
        """Announce `updates` updates over `seconds` (0: at once), and wait until all are shown.

        The datagrams that `withheld` picks of all are not sent. Raises `BenchmarkError` if the
        listener refuses something, or does not get everything.
        """
        before = self._counts()
        # Withheld updates must be fetched, so none is repeated.
        encoder = DatagramEncoder(REPEAT if withheld is None else 0)
        datagrams = self._datagrams(updates, batch, encoder)
        if withheld is not None:
            del datagrams[withheld]
        drops, used_s = self._kernel_drops(), cpu_s([self._child.pid])
        with self._bench.meter() as meter:
            begun = time.monotonic()
            self._send(datagrams, seconds)
            sending_s = time.monotonic() - begun
            in_time = self._counts()["shown"] - before["shown"]
            deadline = begun + sending_s + HEAR_TIMEOUT_S
            while True:
                heard = self._counts()
                heard.subtract(before)
                if heard["shown"] + heard["missed"] >= updates:
                    break
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"a listener showed {heard['shown']} of {updates} updates")
                time.sleep(POLL_S)
            all_shown_s = time.monotonic() - begun
        if heard["refused"]:
            raise BenchmarkError(f"a listener refused {heard['refused']} datagrams")
        used_us = (cpu_s([self._child.pid]) - used_s) * 1e6
        return {
            "updates": updates,
            "datagrams": len(datagrams),
            "rate": updates / sending_s if sending_s else 0.0,
            "heard_rate": updates / all_shown_s,
            "in_time": in_time / updates,
            **{name: heard[name] for name in ("shown", "repaired", "missed", "dropped")},
            "kernel_drops": self._kernel_drops() - drops,
            "cpu_us_per_update": used_us / updates,
            "cpu_us_per_datagram": used_us / max(1, len(datagrams)),
            "server_us_per_update": meter.server_s / updates * 1e6,
            "database_us_per_update": meter.database_s / updates * 1e6,
        }

    def _counts(self) -> Counter[str]:
        """Return its counts since its start."""
        self._child.signal(signal.SIGUSR1)
        counts: Counter[str] = self._child.wait("summary", ANSWER_TIMEOUT_S)["counts"]
        return counts

    def _datagrams(self, updates: int, batch: int, encoder: DatagramEncoder) -> list[bytes]:
        """Commit entries of the log, of users who are there; return their datagrams."""
        site = self._bench.site
        rows = site.postgres.execute(site.database, _ANOTHER_SERVERS, updates)
        events = [
            Event(seq, "check-in", email, at.astimezone(datetime.UTC), client_ip, client_port, None)
            for seq, email, at, client_ip, client_port in rows
        ]
        now = datetime.datetime.now(datetime.UTC)
        found: list[bytes] = []
        for first in range(0, len(events), batch):
            committed = events[first : first + batch]
            head = committed[-1].seq
            found += encoder.encode(self._log_id, now, head, committed, self._signer)
        return found

    def _send(self, datagrams: Sequence[bytes], seconds: float) -> None:
        """Send them evenly over `seconds`; 0: at once."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            loopback = socket.inet_aton(LOOPBACK)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
            sock.connect((GROUP, self._port))
            begun = time.monotonic()
            for number, payload in enumerate(datagrams):
                ahead_s = begun + seconds * number / len(datagrams) - time.monotonic()
                if ahead_s > TICK_S:
                    time.sleep(ahead_s)
                sock.send(payload)

    def _kernel_drops(self) -> int:
        """Return how many datagrams the kernel dropped at its full socket (proc(5))."""
        lines = Path("/proc/net/udp").read_text("ascii").splitlines()[1:]
        fields = [line.split() for line in lines]
        return sum(int(f[-1]) for f in fields if int(f[1].rpartition(":")[2], 16) == self._port)


@contextlib.contextmanager
def listening(bench: Bench) -> Iterator[LoadedListener]:
    """Run a listener that repairs from the server at work, from now on.

    Raises `BenchmarkError` if it ends with a status other than 0.
    """
    identities = bench.site.identities
    reader = identities.emails[0]  # the server's reader
    port = free_port(socket.SOCK_DGRAM)
    options = {
        "--url": f"https://localhost:{bench.site.port}",
        "--ca": identities.certificate("ca"),
        "--cert": identities.certificate(reader),
        "--key": identities.key(reader),
        "--group": GROUP,
        "--interface": LOOPBACK,
        "--port": port,
        "--format": "json",
    }
    words = [word for option in options.items() for word in option]
    command = [sys.executable, "-m", "listeners", *words]
    with Child(command, parse=parse_line, on_stderr=True) as child:
        child.wait("listening", ANSWER_TIMEOUT_S)
        yield LoadedListener(child, bench, port)
        child.signal(signal.SIGTERM)
        status = child.end()
    if status != 0:
        raise BenchmarkError(f"a listener ended with {status}")


def measure(bench: Bench, paces: Sequence[int], seconds: float) -> None:
    """Add one round to the results: workloads `listening` (by pace), `burst`, `fetching`."""
    add = bench.rig.results.add
    with listening(bench) as listener:
        alone = listener.run(round(min(paces) * seconds), seconds, batch=1)
        add("listening", ALONE, alone)
        for pace in paces:
            add("listening", str(pace), listener.run(round(pace * seconds), seconds))
        add("burst", str(BURST), listener.run(BURST, 0))
        # The last one says what the others were.
        add("fetching", str(FETCHED), listener.run(FETCHED, 0, withheld=slice(0, -1)))
