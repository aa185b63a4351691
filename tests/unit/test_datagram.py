"""The two datagram formats: what is sent is what is heard, and nothing else gets through."""

from __future__ import annotations

import datetime
import ipaddress
import json
import uuid
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.vectors import written_event
from tornado_status.errors import DatagramError
from tornado_status.model.records import Event, normalise_ip
from tornado_status.wire.datagram import (
    MAX_DATAGRAM,
    MAX_SEQ,
    SIGNATURE_ROOM,
    BinaryUpdate,
    Datagram,
    decode,
    decode_binary,
    decode_json,
    decode_update,
    encode_binary,
    encode_json,
    encode_update,
)

VECTORS = Path(__file__).parents[1] / "vectors"
LOG_ID = uuid.UUID("0b0e7a52-4c1f-4f57-9d8e-2f6a3c5b1d90")
MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
CHECK_IN = Event(42, "check-in", "valid_user@example.com", MOMENT, "10.0.0.7", 51514)

no_deadline = settings(deadline=None)  # a busy machine is no failure

# --------------------------------------------------------------------------------------- strategies

_EMAIL_ALPHABET = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"@\\')

emails = st.builds(
    "{}@{}".format,
    st.text(_EMAIL_ALPHABET, min_size=1, max_size=64),
    st.text(_EMAIL_ALPHABET, min_size=1, max_size=189),
)
moments = st.datetimes(
    datetime.datetime(1970, 1, 1), datetime.datetime(2553, 12, 31), timezones=st.just(datetime.UTC)
)
# In normal form: an IPv4 address in IPv6 clothes would not come back as it went.
addresses = st.ip_addresses().map(str).filter(lambda text: normalise_ip(text) == text)
kinds = st.from_regex(r"[a-z][a-z-]{0,31}", fullmatch=True)
check_ins = st.builds(
    Event,
    seq=st.integers(1, MAX_SEQ),
    event=kinds,
    email=emails,
    last_seen=moments,
    client_ip=addresses,
    client_port=st.integers(0, 65535),
    at=st.none(),
)
events = check_ins | st.builds(
    Event,
    seq=st.integers(1, MAX_SEQ),
    event=kinds,
    email=emails,
    last_seen=st.none() | moments,
    client_ip=st.none(),
    client_port=st.none(),
    at=moments,
)
heads = st.integers(0, MAX_SEQ)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda children: st.one_of(
        st.lists(children, max_size=4), st.dictionaries(st.text(max_size=12), children, max_size=4)
    ),
    max_leaves=12,
)

# ----------------------------------------------------------------------------------- golden vectors


def vectors(name: str) -> list[Path]:
    found = sorted(VECTORS.glob(f"{name}-*.json"))
    assert found
    return found


@pytest.mark.parametrize("path", vectors("json-v1"), ids=lambda path: path.stem)
def test_json_vectors_encode_to_and_decode_from_the_written_bytes(path: Path) -> None:
    """The JSON format is what the vectors say, byte for byte, in both directions."""
    vector = json.loads(path.read_text("utf-8"))
    payload = vector["text"].encode("ascii")
    fields = vector["fields"]
    datagram = Datagram(
        log_id=uuid.UUID(fields["log"]),
        sent=datetime.datetime.fromisoformat(fields["sent"]),
        head=fields["head"],
        updates=tuple(written_event(update) for update in fields["updates"]),
    )
    assert decode(payload) == datagram
    encoded = encode_json(datagram.log_id, datagram.sent, datagram.head, datagram.updates)
    assert list(encoded) == [payload]


@pytest.mark.parametrize("path", vectors("binary-v0"), ids=lambda path: path.stem)
def test_binary_vectors_encode_to_and_decode_from_the_written_bytes(path: Path) -> None:
    """The binary format is what the vectors say, byte for byte, in both directions."""
    vector = json.loads(path.read_text("utf-8"))
    payload = bytes.fromhex(vector["hex"])
    fields = vector["fields"]
    last_seen = datetime.datetime.fromisoformat(fields["last_seen"])
    assert decode(payload) == BinaryUpdate(**{**fields, "last_seen": last_seen})
    event = Event(seq=1, event="check-in", **{**fields, "last_seen": last_seen})
    assert encode_binary(event) == payload


# -------------------------------------------------------------------------------------- round trips


@no_deadline
@given(st.uuids(), moments, heads, st.lists(events, max_size=20))
def test_json_datagrams_carry_every_update_in_order_within_one_frame(
    log_id: uuid.UUID, sent: datetime.datetime, head: int, sent_events: list[Event]
) -> None:
    """All events arrive whole and in order, and each datagram can still be signed."""
    payloads = list(encode_json(log_id, sent, head, sent_events))
    assert all(len(payload) <= MAX_DATAGRAM - SIGNATURE_ROOM for payload in payloads)
    heard: list[Event] = []
    for payload in payloads:
        datagram = decode(payload)
        assert isinstance(datagram, Datagram)
        assert (datagram.log_id, datagram.sent, datagram.head) == (log_id, sent, head)
        assert datagram.updates or not sent_events
        heard.extend(datagram.updates)
    assert heard == sent_events


@no_deadline
@given(check_ins)
def test_binary_datagrams_carry_a_check_in(event: Event) -> None:
    """A receiver of the older format learns who, when and from where, to the microsecond."""
    payload = encode_binary(event)
    assert event.client_ip is not None
    assert event.client_port is not None
    assert event.last_seen is not None
    assert len(payload) <= MAX_DATAGRAM
    assert decode(payload) == BinaryUpdate(
        event.email, event.last_seen, event.client_ip, event.client_port
    )


@no_deadline
@given(events)
def test_an_update_stands_alone(event: Event) -> None:
    """One update is an object of its own, so that it can be read from the log as well."""
    assert decode_update(json.loads(encode_update(event))) == event


def test_two_of_the_longest_updates_fit_in_one_datagram() -> None:
    """Even the longest names do not cost a datagram each."""
    longest = Event(
        seq=MAX_SEQ,
        event="k" * 32,
        email="l" * 64 + "@" + "d" * 189,
        last_seen=MOMENT,
        client_ip=str(ipaddress.IPv6Address(2**128 - 1)),
        client_port=65535,
        at=MOMENT,
    )
    assert len(list(encode_json(LOG_ID, MOMENT, MAX_SEQ, [longest] * 2))) == 1
    assert len(list(encode_json(LOG_ID, MOMENT, MAX_SEQ, [longest] * 3))) == 2


def test_a_datagram_is_filled_before_the_next_is_begun() -> None:
    """A burst costs as few datagrams as it can: about seven ordinary check-ins fit in one."""
    payloads = list(encode_json(LOG_ID, MOMENT, 42, [CHECK_IN] * 15))
    assert [len(decode_json(payload).updates) for payload in payloads] == [7, 7, 1]


# ---------------------------------------------------------------------------------- what is refused


def reason(payload: bytes) -> str:
    with pytest.raises(DatagramError) as refusal:
        decode(payload)
    return refusal.value.reason


@no_deadline
@given(st.one_of(st.binary(max_size=600), st.binary(max_size=600).map(lambda tail: b'{"' + tail)))
@example(b"")
@example(b"{")
@example(b'{"')
@example(b"\xff" * (MAX_DATAGRAM + 1))
@example(b'{"v":1,"updates":[\xff]}')
def test_any_bytes_decode_or_are_refused(payload: bytes) -> None:
    """Nothing that a stranger sends breaks a listener."""
    try:
        decode(payload)
    except DatagramError as error:
        assert str(error).isascii()
        assert str(error).isprintable()


@no_deadline
@given(
    st.lists(check_ins, min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 2000),
    st.binary(max_size=3),
)
def test_a_damaged_datagram_decodes_or_is_refused(
    sent_events: list[Event], binary: bool, place: int, damage: bytes
) -> None:
    """A datagram changed on the way is still one or refused, never a crash."""
    payload = (
        encode_binary(sent_events[0])
        if binary
        else next(encode_json(LOG_ID, MOMENT, 42, sent_events))
    )
    place %= len(payload)
    try:
        decode(payload[:place] + damage + payload[place + 1 :])
    except DatagramError:
        pass


@no_deadline
@given(st.dictionaries(st.sampled_from(["v", "log", "sent", "head", "updates"]), json_values))
def test_any_json_object_decodes_or_is_refused(members: dict[str, object]) -> None:
    """Members of any type and shape are judged, not trusted."""
    payload = json.dumps({"v": 1, "log": str(LOG_ID), **members}).encode()
    try:
        decode_json(payload)
    except DatagramError as error:
        assert str(error).isascii()
        assert str(error).isprintable()


@no_deadline
@given(
    st.sampled_from(["seq", "event", "email", "last_seen", "client_ip", "client_port", "at"]),
    json_values,
)
def test_any_update_decodes_or_is_refused(member: str, value: object) -> None:
    """One wrong member is enough to refuse an update, and what passes has nothing to escape."""
    update = json.loads(encode_update(CHECK_IN))
    update[member] = value
    try:
        event = decode_update(update)
    except DatagramError:
        return
    assert f"{event.event}{event.email}{event.client_ip}".isascii()
    assert f"{event.event}{event.email}{event.client_ip}".isprintable()


@pytest.mark.parametrize(
    "updates",
    [
        b"[" * 640 + b"]" * 640,
        b"[" * 1300,
        b'{"a":' * 200 + b"1" + b"}" * 200,
        b"9" * 1300,
        b"-1e999999",
        b'"' + b"x" * 1300 + b'"',
    ],
    ids=["nested", "unclosed", "objects", "huge number", "infinity", "long text"],
)
def test_huge_and_nested_values_are_refused(updates: bytes) -> None:
    """A datagram cannot exhaust the stack, and its refusal fits on one short line."""
    with pytest.raises(DatagramError) as refusal:
        decode(b'{"v":1,"updates":' + updates + b"}")
    assert len(str(refusal.value)) < 120


@pytest.mark.parametrize(
    "payload",
    [
        b'{"v":1,"v":1,"updates":[]}',
        b'{"v":1,"updates":[{"seq":1,"seq":2}]}',
        b'{"v":1,"unknown":{"a":1,"a":2},"updates":[]}',
    ],
)
def test_a_member_that_occurs_twice_is_refused(payload: bytes) -> None:
    """Two readers never believe two different values of one datagram."""
    assert reason(payload) == "not-json"


@pytest.mark.parametrize("version", [b"2", b"true", b"1.0", b'"1"', b"null", b"[]"])
def test_another_version_is_refused_as_that(version: bytes) -> None:
    """A datagram of a later version is told apart from a broken one."""
    assert reason(b'{"v":' + version + b',"updates":[]}') == "version"


def test_more_than_a_frame_is_refused() -> None:
    """Bigger than the limit is refused before anything is parsed."""
    assert reason(b'{"v":1,"x":"' + b"x" * MAX_DATAGRAM + b'"}') == "too-long"


def test_unknown_members_are_ignored() -> None:
    """A later version may add members without becoming unreadable."""
    payload = next(encode_json(LOG_ID, MOMENT, 42, [CHECK_IN]))
    longer = payload.replace(b'{"v":1,', b'{"v":1,"colour":"blue",').replace(
        b'{"seq":42,', b'{"seq":42,"note":[1,{"a":null}],'
    )
    assert decode(longer) == decode(payload)


@pytest.mark.parametrize("member", ["client_ip", "client_port", "last_seen"])
def test_a_check_in_lacks_nothing(member: str) -> None:
    """Only an event that no client caused may lack an address, or be of a user never seen."""
    update = json.loads(encode_update(CHECK_IN))
    del update[member]
    with pytest.raises(DatagramError):
        decode_update(update)


@pytest.mark.parametrize("zone", ["eth0", "\x1b[2J", "a\nb"])
def test_an_address_with_a_zone_is_refused(zone: str) -> None:
    """No control character reaches a terminal in the zone of an IPv6 address."""
    update = json.loads(encode_update(CHECK_IN))
    update["client_ip"] = f"fe80::1%{zone}"
    with pytest.raises(DatagramError):
        decode_update(update)
    address = f"fe80::1%{zone}".encode()
    payload = b"\x03a@b" + bytes(8) + bytes([len(address)]) + address + bytes(2)
    assert reason(payload) == "malformed"


@pytest.mark.parametrize("member", ["client_ip", "client_port"])
def test_an_address_is_whole_or_absent(member: str) -> None:
    """An event that no client caused has neither; one without the other is a mistake."""
    update = json.loads(encode_update(CHECK_IN))
    del update[member]
    with pytest.raises(DatagramError):
        decode_update(update)
    update = {n: v for n, v in update.items() if n not in ("client_ip", "client_port")}
    assert decode_update(update).client_ip is None


def test_an_ipv4_address_in_ipv6_clothes_is_shown_as_ipv4() -> None:
    """A client has one spelling, on every Python."""
    update = json.loads(encode_update(CHECK_IN))
    update["client_ip"] = "::ffff:10.0.0.7"
    assert decode_update(update) == CHECK_IN


@pytest.mark.parametrize(
    "last_seen",
    [
        "2026-01-02T03:04:05Z",
        "2026-01-02 03:04:05.678901Z",
        "2026-01-02T03:04:05.678901+00:00",
        "2026-13-02T03:04:05.678901Z",
        "٢٠٢٦-01-02T03:04:05.678901Z",  # Arabic-Indic digits
    ],
)
def test_only_one_spelling_of_a_moment_is_read(last_seen: str) -> None:
    """A moment has one spelling, so that equal moments are equal text."""
    update = json.loads(encode_update(CHECK_IN))
    update["last_seen"] = last_seen
    with pytest.raises(DatagramError):
        decode_update(update)


def test_nanoseconds_below_the_microsecond_are_cut_off() -> None:
    """An older sender's clock may be finer than ours."""
    payload = b"\x03a@b" + (1_999).to_bytes(8) + b"\x09127.0.0.1" + bytes(2)
    assert decode_binary(payload).last_seen.microsecond == 1


@pytest.mark.parametrize(
    "event",
    [
        Event(1, "check-in", "", MOMENT, "10.0.0.7", 1),
        Event(1, "check-in", "x" * 255, MOMENT, "10.0.0.7", 1),
        Event(1, "check-in", "ü@example.com", MOMENT, "10.0.0.7", 1),
        Event(1, "check-in", "a@b", MOMENT.replace(year=1969), "10.0.0.7", 1),
        Event(1, "check-in", "a@b", MOMENT.replace(year=9999), "10.0.0.7", 1),
        Event(1, "check-in", "a@b", MOMENT, "10.0.0.7", 65536),
        Event(1, "offline", "a@b", MOMENT, None, None, MOMENT),
    ],
    ids=[
        "no e-mail",
        "long e-mail",
        "non-ASCII e-mail",
        "too early",
        "too late",
        "port",
        "offline",
    ],
)
def test_what_does_not_fit_in_binary_is_an_error_of_ours(event: Event) -> None:
    """A value that the older format cannot hold is refused with our own error."""
    with pytest.raises(DatagramError):
        encode_binary(event)


def test_an_update_that_fits_in_no_datagram_is_an_error() -> None:
    """An oversized update is refused, never cut and never sent in fragments."""
    long = Event(1, "check-in", "x" * MAX_DATAGRAM, MOMENT, "10.0.0.7", 1)
    with pytest.raises(DatagramError) as refusal:
        list(encode_json(LOG_ID, MOMENT, 1, [CHECK_IN, long]))
    assert refusal.value.reason == "too-long"
