"""The gate before every measurement: does this server do the job at all?

A server that answers faster because it commits later, or announces nothing, must not get a number.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import Refused
from benchmarks.identities import BAD, STRANGER, Identities
from benchmarks.load import Load, run
from benchmarks.peers.base import BROADCAST, GROUP, LOOPBACK

ANSWER_TIMEOUT_S = 10.0  # for one check-in, on a machine that may be busy
DATAGRAM_TIMEOUT_S = 5.0  # on loopback, after the answer: it is there, or it was never sent
QUIET_S = 0.2  # after the expected datagrams: would there be more?
SINGLE_CHECK_INS = 5  # one by one, each of which has to reach the disk before its answer
CLOCK_SKEW = datetime.timedelta(seconds=30)  # the database's and ours are one

Update = tuple[str, str, int]  # e-mail, client_ip, client_port
Query = Callable[..., Sequence[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A server at work. `query(sql, *parameters)` runs in its database, on its own connection."""

    port: int
    announce_port: int
    identities: Identities
    query: Query
    load_program: Path


def check(candidate: Candidate) -> None:
    """Return if the server does the job. Raises `Refused` with the first thing that it does not."""
    with _Listener(GROUP, candidate.announce_port) as group:
        with _Listener(BROADCAST, candidate.announce_port) as broadcast:
            listeners = {"multicast": group, "broadcast": broadcast}
            _single_check_ins(candidate, listeners)
            _every_identity(candidate, listeners)
            _refusals(candidate, listeners)


def check_answers(candidate: Candidate) -> None:
    """The gate for a ceiling, of which only answers are expected. Raises `Refused`."""
    email = candidate.identities.emails[0]
    _expect(_check_in(candidate, email)[0] == 204, "a check-in is not answered 204")
    _expect(_check_in(candidate, None)[0] != 204, "204 without a certificate")
    _expect(_check_in(candidate, STRANGER)[0] != 204, "204 for a certificate of another CA")


def _single_check_ins(candidate: Candidate, listeners: dict[str, _Listener]) -> None:
    email = candidate.identities.emails[0]
    for _ in range(SINGLE_CHECK_INS):
        (before,) = candidate.query("SELECT pg_current_wal_flush_lsn()::text")[0]
        status, port = _check_in(candidate, email)
        flushed = candidate.query("SELECT pg_current_wal_flush_lsn()::text")[0][0] != before
        _expect(status == 204, f"a check-in is answered {status}, not 204")
        rows = candidate.query(
            "SELECT last_seen, host(client_ip), client_port FROM user_status WHERE email = %s",
            email,
        )
        _expect(len(rows) == 1, "204 without a committed row")
        last_seen, client_ip, client_port = rows[0]
        _expect((client_ip, client_port) == (LOOPBACK, port), "a row with another address")
        age = abs(datetime.datetime.now(datetime.UTC) - last_seen)
        _expect(age < CLOCK_SKEW, "a row with another time")
        _expect(flushed, "204 before the commit is on the disk (synchronous_commit, fsync)")
        for kind, listener in listeners.items():
            _expect(
                listener.updates(1) == Counter({(email, LOOPBACK, port): 1}),
                f"no announcement of the check-in by {kind}, or not just one",
            )


def _every_identity(candidate: Candidate, listeners: dict[str, _Listener]) -> None:
    emails = candidate.identities.emails
    result = run(
        Load(
            candidate.load_program,
            "handshake",
            candidate.port,
            candidate.identities.listed,
            connections=min(16, len(emails)),
            requests=len(emails),
            seconds=ANSWER_TIMEOUT_S + 0.1 * len(emails),
        )
    )
    _expect(
        result.count == len(emails) and not result.errors,
        f"{result.count} of {len(emails)} valid certificates accepted ({result.first_error})",
    )
    recorded = {row[0] for row in candidate.query("SELECT email FROM user_status")}
    _expect(recorded == set(emails), "the rows are not those of who has checked in")
    for kind, listener in listeners.items():
        heard = Counter(email for email, _, _ in listener.updates(len(emails)).elements())
        _expect(heard == Counter(emails), f"not one announcement of each check-in by {kind}")


def _refusals(candidate: Candidate, listeners: dict[str, _Listener]) -> None:
    status, _ = _check_in(candidate, BAD)
    _expect(status == 400, f"a CN that is no e-mail address is answered {status}, not 400")
    _expect(_check_in(candidate, None)[0] != 204, "204 without a certificate")
    _expect(_check_in(candidate, STRANGER)[0] != 204, "204 for a certificate of another CA")
    ((users,),) = candidate.query("SELECT count(*) FROM user_status")
    _expect(users == len(candidate.identities.emails), "somebody who was refused has a row")
    for kind, listener in listeners.items():
        _expect(not listener.more(), f"more announcements than check-ins by {kind}")


def _expect(fulfilled: bool, otherwise: str) -> None:
    if not fulfilled:
        raise Refused(otherwise)


def _check_in(candidate: Candidate, name: str | None) -> tuple[int, int]:
    """Check in over a connection of its own: the status and our port. Status 0: TLS refused."""
    context = ssl.create_default_context(cafile=str(candidate.identities.ca))
    if name is not None:
        context.load_cert_chain(*candidate.identities.pair(name))
    connection = http.client.HTTPSConnection(
        "localhost", candidate.port, context=context, timeout=ANSWER_TIMEOUT_S
    )
    try:
        connection.connect()
        port: int = connection.sock.getsockname()[1]
        connection.request("POST", "/api/client")
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException) as error:
        if name in (None, STRANGER):
            return 0, 0
        raise Refused(f"a check-in is not answered: {error}") from error
    finally:
        connection.close()
    return response.status, port


class _Listener:
    """Hears one address on loopback."""

    def __init__(self, address: str, port: int) -> None:
        sock = self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind((address, port))
        if address == GROUP:
            membership = socket.inet_aton(GROUP) + socket.inet_aton(LOOPBACK)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)

    def __enter__(self) -> _Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def updates(self, expected: int) -> Counter[Update]:
        """Return who is announced, until it is `expected` updates or too late for more."""
        heard: Counter[Update] = Counter()
        self._socket.settimeout(DATAGRAM_TIMEOUT_S)
        with contextlib.suppress(TimeoutError):
            while heard.total() < expected:
                heard.update(_updates(self._socket.recv(65536)))
        return heard

    def more(self) -> Counter[Update]:
        """Return who is announced although nobody is expected any more."""
        heard: Counter[Update] = Counter()
        self._socket.settimeout(QUIET_S)
        with contextlib.suppress(TimeoutError):
            while True:
                heard.update(_updates(self._socket.recv(65536)))
        return heard


def _updates(payload: bytes) -> list[Update]:
    """A datagram carries one check-in, or many in `updates`."""
    try:
        message = json.loads(payload)
        return [
            (update["email"], update["client_ip"], update["client_port"])
            for update in message.get("updates", [message])
        ]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise Refused("an announcement that is not what was agreed") from error
