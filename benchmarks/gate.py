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

from benchmarks.contender import BROADCAST, GROUP, LOOPBACK, Site
from benchmarks.identities import BAD, STRANGER
from benchmarks.instruments import receiver
from benchmarks.programs import BenchmarkError

ANSWER_TIMEOUT_S = 10.0  # for one check-in, on a machine that may be busy
DATAGRAM_TIMEOUT_S = 5.0  # on loopback, after the answer: it is there, or it was never sent
QUIET_S = 0.2  # after the expected datagrams: would there be more?
FIRST_CHECK_INS = 5  # of the first client; of the others one each
CLOCK_SKEW = datetime.timedelta(seconds=30)  # the database's and ours are one

Update = tuple[str, str, int]  # e-mail, client_ip, client_port


class GateRefused(BenchmarkError):
    """A server does not do the job, and is not measured."""


def check(site: Site) -> None:
    """Return if the server does the job. Raises `GateRefused` with the first failure."""
    with (
        receiver(GROUP, site.announce_port) as group,
        receiver(BROADCAST, site.announce_port) as broadcast,
    ):
        receivers = {"multicast": group, "broadcast": broadcast}
        first, *others = site.identities.emails
        for email in [*[first] * FIRST_CHECK_INS, *others]:
            expected = Counter([_check_in_and_look(site, email)])
            for kind, sock in receivers.items():
                _expect(
                    _announced(sock, 1, DATAGRAM_TIMEOUT_S) == expected,
                    f"no announcement of the check-in by {kind}, or not just one",
                )
        status, _ = _check_in(site, BAD)
        _expect(status == 400, f"a CN that is no e-mail address is answered {status}, not 400")
        _refuse_strangers(site)
        recorded = site.postgres.execute(site.database, "SELECT email FROM user_status")
        emails = sorted(row[0] for row in recorded)
        _expect(emails == sorted(site.identities.emails), "the rows are not those of the clients")
        for kind, sock in receivers.items():
            more = _announced(sock, None, QUIET_S)
            _expect(not more, f"more announcements than check-ins by {kind}")


def check_answers(site: Site) -> None:
    """The gate for a ceiling, of which only answers are expected. Raises `GateRefused`."""
    status, _ = _check_in(site, site.identities.emails[0])
    _expect(status == 204, "a check-in is not answered 204")
    _refuse_strangers(site)


def _refuse_strangers(site: Site) -> None:
    _expect(_check_in(site, None)[0] != 204, "204 without a certificate")
    _expect(_check_in(site, STRANGER)[0] != 204, "204 for a certificate of another CA")


def _check_in_and_look(site: Site, email: str) -> Update:
    """Check in; the row must be there, and on the disk. Return what must be announced."""
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
    last_seen, *address = rows[0]
    _expect(address == [LOOPBACK, port], "a row with another address")
    age = abs(datetime.datetime.now(datetime.UTC) - last_seen)
    _expect(age < CLOCK_SKEW, "a row with another time")
    _expect(flushed, "204 before the commit is on the disk (synchronous_commit, fsync)")
    return email, LOOPBACK, port


def _expect(fulfilled: bool, otherwise: str) -> None:
    if not fulfilled:
        raise GateRefused(f"refused by the gate: {otherwise}")


def _check_in(site: Site, name: str | None) -> tuple[int, int]:
    """Check in over a connection of its own: the status and our port. Status 0: TLS refused."""
    context = site.identities.client_context(name)
    connection = http.client.HTTPSConnection(
        "localhost", site.port, context=context, timeout=ANSWER_TIMEOUT_S
    )
    try:
        connection.connect()
        port: int = connection.sock.getsockname()[1]
        connection.request("POST", "/api/client")
        return connection.getresponse().status, port
    except (OSError, http.client.HTTPException) as error:
        _expect(name in (None, STRANGER), f"a check-in is not answered: {error}")
        return 0, 0
    finally:
        connection.close()


def _announced(sock: socket.socket, expected: int | None, timeout_s: float) -> Counter[Update]:
    """Return the announced updates: as many as expected, or all that come before a pause."""
    heard: Counter[Update] = Counter()
    sock.settimeout(timeout_s)
    with contextlib.suppress(TimeoutError):
        while expected is None or heard.total() < expected:
            try:
                message = json.loads(sock.recv(65536))
                for entry in message.get("events", [message]):  # one check-in, or many
                    if isinstance(entry, dict):
                        entry = entry["email"], entry["client_ip"], entry["client_port"]
                    email, client_ip, client_port = entry
                    heard[email, client_ip, client_port] += 1
            except (ValueError, AttributeError, KeyError, TypeError) as error:
                raise GateRefused(
                    "refused by the gate: an announcement of another format"
                ) from error
    return heard
