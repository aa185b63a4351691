"""A real listener beside a real server, and a sender that announces the server's log to it.

The sender stands for other servers on the same database: it writes entries of the log, and then
announces them, signed with the announcer's key, as fast as it is told. The listener repairs from
the real server over HTTPS. Its port is one that the server does not announce to.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from benchmarks.database import Postgres
from benchmarks.errors import BenchmarkError
from benchmarks.identities import Identities
from benchmarks.peers.base import GROUP, LOOPBACK, free_port
from benchmarks.places import ROOT
from benchmarks.processes import cpu_s
from benchmarks.rig import AtWork
from tornado_status.model.records import Event
from tornado_status.pki.announcer_keys import Signer
from tornado_status.wire.datagram import encode_json

START_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 30.0  # to one SIGUSR1, by a listener that has much to do
HEAR_TIMEOUT_S = 60.0  # to hear, or fetch, all of it
TICK_S = 0.002  # between two bursts of a paced sender
POLL_S = 0.02

_SUMMARY = re.compile(
    r"Heard (?P<datagrams>\d+) datagrams: (?P<shown>\d+) updates shown, \d+ duplicates, "
    r"(?P<refused>\d+) refused.*?(?:, (?P<dropped>\d+) dropped in a flood)?, "
    r"\d+ of the other encoding, (?P<repaired>\d+) repaired, (?P<missed>\d+) missed, "
    r"lag (?P<lag>\d+)\."
)

_ANOTHER_SERVERS = """\
WITH locked AS (SELECT seq FROM head FOR UPDATE), written AS (
    INSERT INTO check_in (seq, at, event, email, client_ip, client_port, issuer, serial)
    SELECT locked.seq + n, clock_timestamp(), 'check-in', u.email, u.client_ip, u.client_port,
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


@dataclass(frozen=True, slots=True)
class Heard:
    """What a listener says it did, since its start."""

    datagrams: int
    shown: int
    refused: int
    dropped: int
    repaired: int
    missed: int
    lag: int

    def __sub__(self, before: Heard) -> Heard:
        return Heard(
            self.datagrams - before.datagrams,
            self.shown - before.shown,
            self.refused - before.refused,
            self.dropped - before.dropped,
            self.repaired - before.repaired,
            self.missed - before.missed,
            self.lag,
        )


def parse_summary(line: str) -> Heard | None:
    """Read the line that a listener prints on SIGUSR1; None for any other line."""
    match = _SUMMARY.search(line)
    if match is None:
        return None
    return Heard(**{name: int(value or 0) for name, value in match.groupdict().items()})


class Listener:
    """`python -m listeners` at work, its updates thrown away.

    Its end is waited for, and one that ends with a status other than 0 is an error.
    """

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.port = port
        self.pid = process.pid
        self._process = process
        self._summaries: list[Heard] = []
        self._lines: list[str] = []
        self._listening = False
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def wait_listening(self) -> None:
        self._wait(lambda: self._listening, START_TIMEOUT_S, "a listener that listens")

    def heard(self) -> Heard:
        """Ask what it did so far, by SIGUSR1."""
        with self._changed:
            before = len(self._summaries)
        self._process.send_signal(signal.SIGUSR1)
        self._wait(lambda: len(self._summaries) > before, ANSWER_TIMEOUT_S, "its summary")
        return self._summaries[-1]

    def wait_shown(self, shown: int) -> Heard:
        """Give it the time to show so many updates since its start, heard or repaired.

        Raises `BenchmarkError` where that takes too long.
        """
        deadline = time.monotonic() + HEAR_TIMEOUT_S
        while True:
            heard = self.heard()
            if heard.shown + heard.missed >= shown:
                return heard
            if time.monotonic() > deadline:
                raise BenchmarkError(f"a listener showed {heard.shown} of {shown} updates")
            time.sleep(POLL_S)

    def cpu_s(self) -> float:
        return cpu_s([self.pid])

    def stop(self) -> Heard:
        """End it, and return its last word."""
        self._process.terminate()
        status = self._process.wait(START_TIMEOUT_S)
        self._thread.join(START_TIMEOUT_S)
        if status != 0:
            raise BenchmarkError(f"a listener ended with {status}: {self._lines[-1:]}")
        return self._summaries[-1]

    def close(self) -> None:
        """End it, if it has not ended."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._thread.join(START_TIMEOUT_S)

    def _read(self) -> None:
        with self._process.stderr or contextlib.nullcontext(()) as lines:
            for line in lines:
                summary = parse_summary(line)
                with self._changed:
                    self._lines.append(line.strip())
                    self._listening = self._listening or line.startswith("Listening on ")
                    if summary is not None:
                        self._summaries.append(summary)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: condition() or self._ended, timeout_s)
            if not condition():
                raise BenchmarkError(f"waited for {what}; it said {self._lines[-1:]}")


@contextlib.contextmanager
def listening(working: AtWork) -> Iterator[Listener]:
    """Run a listener that repairs from the server at work, from now on."""
    identities = working.site.identities
    certificate, key = identities.pair(identities.emails[0])  # the server's reader
    port = free_port(socket.SOCK_DGRAM)
    arguments = {
        "--url": f"https://localhost:{working.site.port}",
        "--ca": identities.ca,
        "--cert": certificate,
        "--key": key,
        "--group": GROUP,
        "--interface": LOOPBACK,
        "--port": port,
        "--format": "json",
    }
    command = [sys.executable, "-m", "listeners"]
    for name, value in arguments.items():
        command += [name, str(value)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    listener = Listener(process, port)
    try:
        listener.wait_listening()
        yield listener
    finally:
        listener.close()


class Sender:
    """Writes entries of the log as another server would, and announces them to the group."""

    def __init__(self, postgres: Postgres, database: str, identities: Identities, port: int):
        self._postgres = postgres
        self._database = database
        self._port = port
        key = load_pem_private_key(identities.announcer_key.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise RuntimeError("the announcer's key is not one of Ed25519")
        self._signer = Signer(key)
        ((self._log_id,),) = postgres.execute(database, "SELECT stream::text FROM head")

    def write(self, updates: int) -> list[Event]:
        """Commit so many entries of the log, of users who are there, in one transaction."""
        return [
            Event(seq, "check-in", email, at.astimezone(datetime.UTC), client_ip, client_port, None)
            for seq, email, at, client_ip, client_port in self._postgres.execute(
                self._database, _ANOTHER_SERVERS, updates
            )
        ]

    def datagrams(self, events: Sequence[Event], batch: int) -> list[bytes]:
        """Return the signed datagrams of `events`, committed so many at a time."""
        log_id = uuid.UUID(self._log_id)
        now = datetime.datetime.now(datetime.UTC)
        found: list[bytes] = []
        for first in range(0, len(events), batch):
            committed = events[first : first + batch]
            found += encode_json(log_id, now, committed[-1].seq, committed, self._signer)
        return found

    def send(self, datagrams: Sequence[bytes], seconds: float) -> float:
        """Send them evenly over so many seconds; 0: at once. Returns the seconds it took."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            loopback = socket.inet_aton(LOOPBACK)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
            sock.connect((GROUP, self._port))
            begun = time.monotonic()
            for number, payload in enumerate(datagrams):
                due = begun + seconds * number / len(datagrams)
                ahead_s = due - time.monotonic()
                if ahead_s > TICK_S:
                    time.sleep(ahead_s)
                sock.send(payload)
            return time.monotonic() - begun


def kernel_drops(port: int) -> int:
    """Return how many datagrams the kernel dropped at a full socket of this port (proc(5))."""
    drops = 0
    for line in Path("/proc/net/udp").read_text("ascii").splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port:
            drops += int(fields[-1])
    return drops
