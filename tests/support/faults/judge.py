"""The judge: compares a ledger with the database and with what a listener heard."""

from __future__ import annotations

import datetime
import itertools
import os
import socket
import threading
from collections import Counter, defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509 import load_pem_x509_certificate

from tests.support.announced import repeated_in, updates_in
from tests.support.faults.ledger import Certificate, Key, Ledger, Tally
from tests.support.harness import GROUP, PATIENCE_S, Heard, rows
from tornado_status.wire.datagram import decode_json, split_signature

QUIET_S = 0.3  # after which nothing more is on its way over loopback

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_SO_RCVBUFFORCE = 33  # socket(7): beyond the machine's limit, for root

LOG = (
    "SELECT seq, at, event, email, host(client_ip), client_port, issuer, serial,"
    " previous FROM check_in ORDER BY seq"
)
USERS = (
    "SELECT email, seq, last_seen, host(client_ip), client_port, issuer, serial, first_seen,"
    " devices FROM user_status"
)
MAX_DEVICES = 8  # others than the newest


class Row(NamedTuple):
    """An entry of the log."""

    seq: int
    at: datetime.datetime
    event: str
    email: str
    client_ip: str
    client_port: int
    issuer: str
    serial: str
    previous: int | None

    @property
    def key(self) -> Key:
        return self.email, self.client_ip, self.client_port

    @property
    def certificate(self) -> Certificate:
        return self.issuer, self.serial


class Listener:
    """Hears everything that is announced, from the beginning to `stop`: to the group, or broadcast.

    With `certs`, what the announcer there has not signed is counted in `unsigned`.
    """

    def __init__(self, port: int, *, certs: Path | None = None, group: str | None = GROUP) -> None:
        self.name = "group" if group is not None else "broadcast"
        self.unsigned = 0
        self._key: Ed25519PublicKey | None = None
        if certs is not None:
            certificate = load_pem_x509_certificate((certs / "announcer.crt").read_bytes())
            key = certificate.public_key()
            assert isinstance(key, Ed25519PublicKey)
            self._key = key
        self.updates: list[tuple[str, dict[str, Any]]] = []  # with their stream
        self.repeated: list[dict[str, Any]] = []
        self.heads: Counter[str] = Counter()
        self._heard = Heard(port, group=group)
        if os.geteuid() == 0:
            sock = self._heard.socket
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 * 1024 * 1024)
        self._heard.socket.settimeout(QUIET_S)
        self._stopping = threading.Event()
        self._silent = threading.Event()
        self._payloads: list[bytes] = []
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Hear what is still on its way, then end."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._thread.join()
            lost = self._lost()
            self._heard.socket.close()
            assert not lost, f"the test's own listener was too slow for {lost} datagrams"
            self._decode()

    def catch_up(self) -> None:
        """Hear what is still on its way, and go on. No client may check in meanwhile."""
        self._silent.clear()
        assert self._silent.wait(PATIENCE_S), "announcements without a pause"
        self._decode()

    def _decode(self) -> None:
        payloads = self._payloads[:]
        del self._payloads[: len(payloads)]
        for payload in payloads:
            datagram = decode_json(payload)  # what others refuse is no announcement
            self.unsigned += not self._is_signed(payload)
            stream = str(datagram.log_id)
            self.heads[stream] = max(self.heads[stream], datagram.head)
            self.updates += [(stream, update) for update in updates_in(payload)]
            self.repeated += repeated_in(payload)

    def _is_signed(self, payload: bytes) -> bool:
        if self._key is None:
            return True
        parts = split_signature(payload)
        if parts is None:
            return False
        _, signed, signature = parts
        try:
            self._key.verify(signature, signed)
        except InvalidSignature:
            return False
        return True

    def _listen(self) -> None:
        while True:
            try:
                self._payloads.append(self._heard.socket.recv(65536))
            except TimeoutError:
                self._silent.set()
                if self._stopping.is_set():
                    return

    def _lost(self) -> int:
        inode = str(os.fstat(self._heard.socket.fileno()).st_ino)
        for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] == inode:
                return int(fields[12])
        return 0


def judge(ledger: Ledger, database_url: str, *listeners: Listener) -> list[str]:
    """Return what is wrong, in sentences; empty where every promise was kept."""
    for listener in listeners:
        listener.stop()
    return examine(ledger, database_url, *listeners)


def examine(ledger: Ledger, database_url: str, *listeners: Listener) -> list[str]:
    """The same at a still moment: the load is paused, and the listeners have caught up."""
    log = [Row(*row) for row in rows(database_url, LOG)]
    return [
        *_statuses(ledger),
        *_numbers(log, database_url),
        *_recorded(ledger, log),
        *_users(log, database_url),
        *(each for listener in listeners for each in _announced(ledger, log, listener)),
    ]


def _statuses(ledger: Ledger) -> list[str]:
    strange = {status: n for status, n in ledger.statuses.items() if status not in (204, 503, None)}
    return [f"answers other than 204 and 503: {strange}"] if strange else []


def _numbers(log: list[Row], database_url: str) -> list[str]:
    """Gapless from 1 to the head, and the time never falls along them."""
    found = []
    numbers = [row.seq for row in log]
    if numbers != list(range(1, len(log) + 1)):
        missing = set(range(1, numbers[-1] + 1)) - set(numbers)
        found.append(f"numbers with gaps: {sorted(missing)[:5]} of {len(missing)} missing")
    [(head,)] = rows(database_url, "SELECT seq FROM head")
    if numbers and head != numbers[-1]:
        found.append(f"the head is {head}, the last number {numbers[-1]}")
    for before, after in itertools.pairwise(log):
        if after.at < before.at:
            found.append(f"the time falls from number {before.seq} to {after.seq}")
            break
    return found


def _recorded(ledger: Ledger, log: list[Row]) -> list[str]:
    """Each 204 is a row of its own, and each row was sent, with that certificate."""
    found = []
    recorded = Counter(row.key for row in log)
    for key in recorded.keys() | ledger.tallies.keys():
        tally = ledger.tallies.get(key, Tally())
        if recorded[key] < tally.acknowledged:
            found.append(f"missing: {key} has {recorded[key]} of {tally.acknowledged} acknowledged")
        if recorded[key] > tally.acknowledged + tally.unknown:
            found.append(
                f"recorded twice: {key} has {recorded[key]} rows for "
                f"{tally.acknowledged} acknowledged and {tally.unknown} others"
            )
    strangers = {row.client_ip for row in log} - {address for _, address, _ in ledger.tallies}
    if strangers:
        found.append(f"recorded from elsewhere: {strangers}")
    for row in log:
        known = ledger.certificates.get(row.key)
        if known not in (None, row.certificate):
            found.append(f"not that certificate: {row} of {known}")
            break
    return found


def _users(log: list[Row], database_url: str) -> list[str]:
    """A user's status is their newest row, and their first one is their only `new`."""
    found: list[str] = []
    users: defaultdict[str, list[Row]] = defaultdict(list)
    for row in log:
        before = users[row.email][-1].seq if users[row.email] else None
        if row.previous != before and len(found) < 5:
            found.append(f"not the number before it: {row}, expected {before}")
        users[row.email].append(row)
    status = {email: rest for email, *rest in rows(database_url, USERS)}
    newest = {
        email: [row.seq, row.at, row.client_ip, row.client_port, row.issuer, row.serial]
        for email, (*_, row) in users.items()
    }
    if {email: rest[:6] for email, rest in status.items()} != newest:
        found.append("user_status is not what the log ends with")
    else:
        for email, (*_, first_seen, devices) in status.items():
            if first_seen != users[email][0].at:
                found.append(f"first seen at another time: {email} at {first_seen}")
            found += _devices(users[email], devices)
    new = [row.seq for row in log if row.event == "new"]
    if new != sorted(of[0].seq for of in users.values()):
        found.append("not exactly the first check-in of a user is `new`")
    return found


def _devices(log: list[Row], devices: list[dict[str, Any]] | None) -> list[str]:
    """The other devices of a user, the newest first, each with its newest row."""
    by_certificate: defaultdict[Certificate, list[Row]] = defaultdict(list)
    for row in log:
        by_certificate[row.certificate].append(row)
    del by_certificate[log[-1].certificate]
    others = sorted(by_certificate.values(), key=lambda of: of[-1].at, reverse=True)
    recorded = [dict(sorted(each.items())) for each in devices or []]
    # Rows of one batch have the same time: any of these may be the newest.
    expected = [[_as_device(row) for row in of if row.at == of[-1].at] for of in others]
    same = len(recorded) == len(expected[:MAX_DEVICES]) and all(
        each in some for each, some in zip(recorded, expected, strict=False)
    )
    return [] if same else [f"not these devices: {log[-1].email} has {recorded}, not {expected}"]


def _as_device(row: Row) -> dict[str, Any]:
    return {
        "client_ip": row.client_ip,
        "client_port": row.client_port,
        "issuer": row.issuer,
        "microseconds": (row.at - _EPOCH) // datetime.timedelta(microseconds=1),
        "serial": row.serial,
    }


def _announced(ledger: Ledger, log: list[Row], listener: Listener) -> list[str]:
    """Announced events are recorded, and acknowledged ones were announced before."""
    found: list[str] = []
    recorded = {row.seq: row for row in log}
    heard: defaultdict[Key, set[int]] = defaultdict(set)
    for _, update in listener.updates:
        seq = update["seq"]
        row = recorded.get(seq)
        if row is None or as_announced(row) != update:
            if len(found) < 5:
                found.append(f"announced and not recorded: {update}")
            continue
        heard[row.key].add(seq)
    for update in listener.repeated:
        row = recorded.get(update["seq"])
        if (row is None or as_announced(row) != update) and len(found) < 5:
            found.append(f"repeated and not recorded: {update}")
    for stream, head in listener.heads.items():
        if head > len(log):
            found.append(f"announced head {head} of {stream} is above {len(log)}")
    for key, tally in ledger.tallies.items():
        if len(heard[key]) < tally.acknowledged:
            found.append(
                f"not announced ({listener.name}): {key} has {tally.acknowledged} acknowledged, "
                f"{len(heard[key])} heard"
            )
    if listener.unsigned:
        found.append(f"not signed ({listener.name}): {listener.unsigned} datagrams")
    return found


def as_announced(row: Row) -> dict[str, Any]:
    moment = row.at.astimezone(datetime.UTC)
    return {
        "seq": row.seq,
        "event": row.event,
        "email": row.email,
        "last_seen": moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "client_ip": row.client_ip,
        "client_port": row.client_port,
    }
