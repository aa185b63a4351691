"""Status datagrams: bytes to announcements and back. No sockets here: see announce and listeners.

Two formats, described byte by byte in docs/protocol.md:

- JSON v2, the format of this project: one object with up to `MAX_DATAGRAM` bytes. It has as many
  events of one commit as fit, and repeats earlier ones if there is room.
- binary v0, for receivers of the older format: one check-in a datagram.
"""

from __future__ import annotations

import base64
import datetime
import json
import re
import struct
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as _quoted
from typing import Protocol, cast

from tornado_status.errors import DatagramError
from tornado_status.model.records import Event, EventKind, LogStep, timestamp
from tornado_status.wire import json_members
from tornado_status.wire.json_members import MAX_EMAIL, MAX_SEQ, malformed

VERSION = 2
_OLDER = 1
VERSION_1 = b'{"v":1,'  # how servers of the format before began a datagram

MAX_DATAGRAM = 1400  # one Ethernet frame: fragments are lost together
KID_PART = 25  # bytes of `,"kid":"0123456789abcdef"`
SIGNATURE_PART = 96  # bytes of `,"sig":"` + 86 characters + `"}`, always the last of a datagram
SIGNATURE_ROOM = KID_PART + SIGNATURE_PART  # kept free in unsigned datagrams, too
_EVENTS_ROOM = MAX_DATAGRAM - SIGNATURE_ROOM - len("]}")
_REPEAT_FRAME = len(',"repeat":[]')

_KID_END = re.compile(rb',"kid":"([0-9a-f]{16})"')
_SIGNATURE_END = re.compile(rb',"sig":"([A-Za-z0-9_-]{85}[AQgw])"\}')  # 512 bits: the last has 2
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_CHECK_IN: str = EventKind.CHECK_IN.value


@dataclass(frozen=True, slots=True)
class Datagram:
    """A decoded JSON v2 datagram.

    `sent` is the sender's clock (UTC), `head` the largest sequence number that the sender knows.
    `updates` are new, and empty in a heartbeat. `repeated` were announced before, newest first.
    `parent` is how the log began, in heartbeats of a log that went on from another. `kid` names the
    key of the signature, None if there is none. The signature is not verified here.
    """

    log_id: uuid.UUID
    sent: datetime.datetime
    head: int
    updates: tuple[Event, ...]
    repeated: tuple[Event, ...] = ()
    parent: LogStep | None = None
    kid: str | None = None


@dataclass(frozen=True, slots=True)
class BinaryUpdate:
    """A decoded binary v0 datagram: a check-in without a sequence number, a kind or a log id."""

    email: str
    last_seen: datetime.datetime
    client_ip: str
    client_port: int


# -------------------------------------------------------------------------------- JSON, encoding


class Signs(Protocol):
    """Signs datagrams; see `pki.announcer_keys.Signer`."""

    kid: str

    def sign(self, message: bytes) -> bytes: ...


class DatagramEncoder:
    """Encodes what one announcer sends, and repeats its last `repeat` events where there is room.

    An event rides along in no more than the next `repeat` datagrams, so that heartbeats do not
    repeat it for ever.
    """

    def __init__(self, repeat: int = 0) -> None:
        self._repeat = repeat
        self._log_id: uuid.UUID | None = None
        self._count = 0  # of datagrams
        # The newest first, each as it is repeated, with the number of the datagram it was new in.
        self._announced: deque[tuple[int, str]] = deque(maxlen=repeat)

    def encode(
        self,
        log_id: uuid.UUID,
        sent: datetime.datetime,
        head: int,
        events: Sequence[Event],
        signer: Signs | None = None,
        parent: LogStep | None = None,
    ) -> Iterator[bytes]:
        """Yield the datagrams that carry `events`, in order; one heartbeat if there are none.

        Only a heartbeat has the `parent`. A datagram holds one run of consecutive numbers of one
        time, in at most `MAX_DATAGRAM` bytes, less the signature's room if there is no `signer`.
        Raises `DatagramError` for an event that fits in no datagram.
        """
        if log_id != self._log_id:
            self._log_id = log_id
            self._announced.clear()
        opening = f'{{"v":{VERSION},"log":"{log_id}","sent":"{timestamp(sent)}","head":{head},'
        if not events:
            step = ""
            if parent is not None:
                step = f'"parent":{{"log":"{parent.parent}","fork":{parent.fork}}},'
            yield self._close(f'{opening}{step}"events":[', signer)
            return
        # One check-in is the usual case of this loop, which is on the path of each.
        entries: list[str] = []
        beginning = at_text = ""
        at: datetime.datetime | None = None
        first = following = room = 0
        for seq, kind, email, last_seen, client_ip, client_port, own_at in events:
            if kind == _CHECK_IN and client_ip is not None:
                moment = last_seen
                entry = f'[{_quoted(email)},"{client_ip}",{client_port}]'
            else:
                moment = own_at if client_ip is None else last_seen
                entry = _encode_object(kind, email, last_seen, client_ip, client_port)
            room -= len(entry) + 1
            if room < 0 or seq != following or (moment is not at and moment != at):
                if entries:
                    payload = self._close(beginning + ",".join(entries), signer)
                    self._remember(entries, first, at_text)
                    entries = []
                    yield payload
                first, at, at_text = seq, moment, _time(moment)
                beginning = f'{opening}"at":"{at_text}","first":{seq},"events":['
                room = _EVENTS_ROOM - len(beginning) - len(entry)
                if room < 0:
                    size = len(entry)
                    raise DatagramError("too-long", f"an event of {size} bytes fits in no datagram")
            entries.append(entry)
            following = seq + 1
        payload = self._close(beginning + ",".join(entries), signer)
        self._remember(entries, first, at_text)
        yield payload

    def _close(self, text: str, signer: Signs | None) -> bytes:
        self._count += 1
        text += f"]{self._repeats(_EVENTS_ROOM - len(text))}" if self._announced else "]"
        if signer is None:
            return f"{text}}}".encode()
        signed = f'{text},"kid":"{signer.kid}"'.encode()
        return b'%b,"sig":"%b"}' % (signed, signer.sign(signed))

    def _repeats(self, room: int) -> str:
        announced = self._announced
        while announced and announced[-1][0] < self._count - self._repeat:
            announced.pop()
        room -= _REPEAT_FRAME
        repeats = []
        for _, repeat in announced:
            room -= len(repeat) + 1
            if room < -1:
                break
            repeats.append(repeat)
        return f',"repeat":[{",".join(repeats)}]' if repeats else ""

    def _remember(self, entries: Sequence[str], first: int, at: str) -> None:
        begin = max(0, len(entries) - self._repeat)
        for number in range(begin, len(entries)):
            repeat = f'[{first + number},"{at}",{entries[number]}]'
            self._announced.appendleft((self._count, repeat))


def encode_json(
    log_id: uuid.UUID,
    sent: datetime.datetime,
    head: int,
    events: Sequence[Event],
    signer: Signs | None = None,
    parent: LogStep | None = None,
) -> Iterator[bytes]:
    """Yield datagrams that repeat nothing; see `DatagramEncoder.encode`."""
    return DatagramEncoder().encode(log_id, sent, head, events, signer, parent)


def _encode_object(
    kind: str,
    email: str,
    last_seen: datetime.datetime | None,
    client_ip: str | None,
    client_port: int | None,
) -> str:
    text = f'{{"event":"{kind}","email":{_quoted(email)}'
    if client_ip is not None:
        return f'{text},"client_ip":"{client_ip}","client_port":{client_port}}}'
    if last_seen is not None:
        return f'{text},"last_seen":"{timestamp(last_seen)}"}}'
    return f"{text}}}"


def _time(moment: datetime.datetime | None) -> str:
    if moment is None:
        raise DatagramError("malformed", "an event without the time of its commit")
    return timestamp(moment)


def split_signature(payload: bytes) -> tuple[str, bytes, bytes] | None:
    """Return the key's name, the signed bytes and the signature of a signed JSON datagram.

    All by position from the end. A search could be misled to other bytes than the signed ones.
    None if there is no signature in its place.
    """
    signed, part = payload[:-SIGNATURE_PART], payload[-SIGNATURE_PART:]
    kid = _KID_END.fullmatch(signed[-KID_PART:])
    signature = _SIGNATURE_END.fullmatch(part)
    if kid is None or signature is None:
        return None
    return kid[1].decode(), signed, base64.urlsafe_b64decode(signature[1] + b"==")


# -------------------------------------------------------------------------------- JSON, decoding


def decode_json(payload: bytes) -> Datagram:
    """Decode and check one JSON v2 datagram. Unknown members are ignored.

    Raises `DatagramError`: `too-long`, `not-json`, `version-1`, `version` or `malformed`.
    """
    if len(payload) > MAX_DATAGRAM:
        raise DatagramError("too-long", f"{len(payload)} bytes, more than {MAX_DATAGRAM}")
    try:
        envelope: object = json.loads(payload, object_pairs_hook=_object_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise DatagramError("not-json", "not a JSON object") from error
    if not isinstance(envelope, dict):
        raise DatagramError("not-json", "not a JSON object")
    version = envelope.get("v")
    if version is not VERSION:
        if version is _OLDER:
            raise version_1()
        raise DatagramError("version", f"version {json_members.short(version)} is not {VERSION}")
    log_id = json_members.log_id(envelope.get("log"))
    return Datagram(
        log_id=log_id,
        sent=json_members.moment("sent", envelope.get("sent")),
        head=json_members.integer("head", envelope.get("head"), 0),
        updates=_new_events(envelope),
        repeated=tuple(_repeated(each) for each in _array("repeat", envelope.get("repeat", []))),
        parent=_parent(log_id, envelope["parent"]) if "parent" in envelope else None,
        kid=json_members.kid(envelope.get("kid")),
    )


def version_1() -> DatagramError:
    """Return the refusal of a datagram of the format before."""
    return DatagramError("version-1", "it has the older format v1: update its server")


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        # Two decoders could take two different values.
        raise ValueError("a member occurs twice")
    return members


def _new_events(envelope: dict[str, object]) -> tuple[Event, ...]:
    entries = _array("events", envelope.get("events"))
    if not entries:
        return ()
    at = json_members.moment("at", envelope.get("at"))
    first = json_members.integer("first", envelope.get("first"), 1, MAX_SEQ - len(entries) + 1)
    return tuple(_event(first + number, at, entry) for number, entry in enumerate(entries))


def _repeated(value: object) -> Event:
    if not isinstance(value, list) or len(value) != 3:
        raise malformed("repeat", value)
    seq, at, entry = value
    return _event(json_members.integer("repeat", seq, 1), json_members.moment("repeat", at), entry)


def _event(seq: int, at: datetime.datetime, entry: object) -> Event:
    if isinstance(entry, list) and len(entry) == 3:
        return Event(
            seq,
            _CHECK_IN,
            json_members.email(entry[0]),
            at,
            json_members.client_ip(entry[1]),
            json_members.client_port(entry[2]),
        )
    if not isinstance(entry, dict):
        raise malformed("event", entry)
    kind, email = json_members.kind(entry.get("event")), json_members.email(entry.get("email"))
    # Both or neither: no client caused an event without them.
    if "client_ip" in entry or "client_port" in entry:
        client_ip = json_members.client_ip(entry.get("client_ip"))
        return Event(
            seq, kind, email, at, client_ip, json_members.client_port(entry.get("client_port"))
        )
    last_seen = None
    if "last_seen" in entry:
        last_seen = json_members.moment("last_seen", entry["last_seen"])
    return Event(seq, kind, email, last_seen, None, None, at)


def _parent(log_id: uuid.UUID, value: object) -> LogStep:
    if not isinstance(value, dict):
        raise malformed("parent", value)
    fork = json_members.integer("fork", value.get("fork"), 0)
    return LogStep(log_id, json_members.log_id(value.get("log")), fork)


def _array(name: str, value: object) -> list[object]:
    if isinstance(value, list):
        return value
    raise malformed(name, value)


# ---------------------------------------------------------------------------------------- binary


def encode_binary(event: Event) -> bytes:
    """Return one binary v0 datagram. Raises `DatagramError` if a field does not fit.

    For check-ins only: receivers of this format take every datagram for one.
    """
    if event.client_ip is None or event.last_seen is None:
        raise DatagramError("malformed", f"binary v0 has no room for the event {event.event}")
    elapsed = event.last_seen - _EPOCH
    nanoseconds = (elapsed // datetime.timedelta(microseconds=1)) * 1000
    try:
        email = event.email.encode("ascii")
        client_ip = event.client_ip.encode("ascii")
        if not 0 < len(email) <= MAX_EMAIL:
            raise DatagramError("too-long", f"an e-mail address of {len(email)} bytes")
        return struct.pack(
            f"!B{len(email)}sQB{len(client_ip)}sH",
            len(email),
            email,
            nanoseconds,
            len(client_ip),
            client_ip,
            event.client_port,
        )
    except (struct.error, UnicodeEncodeError) as error:
        raise DatagramError("malformed", f"binary v0 cannot hold this check-in: {error}") from error


def decode_binary(payload: bytes) -> BinaryUpdate:
    """Decode and check one binary v0 datagram. Raises `DatagramError` (`malformed`).

    Nanoseconds below the microsecond are cut off.
    """
    try:
        email_end = 1 + payload[0]
        (nanoseconds, ip_length) = struct.unpack_from("!QB", payload, email_end)
        ip_end = email_end + 9 + ip_length
        (client_port,) = struct.unpack_from("!H", payload, ip_end)
        email = payload[1:email_end].decode("ascii")
        client_ip = payload[email_end + 9 : ip_end].decode("ascii")
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise DatagramError("malformed", "neither JSON nor binary v0") from error
    if len(payload) != ip_end + 2:
        raise DatagramError("malformed", "neither JSON nor binary v0: wrong length")
    return BinaryUpdate(
        email=json_members.email(email),
        last_seen=_EPOCH + datetime.timedelta(microseconds=cast(int, nanoseconds) // 1000),
        client_ip=json_members.client_ip(client_ip),
        client_port=client_port,
    )


def decode(payload: bytes) -> Datagram | BinaryUpdate:
    """Decode a datagram of either format, told apart by its first two bytes.

    A binary datagram may begin with `{` too (an e-mail of 123 characters), but never with `{"`:
    no e-mail address begins with a quotation mark.
    """
    if payload.startswith(b'{"'):
        return decode_json(payload)
    return decode_binary(payload)
