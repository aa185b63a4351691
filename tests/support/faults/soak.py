"""The soak: minutes of load while one fault follows another, and a judge at every still moment.

`python -m tests.support.faults.soak` writes soak.md and soak.svg; exit status 1
means that a promise broke.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import itertools
import os
import shutil
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from certs_gen.authority import Authority
from certs_gen.cli import main as certs_gen
from tests.support.faults import soak_report
from tests.support.faults.judge import Listener, examine
from tests.support.faults.ledger import REQUEST, Answers, Load
from tests.support.faults.samples import Sample, Sampler, growth
from tests.support.faults.tcp_relay import Relay
from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    ROOT,
    Postgres,
    Server,
    client_context,
    free_port,
    rows,
    running_server,
    targets,
    wait_until,
)
from tests.support.subscriber import Subscriber

NAMES = tuple(f"user{n}" for n in range(8))
PACE_S = 0.02  # of each of them, between two check-ins
COMMIT_TIMEOUT_S = 1.0
HOLD_S = 1.5  # how long a fault lasts: longer than a commit may take
CROWD = 20  # connections and streams that come at once
STILL_EVERY = 4  # faults

# The bounds. Memory: between still moments of one process, past its first quarter. The ring of
# the newest events fills up meanwhile, and the allocator keeps what is in pieces.
MEMORY_GROWTH_KB = 16 * 1024
DESCRIPTOR_GROWTH = 8
# From the end of a fault to the next 204. It should be one second; the machines that soak are slow
# and shared, so only what is far beyond it is a broken promise.
RECOVERY_S = 5.0
BOUNDS = (MEMORY_GROWTH_KB, DESCRIPTOR_GROWTH, RECOVERY_S)

BACKENDS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
_LOST = (OSError, EOFError, ValueError, IndexError, http.client.HTTPException)


@dataclass
class Outcome:
    """The findings of a soak, for its report."""

    seconds: float = 0
    samples: list[Sample] = field(default_factory=list)
    recoveries: dict[str, list[float]] = field(default_factory=dict)  # seconds, by fault
    times: list[tuple[float, str]] = field(default_factory=list)  # when each fault began
    statuses: dict[int | None, int] = field(default_factory=dict)
    events: int = 0  # rows in the log
    announced: int = 0
    followed: int = 0
    stills: int = 0
    memory_growth_kb: int = 0
    descriptor_growth: int = 0
    violations: list[str] = field(default_factory=list)


class Follower:
    """Follows the live stream from its beginning, through every restart; resumes where it was."""

    def __init__(self, server: Callable[[], Server]) -> None:
        self.events: list[tuple[int, str, str]] = []
        self.last = 0
        self._server = server
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        while not self._stopping.wait(0.05):
            with contextlib.suppress(*_LOST), Subscriber(self._server(), last=self.last) as follow:
                if follow.status != 200:
                    continue
                while (said := follow.next_message()) is not None:
                    if said.kind != "position":
                        event = said.data
                        self.events.append((event["seq"], event["event"], event["email"]))
                    self.last = said.id


class Soak:
    """A server with its database behind a relay, its clients, and whoever listens to it."""

    def __init__(self, directory: Path, wrong: str | None = None) -> None:
        self.certs = directory / "certs"
        quietly("--out", str(self.certs))
        self.authority = Authority.load(self.certs)
        for name in NAMES:
            self.issue(name)
        self.postgres = Postgres(directory / "pg")
        self.relay = Relay(lambda: self.postgres.url)
        self._directory = directory
        self._module = (
            ("tests.support.faults.wrong_server", wrong) if wrong else ("tornado_status",)
        )
        self._announce_port = free_port(socket.SOCK_DGRAM)
        self._settings: dict[str, Any] = {
            "server": {"port": free_port(), "handshake_timeout_s": 2},
            "tls": {"crl": str(self.certs / "ca.crl")},
            "database": {"commit_timeout_s": COMMIT_TIMEOUT_S, "connect_timeout_s": 1},
            "announce": {
                "source_port": free_port(socket.SOCK_DGRAM),
                "targets": targets(self._announce_port),
            },
            # The judge knows check-ins only: no user is away for so long.
            "presence": {"interval_s": 3600, "offline_after_s": 10800},
        }
        self._numbers = itertools.count()
        self._stack = contextlib.ExitStack()
        self._life = contextlib.ExitStack()
        self.server: Server
        self.load: Load
        self.listener: Listener
        self.follower: Follower
        self.sampler: Sampler

    def __enter__(self) -> Soak:
        enter = self._stack.enter_context
        with contextlib.ExitStack() as undo:
            undo.push(self._stack)
            self.postgres.start()
            self._stack.callback(self.postgres.stop)
            enter(self.relay)
            self.follower = Follower(lambda: self.server)
            self._stack.push(self.follower)
            self._stack.callback(lambda: self._life.close())
            self.start_server()
            self.follower.__enter__()
            self.listener = enter(Listener(self._announce_port, certs=self.certs))
            self.load = Load(self.certs, self.server.port, NAMES, pace_s=PACE_S)
            enter(self.load)
            ledger = self.load.ledger
            self.sampler = enter(
                Sampler(lambda: self.server.process.pid, lambda: ledger.acknowledged, 0.5)
            )
            undo.pop_all()
        return self

    def __exit__(self, *details: Any) -> None:
        self._stack.__exit__(*details)

    def issue(self, name: str) -> str:
        """Issue a client's certificate; return its e-mail address."""
        email = f"{name}@example.com"
        credential = self.authority.issue_client(email)
        (self.certs / f"{name}.key").write_bytes(credential.key_pem())
        (self.certs / f"{name}.crt").write_bytes(credential.certificate_pem())
        return email

    def start_server(self) -> None:
        self._life = contextlib.ExitStack()
        self.server = self._life.enter_context(
            running_server(
                self._directory / f"server_{next(self._numbers)}",
                self.certs,
                self.relay.url,
                module=self._module,
                **self._settings,
            )
        )

    def end_server(self, signum: int) -> int:
        status = self.server.stop(signum)
        self._life.close()
        return status

    def hold(self) -> None:
        """Let a fault last."""
        time.sleep(HOLD_S)

    def examine(self) -> list[str]:
        """Pause the load and compare everything with everything; sample the server."""
        self.load.pause()
        try:
            [(head,)] = rows(self.postgres.url, "SELECT seq FROM head")
            wait_until(lambda: self.follower.last >= head, "the follower to be complete")
            self.listener.catch_up()
            found = examine(self.load.ledger, self.postgres.url, self.listener)
            log = rows(self.postgres.url, "SELECT seq, event, email FROM check_in ORDER BY seq")
            followed = self.follower.events[:]
            if followed != log[: len(followed)] or len(followed) < head:
                found.append(
                    f"the follower has {len(followed)} events, not the {len(log)} there are"
                )
            self.sampler.take(still=True)
        finally:
            self.load.go_on()
        return found


# ---------------------------------------------------------------------------------------- faults


def postgresql_stopped(soak: Soak) -> None:
    soak.postgres.stop()
    soak.hold()
    soak.postgres.start()


def postgresql_killed(soak: Soak) -> None:
    soak.postgres.kill()
    soak.hold()
    soak.postgres.start()


def backends_terminated(soak: Soak) -> None:
    rows(soak.postgres.url, BACKENDS)


def network_frozen(soak: Soak) -> None:
    soak.relay.freeze()
    soak.hold()
    soak.relay.thaw()


def network_cut(soak: Soak) -> None:
    """A batch on its way is lost."""
    soak.relay.freeze()
    soak.hold()
    soak.relay.cut()
    soak.relay.thaw()


def answer_lost(soak: Soak) -> None:
    """Recorded, and the answer is lost."""
    soak.relay.swallow()
    swallowed = soak.relay.swallowed.wait(PATIENCE_S)
    soak.relay.cut()
    assert swallowed, "nothing to swallow"


def server_terminated(soak: Soak) -> None:
    status = soak.end_server(signal.SIGTERM)
    soak.start_server()
    assert status == 0, f"SIGTERM under load ended with {status}"


def server_killed(soak: Soak) -> None:
    soak.end_server(signal.SIGKILL)
    soak.start_server()


def quietly(*arguments: str) -> None:
    """Run status-certs."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert certs_gen(list(arguments)) == 0


def certificate_renewed(soak: Soak) -> None:
    """New connections get the new one; open ones notice nothing."""

    def shown() -> bytes | None:
        with soak.server.connect_raw() as secure:
            return secure.getpeercert(binary_form=True)

    before = shown()
    quietly("server", "--force", "--out", str(soak.certs))
    soak.server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: shown() != before, "the new certificate to be shown")


def user_revoked(soak: Soak) -> None:
    """They check in, and then no more: neither on the connection that is open nor anew."""
    name = f"victim{time.monotonic_ns()}"
    email = soak.issue(name)
    context = client_context(soak.certs, name)
    with contextlib.closing(Answers(context, soak.server.port)) as answers:
        answers.send(REQUEST)
        status = answers.next()
        soak.load.ledger.add((email, *answers.address), status)
        quietly("revoke", email, "--out", str(soak.certs))

        def refused() -> bool:
            try:
                with contextlib.closing(Answers(context, soak.server.port)) as fresh:
                    fresh.send(REQUEST)
                    answer = fresh.next()
                    if answer in (204, 503):
                        soak.load.ledger.add((email, *fresh.address), answer)
                    return answer == 403
            except ssl.SSLError as error:
                return "REVOKED" in str(error).upper()

        wait_until(refused, "a revoked certificate to be refused")
        with contextlib.suppress(OSError):  # closed by the server: refused, too
            answers.send(REQUEST)
            status = answers.next()
            assert status == 403, f"a revoked certificate was answered {status}"


def slow_readers(soak: Soak) -> None:
    """Streams from the beginning of the log, whose readers take nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(CROWD):
            stack.enter_context(Subscriber(soak.server, last=0, receive_buffer=4096))
        soak.hold()


def streams_come_and_go(soak: Soak) -> None:
    for n in range(CROWD):
        with Subscriber(soak.server, last=max(0, soak.follower.last - 10 * n)) as follow:
            assert follow.status == 200, f"a stream was answered {follow.status}"
            follow.next_message()


def mute_connections(soak: Soak) -> None:
    """Some never begin the handshake: the server closes them. Others never ask for anything."""
    with contextlib.ExitStack() as stack:
        mute = []
        for _ in range(CROWD):
            sock = socket.create_connection((LOOPBACK, soak.server.port), timeout=PATIENCE_S)
            mute.append(stack.enter_context(contextlib.closing(sock)))
            stack.enter_context(soak.server.connect_raw())
        for sock in mute:
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(4096):
                    pass


Fault = Callable[[Soak], None]

RESTARTS: tuple[Fault, ...] = (server_terminated, server_killed)
FAULTS: tuple[Fault, ...] = (
    postgresql_stopped,
    network_cut,
    slow_readers,
    certificate_renewed,
    postgresql_killed,
    answer_lost,
    mute_connections,
    user_revoked,
    backends_terminated,
    network_frozen,
    streams_come_and_go,
)


def schedule(seconds: float, soak: Soak, faults: Sequence[Fault]) -> Iterator[Fault]:
    """Restarts first and last; in between all the others, once at least, and until time is up."""
    yield from (fault for fault in RESTARTS if fault in faults)
    first = True
    while first or soak.sampler.elapsed_s < seconds:
        for fault in faults:
            if fault not in RESTARTS:
                yield fault
            if not first and soak.sampler.elapsed_s >= seconds:
                break
        first = False
    yield from (fault for fault in reversed(RESTARTS) if fault in faults)


def run(
    directory: Path,
    seconds: float,
    *,
    wrong: str | None = None,
    faults: Sequence[Fault] = RESTARTS + FAULTS,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Soak for so long; return what was seen, and every promise that was broken."""
    outcome = Outcome()
    try:
        with Soak(directory, wrong) as soak:
            try:
                _run(soak, seconds, faults, outcome, say)
            finally:
                _count(soak, outcome)
    except AssertionError as error:  # of a wait in vain, or of a server that logged a traceback
        outcome.violations.append(str(error))
    for violation in outcome.violations:
        say(f"VIOLATION {violation}")
    return outcome


def _run(
    soak: Soak,
    seconds: float,
    faults: Sequence[Fault],
    outcome: Outcome,
    say: Callable[[str], None],
) -> None:
    ledger = soak.load.ledger
    ledger.wait_more(204, 20)
    outcome.violations += soak.examine()
    for count, fault in enumerate(schedule(seconds, soak, faults), start=1):
        name = fault.__name__.replace("_", " ")
        began = soak.sampler.elapsed_s
        outcome.times.append((began, name))
        fault(soak)
        back = ledger.wait_more(204, 1)
        outcome.recoveries.setdefault(name, []).append(back)
        if back > RECOVERY_S:
            outcome.violations.append(
                f"recovery from {name} took {back:.1f} s, more than {RECOVERY_S:g}"
            )
        ledger.wait_more(204, 100)
        say(f"{began:6.1f} s  {name}: {ledger.acknowledged} acknowledged")
        if count % STILL_EVERY == 0 or fault in RESTARTS:
            outcome.violations += soak.examine()
        if outcome.violations:
            return
    outcome.violations += soak.examine()
    grown = growth(soak.sampler.samples)
    outcome.memory_growth_kb = grown.memory_kb
    outcome.descriptor_growth = grown.descriptors
    if grown.memory_kb > MEMORY_GROWTH_KB:
        outcome.violations.append(
            f"memory grew by {grown.memory_kb} kB, more than {MEMORY_GROWTH_KB}"
        )
    if grown.descriptors > DESCRIPTOR_GROWTH:
        outcome.violations.append(
            f"descriptors grew by {grown.descriptors}, more than {DESCRIPTOR_GROWTH}"
        )


def _count(soak: Soak, outcome: Outcome) -> None:
    outcome.seconds = soak.sampler.elapsed_s
    outcome.samples = soak.sampler.samples
    outcome.stills = sum(sample.still for sample in outcome.samples)
    outcome.statuses = dict(soak.load.ledger.statuses)
    outcome.announced = len(soak.listener.updates)
    outcome.followed = len(soak.follower.events)
    outcome.events = soak.follower.last


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.faults.soak", description=__doc__
    )
    parser.add_argument(
        "--seconds", type=float, default=os.environ.get("SOAK_SECONDS") or 300, help="(300)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="(docs)")
    parser.add_argument(
        "--wrong", help="a server of tests/support/faults/wrong_server.py, to be found out"
    )
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="soak"))  # short: it holds sockets
    try:
        outcome = run(directory, arguments.seconds, wrong=arguments.wrong)
    finally:
        shutil.rmtree(directory)
    soak_report.write(outcome, arguments.out, BOUNDS)
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
