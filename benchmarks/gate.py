"""The gate before every measurement: does this server do the job at all?

A server that answers faster because it commits later, or announces nothing, must not get a number.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import socket
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from benchmarks.contender import BROADCAST, GROUP, LOOPBACK, Site
from benchmarks.identities import BAD, STRANGER
from benchmarks.instruments import receiver
from benchmarks.load import Load, run
from benchmarks.programs import BenchmarkError

ANSWER_TIMEOUT_S = 10.0  # for one check-in, on a machine that may be busy
DATAGRAM_TIMEOUT_S = 5.0  # on loopback, after the answer: it is there, or it was never sent
QUIET_S = 0.2  # after the expected datagrams: would there be more?
SINGLE_CHECK_INS = 5  # one by one, each of which has to reach the disk before its answer
CLOCK_SKEW = datetime.timedelta(seconds=30)  # the database's and ours are one

Update = tuple[str, str, int]  # e-mail, client_ip, client_port
Receivers = Mapping[str, socket.socket]


class GateRefused(BenchmarkError):
    """A server does not do the job, and so is not measured."""


def check(site: Site, load_program: Path) -> None:
    """Return if the server does the job. Raises `GateRefused` with the first failure."""
    with (
        receiver(GROUP, site.announce_port) as group,
        receiver(BROADCAST, site.announce_port) as broadcast,
    ):
        receivers = {"multicast": group, "broadcast": broadcast}
        for _ in range(SINGLE_CHECK_INS):
            _single_check_in(site, receivers)
        _every_identity(site, receivers, load_program)
        status, _ = _check_in(site, BAD)
        _expect(status == 400, f"a CN that is no e-mail address is answered {status}, not 400")
        _strangers(site)
        ((users,),) = site.postgres.execute(site.database, "SELECT count(*) FROM user_status")
        _expect(users == len(site.identities.emails), "a client that was refused has a row")
        for kind, sock in receivers.items():
            more = _announced(sock, None, QUIET_S)
            _expect(not more, f"more announcements than check-ins by {kind}")


def check_answers(site: Site, load_program: Path) -> None:
    """The gate for a ceiling, of which only answers are expected. Raises `GateRefused`."""
    status, _ = _check_in(site, site.identities.emails[0])
    _expect(status == 204, "a check-in is not answered 204")
    _strangers(site)


def _single_check_in(site: Site, receivers: Receivers) -> None:
    email = site.identities.emails[0]
    lsn = "SELECT pg_current_wal_flush_lsn()::text"
    before = site.postgres.execute(site.database, lsn)
    status, port = _check_in(site, email)
    flushed = site.postgres.execute(site.database, lsn) != before
    _expect(status == 204, f"a check-in is answered {status}, not 204")
    rows = site.postgres.execute(
        site.database,
        "SELECT last_seen, host(client_ip), client_port FROM user_status WHERE email = %s",
        email,
    )
    _expect(len(rows) == 1, "204 without a committed row")
    last_seen, client_ip, client_port = rows[0]
    _expect((client_ip, client_port) == (LOOPBACK, port), "a row with another address")
    age = abs(datetime.datetime.now(datetime.UTC) - last_seen)
    _expect(age < CLOCK_SKEW, "a row with another time")
    _expect(flushed, "204 before the commit is on the disk (synchronous_commit, fsync)")
    for kind, sock in receivers.items():
        _expect(
            _announced(sock, 1, DATAGRAM_TIMEOUT_S) == Counter({(email, LOOPBACK, port): 1}),
            f"no announcement of the check-in by {kind}, or not just one",
        )


def _every_identity(site: Site, receivers: Receivers, load_program: Path) -> None:
    emails = site.identities.emails
    count = len(emails)
    result = run(
        Load(
            load_program,
            "handshake",
            site.port,
            site.identities.listed,
            connections=min(16, count),
            requests=count,
            seconds=ANSWER_TIMEOUT_S + 0.1 * count,
        )
    )
    _expect(
        result.count == count and not result.errors,
        f"{result.count} of {count} valid certificates accepted ({result.first_error})",
    )
    recorded = site.postgres.execute(site.database, "SELECT email FROM user_status")
    _expect({row[0] for row in recorded} == set(emails), "the rows are not those of the clients")
    for kind, sock in receivers.items():
        heard = _announced(sock, count, DATAGRAM_TIMEOUT_S)
        _expect(
            Counter(email for email, _, _ in heard.elements()) == Counter(emails),
            f"not one announcement of each check-in by {kind}",
        )


def _strangers(site: Site) -> None:
    _expect(_check_in(site, None)[0] != 204, "204 without a certificate")
    _expect(_check_in(site, STRANGER)[0] != 204, "204 for a certificate of another CA")


def _expect(fulfilled: bool, otherwise: str) -> None:
    if not fulfilled:
        raise GateRefused(f"refused by the gate: {otherwise}")


def _check_in(site: Site, name: str | None) -> tuple[int, int]:
    """Check in over a connection of its own: the status and our port. Status 0: TLS refused."""
    connection = http.client.HTTPSConnection(
        "localhost",
        site.port,
        context=site.identities.client_context(name),
        timeout=ANSWER_TIMEOUT_S,
    )
    try:
        connection.connect()
        port: int = connection.sock.getsockname()[1]
        connection.request("POST", "/api/client")
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException) as error:
        _expect(name in (None, STRANGER), f"a check-in is not answered: {error}")
        return 0, 0
    finally:
        connection.close()
    return response.status, port


def _announced(sock: socket.socket, expected: int | None, timeout_s: float) -> Counter[Update]:
    """Return the announced updates: as many as expected, or all that come before a pause."""
    heard: Counter[Update] = Counter()
    sock.settimeout(timeout_s)
    with contextlib.suppress(TimeoutError):
        while expected is None or heard.total() < expected:
            heard.update(_updates(sock.recv(65536)))
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
        raise GateRefused("refused by the gate: an announcement of another format") from error
