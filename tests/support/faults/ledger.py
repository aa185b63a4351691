"""A load of check-ins over real mTLS, and the ledger of what each of them was answered."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path
from types import TracebackType

from cryptography.x509 import load_pem_x509_certificate

from tests.support.harness import LOOPBACK, PATIENCE_S, client_context

REQUEST = b"POST /api/client HTTP/1.1\r\nHost: localhost\r\n\r\n"
PAUSE_S = 0.02  # after a refusal: the next one would say the same

# The e-mail and the address of a connection, which no other has: the id of its check-ins.
Key = tuple[str, str, int]
Certificate = tuple[str, str]  # its issuer and its serial number, as they are recorded

_addresses = count(int(IPv4Address("127.1.0.0")))  # all of 127.0.0.0/8 is this machine


@dataclass
class Tally:
    """The answers to the check-ins of one key."""

    acknowledged: int = 0  # 204: recorded, whatever happens
    unknown: int = 0  # 503, or no answer: recorded or not


@dataclass
class Ledger:
    """Every request that was sent, whole or in part, and its answer."""

    tallies: defaultdict[Key, Tally] = field(default_factory=lambda: defaultdict(Tally))
    statuses: Counter[int | None] = field(default_factory=Counter)
    certificates: dict[Key, Certificate] = field(default_factory=dict)
    sent: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, key: Key, status: int | None, count: int = 1) -> None:
        """Enter `count` requests with their status, None where no answer came."""
        with self.changed:
            self.statuses[status] += count
            if status == 204:
                self.tallies[key].acknowledged += count
            else:
                self.tallies[key].unknown += count
            self.changed.notify_all()

    @property
    def outstanding(self) -> int:
        """Requests that wait for their answer, where no connection has broken yet."""
        with self.changed:
            return self.sent - self.statuses.total()

    @property
    def acknowledged(self) -> int:
        return self.statuses[204]

    def wait_more(self, status: int | None, count: int) -> float:
        """Wait for so many more answers of one kind; return the seconds that it took."""
        began = time.monotonic()
        with self.changed:
            wanted = self.statuses[status] + count
            came = self.changed.wait_for(lambda: self.statuses[status] >= wanted, PATIENCE_S)
        assert came, f"no {count} more answers of {status}: {dict(self.statuses)}"
        return time.monotonic() - began


class Load:
    """Connections that check in without a pause, and come back when they are cut.

    Each thread is one of `names`, whose certificates lie in `certs`: `user` and `user_phone` are
    two of one user. It has `pipeline` check-ins on the way at once, and rests for `pace_s` after
    each answer. The threads of `fresh` then open a new connection, so that without a pipeline each
    of their check-ins has an id of its own.
    """

    def __init__(
        self,
        certs: Path,
        port: int,
        names: Sequence[str],
        *,
        fresh: Collection[str] = (),
        pipeline: int = 1,
        pace_s: float = 0,
        request: bytes = REQUEST,
        while_up: Callable[[], bool] = lambda: True,
    ) -> None:
        self.ledger = Ledger()
        self._certs = certs
        self._port = port
        self._fresh = fresh
        self._pipeline = pipeline
        self._pace_s = pace_s
        self._request = request
        self._stopping = threading.Event()
        self._paused = False
        self._busy = 0  # threads that wait for an answer; this and `_paused` under ledger.changed
        self._while_up = while_up
        self._threads = [threading.Thread(target=self._run, args=(name,)) for name in names]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more, and wait for the answers to what was sent."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)
            assert not thread.is_alive()

    def pause(self) -> None:
        """Send no more until `go_on`, and wait for the answers to what was sent."""
        with self.ledger.changed:
            self._paused = True
            still = self.ledger.changed.wait_for(lambda: not self._busy, 2 * PATIENCE_S)
        assert still, "check-ins without an answer"

    def go_on(self) -> None:
        with self.ledger.changed:
            self._paused = False
            self.ledger.changed.notify_all()

    def _begin(self) -> bool:
        """Wait while paused; return whether to send."""
        changed = self.ledger.changed
        while not self._stopping.is_set():
            with changed:
                if changed.wait_for(lambda: not self._paused, PAUSE_S):
                    self._busy += 1
                    return True
        return False

    def _end(self) -> None:
        with self.ledger.changed:
            self._busy -= 1
            self.ledger.changed.notify_all()

    def _run(self, name: str) -> None:
        context = client_context(self._certs, name)
        email = f"{name.partition('_')[0]}@example.com"
        certificate = certificate_of(self._certs, name)
        while not self._stopping.is_set() and self._while_up():
            try:
                answers = Answers(context, self._port, str(IPv4Address(next(_addresses))))
            except OSError:
                self._stopping.wait(PAUSE_S)
                continue
            with contextlib.closing(answers):
                key = (email, *answers.address)
                self.ledger.certificates[key] = certificate
                self._check_in(answers, key, once=name in self._fresh)

    def _check_in(self, answers: Answers, key: Key, once: bool) -> None:
        while self._begin():
            refused = False
            try:
                waiting = self._pipeline
                answers.send(self._request * self._pipeline)
                with self.ledger.changed:
                    self.ledger.sent += self._pipeline
                while waiting:
                    status = answers.next()
                    self.ledger.add(key, status)
                    waiting -= 1
                    refused |= status != 204
            except OSError:
                if waiting:
                    self.ledger.add(key, None, waiting)
                return
            finally:
                self._end()
            rest = PAUSE_S if refused else self._pace_s
            if rest:
                self._stopping.wait(rest)
            if once:
                return


def certificate_of(certs: Path, name: str) -> Certificate:
    certificate = load_pem_x509_certificate((certs / f"{name}.crt").read_bytes())
    return certificate.issuer.rfc4514_string(), f"{certificate.serial_number:x}"


class Answers:
    """One TLS connection to the server: bytes go out, statuses come in."""

    _LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n")

    def __init__(self, context: ssl.SSLContext, port: int, source: str = LOOPBACK) -> None:
        raw = socket.create_connection((LOOPBACK, port), PATIENCE_S, (source, 0))
        self.address: tuple[str, int] = raw.getsockname()
        self._buffer = b""
        self._secure = context.wrap_socket(raw, server_hostname="localhost")

    def send(self, data: bytes) -> None:
        self._secure.sendall(data)

    def next(self) -> int:
        """Return the status of the next answer. Raises `OSError` where none comes."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        found = self._LENGTH.search(head + b"\r\n")
        length = int(found[1]) if found else 0
        while len(rest) < length:
            self._buffer = b""
            self._more()
            rest += self._buffer
        self._buffer = rest[length:]
        return int(head.split(b" ", 2)[1])

    def close(self) -> None:
        self._secure.close()

    def _more(self) -> None:
        data = self._secure.recv(65536)
        if not data:
            raise ConnectionResetError("closed by the server")
        self._buffer += data
