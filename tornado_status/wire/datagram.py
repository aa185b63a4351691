"""Status datagrams: bytes to announcements and back. No sockets here: see announce and listeners.

Two formats, described byte by byte in docs/protocol.md:

- JSON v1, the format of this project: one object with up to `MAX_DATAGRAM` bytes, as many updates
  of one committed batch as fit.
- binary v0, for receivers of the older format: one check-in a datagram.
"""

from __future__ import annotations

import base64
import datetime
import json
import re
import struct
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as _quoted
from typing import Protocol, cast

from tornado_status.errors import DatagramError
from tornado_status.model.records import Event, normalise_ip, timestamp

VERSION = 1

MAX_DATAGRAM = 1400  # one Ethernet frame: fragments are lost together
KID_PART = 25  # bytes of `,"kid":"0123456789abcdef"`
SIGNATURE_PART = 96  # bytes of `,"sig":"` + 86 characters + `"}`, always the last of a datagram
SIGNATURE_ROOM = KID_PART + SIGNATURE_PART  # kept free in unsigned datagrams, too
MAX_EMAIL = 254  # RFC 5321: a path of 256 octets less its angle brackets
MAX_SEQ = 2**63 - 1  # PostgreSQL's bigint

# Printable ASCII without quotation mark and backslash, exactly one @: nothing to escape anywhere.
_EMAIL = re.compile(r"[!#-?A-\[\]-~]{1,64}@[!#-?A-\[\]-~]{1,253}")
_KID = re.compile(r"[0-9a-f]{16}")
_KID_END = re.compile(rb',"kid":"([0-9a-f]{16})"')
_SIGNATURE_END = re.compile(rb',"sig":"([A-Za-z0-9_-]{85}[AQgw])"\}')  # 512 bits: the last has 2
_KIND = re.compile(r"[a-z][a-z-]{0,31}")
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True)
class Datagram:
    """A decoded JSON v1 datagram.

    `sent` is the sender's clock (UTC), `head` the largest sequence number that the sender knows.
    `updates` is empty in a heartbeat. `kid` names the key of the signature, None if there is none.
    The signature is not verified here.
    """

    log_id: uuid.UUID
    sent: datetime.datetime
    head: int
    updates: tuple[Event, ...]
    kid: str | None = None


@dataclass(frozen=True, slots=True)
class BinaryUpdate:
    """A decoded binary v0 datagram: a check-in without a sequence number, a kind or a log id."""

    email: str
    last_seen: datetime.datetime
    client_ip: str
    client_port: int


# ------------------------------------------------------------------------------------------ JSON


class Signs(Protocol):
    """Signs datagrams; see `pki.signing`."""

    kid: str

    def sign(self, message: bytes) -> bytes: ...


def encode_json(
    log_id: uuid.UUID,
    sent: datetime.datetime,
    head: int,
    events: Sequence[Event],
    signer: Signs | None = None,
) -> Iterator[bytes]:
    """Yield the datagrams that carry `events`, in order; one heartbeat if there are none.

    Each is at most `MAX_DATAGRAM` bytes, less the signature's room if there is no `signer`.
    Raises `DatagramError` for an event that fits in no datagram.
    """
    opening = f'{{"v":{VERSION},"log":"{log_id}","sent":"{timestamp(sent)}","head":{head}'
    envelope = f'{opening},"updates":['.encode()
    room = MAX_DATAGRAM - SIGNATURE_ROOM - len(envelope) - len(b"]}")
    pending: list[bytes] = []
    used = 0
    moment: datetime.datetime | None = None
    last_seen: str | None = None
    for event in events:
        if event.last_seen is not moment:  # one for all of a commit
            moment, last_seen = event.last_seen, _optional_timestamp(event.last_seen)
        update = _encode_update(event, last_seen)
        if len(update) > room:
            raise DatagramError("too-long", f"an update of {len(update)} bytes fits in no datagram")
        if pending and used + 1 + len(update) > room:
            yield _closed(envelope + b",".join(pending), signer)
            pending, used = [], 0
        used += len(update) + bool(pending)
        pending.append(update)
    if pending or not events:
        yield _closed(envelope + b",".join(pending), signer)


def _closed(beginning: bytes, signer: Signs | None) -> bytes:
    if signer is None:
        return beginning + b"]}"
    signed = b'%b],"kid":"%b"' % (beginning, signer.kid.encode())
    return b'%b,"sig":"%b"}' % (signed, signer.sign(signed))


def split_signature(payload: bytes) -> tuple[str, bytes, bytes] | None:
    """Return the key's name, the signed bytes and the signature of a signed JSON v1 datagram.

    All by position from the end. A search could be misled to other bytes than the signed ones.
    None if there is no signature in its place.
    """
    signed, part = payload[:-SIGNATURE_PART], payload[-SIGNATURE_PART:]
    kid = _KID_END.fullmatch(signed[-KID_PART:])
    signature = _SIGNATURE_END.fullmatch(part)
    if kid is None or signature is None:
        return None
    return kid[1].decode(), signed, base64.urlsafe_b64decode(signature[1] + b"==")


def encode_update(event: Event) -> bytes:
    """Return one member of `updates`: a JSON object without white space, in ASCII."""
    return _encode_update(event, _optional_timestamp(event.last_seen))


def _optional_timestamp(moment: datetime.datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)


def _encode_update(event: Event, last_seen: str | None) -> bytes:
    beginning = f'{{"seq":{event.seq},"event":"{event.event}","email":{_quoted(event.email)}'
    if last_seen is not None:
        beginning += f',"last_seen":"{last_seen}"'
    if event.client_ip is not None:
        beginning += f',"client_ip":"{event.client_ip}","client_port":{event.client_port}'
    if event.at is not None:
        beginning += f',"at":"{timestamp(event.at)}"'
    return f"{beginning}}}".encode()


def decode_json(payload: bytes) -> Datagram:
    """Decode and check one JSON v1 datagram. Unknown members are ignored.

    Raises `DatagramError`: `too-long`, `not-json`, `version` or `malformed`.
    """
    if len(payload) > MAX_DATAGRAM:
        raise DatagramError("too-long", f"{len(payload)} bytes, more than {MAX_DATAGRAM}")
    try:
        envelope: object = json.loads(payload, object_pairs_hook=_object_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise DatagramError("not-json", "not a JSON object") from error
    if not isinstance(envelope, dict):
        raise DatagramError("not-json", "not a JSON object")
    if envelope.get("v") is not VERSION:
        raise DatagramError("version", f"version {_short(envelope.get('v'))} is not {VERSION}")
    updates = envelope.get("updates")
    if not isinstance(updates, list):
        raise _malformed("updates", updates)
    return Datagram(
        log_id=_log_id(envelope.get("log")),
        sent=_moment("sent", envelope.get("sent")),
        head=_integer("head", envelope.get("head"), 0, MAX_SEQ),
        updates=tuple(_update(update) for update in updates),
        kid=_kid(envelope.get("kid")),
    )


def decode_update(update: object) -> Event:
    """Check one update as `json.loads` gives it. Raises `DatagramError` (`malformed`)."""
    return _update(update)


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        # Two decoders could take two different values.
        raise ValueError("a member occurs twice")
    return members


def _update(update: object) -> Event:
    if not isinstance(update, dict):
        raise _malformed("update", update)
    kind = update.get("event")
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise _malformed("event", kind)
    # Both or neither: no client caused an event without them.
    addressed = "client_ip" in update or "client_port" in update
    # Only an event of a user that never checked in has none.
    seen = "last_seen" in update or addressed or "at" not in update
    return Event(
        seq=_integer("seq", update.get("seq"), 1, MAX_SEQ),
        event=kind,
        email=_email(update.get("email")),
        last_seen=_moment("last_seen", update.get("last_seen")) if seen else None,
        client_ip=_ip(update.get("client_ip")) if addressed else None,
        client_port=(
            _integer("client_port", update.get("client_port"), 0, 65535) if addressed else None
        ),
        at=_moment("at", update["at"]) if "at" in update else None,
    )


def _kid(value: object) -> str | None:
    if value is None or (isinstance(value, str) and _KID.fullmatch(value)):
        return value
    raise _malformed("kid", value)


def _log_id(value: object) -> uuid.UUID:
    if isinstance(value, str):
        try:
            log_id = uuid.UUID(value)
        except ValueError:
            pass
        else:
            if str(log_id) == value:
                return log_id
    raise _malformed("log", value)


def _moment(name: str, value: object) -> datetime.datetime:
    if isinstance(value, str) and _TIMESTAMP.fullmatch(value):
        try:
            return datetime.datetime.fromisoformat(value)
        except ValueError:
            pass
    raise _malformed(name, value)


def _integer(name: str, value: object, low: int, high: int) -> int:
    if type(value) is int and low <= value <= high:
        return value
    raise _malformed(name, value)


def _email(value: object) -> str:
    if isinstance(value, str) and len(value) <= MAX_EMAIL and _EMAIL.fullmatch(value):
        return value
    raise _malformed("email", value)


def _ip(value: object) -> str:
    # A zone (`%eth0`) means nothing on another machine, and may hold control characters.
    if isinstance(value, str) and "%" not in value:
        try:
            return normalise_ip(value)
        except ValueError:
            pass
    raise _malformed("client_ip", value)


def _malformed(name: str, value: object) -> DatagramError:
    return DatagramError("malformed", f"{name}: {_short(value)} is not what docs/protocol.md says")


def _short(value: object) -> str:
    """Return an untrusted value for a message: escaped and short."""
    if isinstance(value, (dict, list)):
        # Not its text: ascii() of a deeply nested one may exhaust the stack.
        return "an object" if isinstance(value, dict) else "an array"
    text = ascii(value)
    return text if len(text) <= 40 else text[:37] + "..."


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
        raise DatagramError("malformed", "neither JSON v1 nor binary v0") from error
    if len(payload) != ip_end + 2:
        raise DatagramError("malformed", "neither JSON v1 nor binary v0: wrong length")
    return BinaryUpdate(
        email=_email(email),
        last_seen=_EPOCH + datetime.timedelta(microseconds=cast(int, nanoseconds) // 1000),
        client_ip=_ip(client_ip),
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
