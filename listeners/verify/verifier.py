"""Verifies signed datagrams: bytes in, a verified datagram or the reason why not. Pure.

Cheap checks by position come first, then the signature. The JSON parser comes last, so that it
never gets bytes that no announcer signed.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Callable, Mapping

from listeners.order.bounded_set import BoundedSet
from tornado_status.errors import DatagramError
from tornado_status.pki.announcer_keys import AnnouncerKey
from tornado_status.wire.datagram import (
    MAX_DATAGRAM,
    VERSION_1,
    Datagram,
    decode_json,
    split_signature,
    version_1,
)
from tornado_status.wire.json_members import MAX_SEQ

MAX_SKEW_S = 60.0
# These reasons leave open whether a datagram is right: --insecure shows it, marked as not verified.
# All other reasons show that it is wrong.
UNVERIFIED_REASONS = frozenset(
    {"unsigned", "unknown-kid", "signature", "key-expired", "key-not-yet-valid"}
)

# Copies of a datagram, by each target and interface, are milliseconds apart; a replay comes within
# twice the skew. 16 bytes each.
REMEMBERED = 16_384

# How the shipped server begins a datagram. Another order is no error, only checked later.
_OPENING = re.compile(
    rb'\{"v":2,"log":"([0-9a-f-]{36})",'
    rb'"sent":"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)","head":(\d{1,19}),"'
)


class DuplicateDatagram(Exception):
    """The same bytes were verified before."""


class Verifier:
    """Verifies with `keys` (by kid) and a clock that is passed in, in UTC."""

    def __init__(
        self, keys: Callable[[], Mapping[str, AnnouncerKey]], max_skew_s: float = MAX_SKEW_S
    ) -> None:
        self._keys = keys
        self._max_skew = datetime.timedelta(seconds=max_skew_s)
        self._verified = BoundedSet[bytes](REMEMBERED)
        self._heartbeats: dict[str, datetime.datetime] = {}

    def screen(self, payload: bytes, now: datetime.datetime) -> tuple[str, bytes, bytes]:
        """Do the cheap checks. Raises `DatagramError` or `DuplicateDatagram`.

        Returns the key's name, the signed bytes and the signature.
        """
        if len(payload) > MAX_DATAGRAM:
            raise DatagramError("too-long", f"more than {MAX_DATAGRAM} bytes")
        if payload.startswith(VERSION_1):
            raise version_1()
        parts = split_signature(payload)
        if parts is None:
            raise DatagramError("unsigned", "it has no signature")
        self._announcer(parts[0], now)
        opening = _OPENING.match(payload)
        if opening is None:
            return parts
        try:
            sent = datetime.datetime.fromisoformat(opening[2].decode())
        except ValueError:
            raise DatagramError("malformed", "`sent` is not a time") from None
        self._check_skew(sent, now)
        if int(opening[3]) > MAX_SEQ:
            raise DatagramError("malformed", "`head` is not a sequence number")
        if _digest(payload) in self._verified:
            raise DuplicateDatagram
        return parts

    def verify(self, payload: bytes, now: datetime.datetime) -> Datagram:
        """Return the datagram, if a known key signed it, it was sent now and it is new.

        Raises `DatagramError` or `DuplicateDatagram`.
        """
        kid, signed, signature = self.screen(payload, now)
        if not self._announcer(kid, now).verify(signature, signed):
            raise DatagramError("signature", "the signature does not match")
        datagram = decode_json(payload)
        if datagram.kid != kid:
            raise DatagramError("malformed", "`kid` is not the key that signed it")
        self._check_skew(datagram.sent, now)
        if not self._verified.add(_digest(payload)):
            raise DuplicateDatagram
        if not datagram.updates:
            newest = self._heartbeats.get(kid)
            if newest is not None and datagram.sent <= newest:
                raise DatagramError("old-heartbeat", "a heartbeat that is not newer than the last")
            self._heartbeats = {known: m for known, m in self._heartbeats.items() if known != kid}
            self._heartbeats[kid] = datagram.sent
            while len(self._heartbeats) > 2 * len(self._keys()):
                del self._heartbeats[next(iter(self._heartbeats))]  # of a key that is gone
        return datagram

    def _announcer(self, kid: str, now: datetime.datetime) -> AnnouncerKey:
        announcer = self._keys().get(kid)
        if announcer is None:
            raise DatagramError("unknown-kid", f"no known announcer has the key {kid}")
        if announcer.is_valid(now):
            return announcer
        if announcer.is_yet_to_come(now):
            raise DatagramError("key-not-yet-valid", "its key's certificate is not valid yet")
        raise DatagramError("key-expired", "its key's certificate, or a CA above, has expired")

    def _check_skew(self, sent: datetime.datetime, now: datetime.datetime) -> None:
        if abs(sent - now) > self._max_skew:
            seconds = (sent - now).total_seconds()
            when = f"{abs(seconds):.0f} s {'after' if seconds > 0 else 'before'}"
            raise DatagramError("skew", f"it was sent {when} the time on this clock")


def _digest(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=16).digest()
