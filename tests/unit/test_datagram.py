"""The two datagram formats: what is sent is what is heard, and nothing else gets through."""

from __future__ import annotations

import datetime
import ipaddress
import json
import uuid
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.vectors import encoded, written_datagram
from tornado_status.errors import DatagramError
from tornado_status.model.records import Event, LogStep, normalise_ip, timestamp
from tornado_status.wire.datagram import (
    MAX_DATAGRAM,
    SIGNATURE_ROOM,
    BinaryUpdate,
    Datagram,
    DatagramEncoder,
    decode,
    decode_binary,
    decode_json,
    encode_binary,
    encode_json,
)
from tornado_status.wire.event_object import decode_update, encode_update
from tornado_status.wire.json_members import MAX_SEQ

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


@pytest.mark.parametrize("path", vectors("json-v2"), ids=lambda path: path.stem)
def test_json_vectors_encode_to_and_decode_from_the_written_bytes(path: Path) -> None:
    """The JSON format is what the vectors say, byte for byte, in both directions."""
    vector = json.loads(path.read_text("utf-8"))
    payload = vector["text"].encode("ascii")
    datagram = written_datagram(vector["fields"])
    assert decode(payload) == datagram
    assert encoded(datagram) == [payload]


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
    )
    events = [longest._replace(seq=MAX_SEQ - number) for number in (2, 1, 0)]
    assert len(list(encode_json(LOG_ID, MOMENT, MAX_SEQ, events[:2]))) == 1
    assert len(list(encode_json(LOG_ID, MOMENT, MAX_SEQ, events))) == 2


def commit(first: int, count: int, later_s: float = 0.0) -> list[Event]:
    at = MOMENT + datetime.timedelta(seconds=later_s)
    return [
        CHECK_IN._replace(seq=first + number, email=f"user{first + number}@example.com")._replace(
            last_seen=at
        )
        for number in range(count)
    ]


def test_a_datagram_is_filled_before_the_next_is_begun() -> None:
    """A commit costs as few datagrams as it can: more than 20 ordinary check-ins fit in one."""
    payloads = list(encode_json(LOG_ID, MOMENT, 100, commit(1, 60)))
    counts = [len(decode_json(payload).updates) for payload in payloads]
    assert counts == [28, 28, 4]
    ordinary = [
        event._replace(email="jane.roe.1234@example.com", client_ip="192.168.100.77")
        for event in commit(9_000_000_000, 20)
    ]
    assert len(list(encode_json(LOG_ID, MOMENT, 9_000_000_020, ordinary))) == 1


def test_a_datagram_is_one_run_of_numbers_of_one_time() -> None:
    """Number and time are said once: where either does not continue, the next datagram begins."""
    for sent_events in (
        commit(1, 2) + commit(4, 1),
        commit(1, 2) + commit(3, 1, later_s=1),
        [
            *commit(1, 2),
            CHECK_IN._replace(
                seq=3,
                client_ip=None,
                client_port=None,
                at=MOMENT + datetime.timedelta(seconds=1),
                event="offline",
            ),
        ],
    ):
        first, second = encode_json(LOG_ID, MOMENT, 9, sent_events)
        assert [*decode_json(first).updates] == sent_events[:2]
        assert [*decode_json(second).updates] == sent_events[2:]


# ------------------------------------------------------------------------------------ repetitions


def numbers(repeated: Iterable[Event]) -> list[int]:
    return [event.seq for event in repeated]


def test_a_datagram_repeats_the_last_events_newest_first() -> None:
    """At a low rate each heals the loss of the ones before it."""
    encoder = DatagramEncoder(3)
    for number in range(1, 8):
        [payload] = encoder.encode(LOG_ID, MOMENT, number, commit(number, 1, later_s=number))
        datagram = decode_json(payload)
        assert list(datagram.updates) == commit(number, 1, later_s=number)
        assert numbers(datagram.repeated) == list(range(number - 1, max(0, number - 4), -1))
        for event in datagram.repeated:
            assert [event] == commit(event.seq, 1, later_s=event.seq)


def test_each_event_rides_along_in_so_many_datagrams_and_no_more() -> None:
    """Heartbeats count, so no address is repeated for ever."""
    encoder = DatagramEncoder(3)
    list(encoder.encode(LOG_ID, MOMENT, 2, commit(1, 2)))
    found = [
        numbers(decode_json(payload).repeated)
        for _ in range(5)
        for payload in encoder.encode(LOG_ID, MOMENT, 2, [])
    ]
    assert found == [[2, 1]] * 3 + [[]] * 2


def test_full_datagrams_repeat_nothing_and_the_last_of_a_commit_the_ones_before() -> None:
    """Repetitions never push out what is new, nor cost a datagram."""
    encoder = DatagramEncoder(8)
    payloads = [*encoder.encode(LOG_ID, MOMENT, 60, commit(1, 60))]
    datagrams = [decode_json(payload) for payload in payloads]
    assert [len(datagram.updates) for datagram in datagrams] == [28, 28, 4]
    assert [numbers(datagram.repeated) for datagram in datagrams[:2]] == [[], []]
    assert numbers(datagrams[2].repeated) == [56, 55, 54, 53, 52, 51, 50, 49]
    assert all(len(payload) <= MAX_DATAGRAM - SIGNATURE_ROOM for payload in payloads)
    [crowded] = encoder.encode(LOG_ID, MOMENT, 80, commit(61, 20))
    assert numbers(decode_json(crowded).repeated) == [60, 59, 58, 57]  # as many as fit


def test_what_was_of_another_log_is_not_repeated() -> None:
    """Its numbers mean nothing there."""
    encoder = DatagramEncoder(3)
    list(encoder.encode(LOG_ID, MOMENT, 1, commit(1, 1)))
    another = uuid.uuid4()
    for log_id in (another, LOG_ID):
        [payload] = encoder.encode(log_id, MOMENT, 1, commit(1, 1))
        assert decode_json(payload).repeated == ()


def test_nothing_is_repeated_if_nothing_is_to_be() -> None:
    encoder = DatagramEncoder(0)
    for number in (1, 2):
        [payload] = encoder.encode(LOG_ID, MOMENT, number, commit(number, 1))
        assert b"repeat" not in payload


@no_deadline
@given(
    st.integers(0, 64),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(1, 60)), max_size=12),
)
def test_any_repetition_is_of_what_was_announced(
    repeat: int, commits: list[tuple[int, int, int]]
) -> None:
    """True to number, time and content; new to no datagram twice; and each fits in a frame."""
    encoder, seq = DatagramEncoder(repeat), 0
    announced: dict[int, Event] = {}
    rides = Counter[int]()
    for gap, count, width in commits:
        sent_events = [
            event._replace(email=f"{'x' * width}@example.com")
            for event in commit(seq + gap + 1, count, later_s=seq)
        ]
        seq += gap + count
        found: list[Event] = []
        for payload in encoder.encode(LOG_ID, MOMENT, seq, sent_events):
            assert len(payload) <= MAX_DATAGRAM - SIGNATURE_ROOM
            datagram = decode_json(payload)
            assert len(datagram.repeated) <= repeat
            assert numbers(datagram.repeated) == sorted(numbers(datagram.repeated), reverse=True)
            for event in datagram.repeated:
                assert announced[event.seq] == event
                rides[event.seq] += 1
            found += datagram.updates
            announced |= {event.seq: event for event in datagram.updates}
        assert found == sent_events
    assert all(count <= repeat for count in rides.values())


def test_a_heartbeat_says_how_its_log_began() -> None:
    """A datagram with events has no room to spare for it."""
    step = LogStep(LOG_ID, uuid.uuid4(), 40)
    [heartbeat] = encode_json(LOG_ID, MOMENT, 42, [], parent=step)
    [update] = encode_json(LOG_ID, MOMENT, 42, [CHECK_IN], parent=step)
    assert decode_json(heartbeat).parent == step
    assert decode_json(update).parent is None


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
@example(b'{"v":2,"events":[\xff]}')
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
@given(
    st.dictionaries(
        st.sampled_from(["v", "log", "sent", "head", "at", "first", "events", "repeat", "parent"]),
        json_values,
    )
)
def test_any_json_object_decodes_or_is_refused(members: dict[str, object]) -> None:
    """Members of any type and shape are judged, not trusted."""
    payload = json.dumps(
        {
            "v": 2,
            "log": str(LOG_ID),
            "sent": timestamp(MOMENT),
            "head": 1,
            "at": timestamp(MOMENT),
            "first": 1,
            "events": [["a@b", "::1", 1]],
            **members,
        }
    ).encode()
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
        decode(b'{"v":2,"events":' + updates + b"}")
    assert len(str(refusal.value)) < 120


@pytest.mark.parametrize(
    "payload",
    [
        b'{"v":2,"v":2,"events":[]}',
        b'{"v":2,"events":[{"event":"new","event":"back"}]}',
        b'{"v":2,"unknown":{"a":1,"a":2},"events":[]}',
    ],
)
def test_a_member_that_occurs_twice_is_refused(payload: bytes) -> None:
    """Two readers never believe two different values of one datagram."""
    assert reason(payload) == "not-json"


@pytest.mark.parametrize("version", [b"3", b"true", b"2.0", b'"2"', b"null", b"[]"])
def test_another_version_is_refused_as_that(version: bytes) -> None:
    """A datagram of a later version is told apart from a broken one."""
    assert reason(b'{"v":' + version + b',"events":[]}') == "version"


def test_the_version_before_is_refused_as_that() -> None:
    """An operator who updates one of two sides learns which one is left."""
    assert reason(b'{"v":1,"log":"%b","updates":[]}' % str(LOG_ID).encode()) == "version-1"


def test_more_than_a_frame_is_refused() -> None:
    """Bigger than the limit is refused before anything is parsed."""
    assert reason(b'{"v":2,"x":"' + b"x" * MAX_DATAGRAM + b'"}') == "too-long"


def test_unknown_members_are_ignored() -> None:
    """A later version may add members without becoming unreadable."""
    payload = next(encode_json(LOG_ID, MOMENT, 42, [CHECK_IN._replace(event="new")]))
    longer = payload.replace(b'{"v":2,', b'{"v":2,"colour":"blue",').replace(
        b'{"event":"new",', b'{"event":"new","note":[1,{"a":null}],'
    )
    assert len(longer) > len(payload) + 30
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


def test_an_event_without_its_time_is_an_error() -> None:
    """The log has none, and a datagram would have nothing to say."""
    with pytest.raises(DatagramError) as refusal:
        list(encode_json(LOG_ID, MOMENT, 1, [CHECK_IN._replace(last_seen=None)]))
    assert refusal.value.reason == "malformed"


def test_an_update_that_fits_in_no_datagram_is_an_error() -> None:
    """An oversized update is refused, never cut and never sent in fragments."""
    long = Event(1, "check-in", "x" * MAX_DATAGRAM, MOMENT, "10.0.0.7", 1)
    with pytest.raises(DatagramError) as refusal:
        list(encode_json(LOG_ID, MOMENT, 1, [CHECK_IN, long]))
    assert refusal.value.reason == "too-long"
