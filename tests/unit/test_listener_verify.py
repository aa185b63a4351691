"""A listener believes what a known announcer signed, sent now, and did not send before."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import os
import stat
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key
from hypothesis import given, settings
from hypothesis import strategies as st

from certs_gen.authority import Authority
from listeners.order.sequence import Position
from listeners.order.state_file import StateFile
from listeners.repair import api_responses
from listeners.verify.known_announcers import MAX_PUBLISHED, KnownAnnouncers
from listeners.verify.verifier import UNVERIFIED_REASONS, DuplicateDatagram, Verifier
from tests.support.vectors import encoded, written_datagram
from tornado_status.errors import ConfigError, DatagramError
from tornado_status.model.presence import PresenceTimes
from tornado_status.model.records import Event
from tornado_status.pki.announcer_keys import AnnouncerKey, Signer
from tornado_status.wire.datagram import encode_json
from tornado_status.wire.event_object import encode_update

VECTORS = sorted((Path(__file__).parents[1] / "vectors").glob("signed-v2-*.json"))
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
LOG_ID = uuid.UUID("0b0e7a52-4c1f-4f57-9d8e-2f6a3c5b1d90")
TEST_ONLY_KEY = Ed25519PrivateKey.from_private_bytes(b"tornado_status tests only, never")
SIGNER = Signer(TEST_ONLY_KEY)
OTHER = Signer(Ed25519PrivateKey.from_private_bytes(b"another key, also for tests only"))

examples = settings(deadline=None)


def seconds(number: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=number)


ANNOUNCER = AnnouncerKey(
    SIGNER.kid, TEST_ONLY_KEY.public_key(), ((NOW - seconds(86_400), NOW + seconds(86_400)),)
)


def verifier(*announcers: AnnouncerKey) -> Verifier:
    known = {announcer.kid: announcer for announcer in announcers or (ANNOUNCER,)}
    return Verifier(lambda: known)


def event(seq: int = 42) -> Event:
    return Event(seq, "check-in", "valid_user@example.com", NOW, "10.0.0.7", 51514)


def datagram(*events: Event, sent: datetime.datetime = NOW, signer: Signer = SIGNER) -> bytes:
    [payload] = encode_json(LOG_ID, sent, 42, events, signer)
    return payload


def signed(text: bytes) -> bytes:
    """Any beginning of a datagram with a signature that is right."""
    return text + b',"sig":"' + SIGNER.sign(text) + b'"}'


def reason(payload: bytes, judge: Verifier | None = None, now: datetime.datetime = NOW) -> str:
    with pytest.raises(DatagramError) as refusal:
        (judge or verifier()).verify(payload, now)
    assert str(refusal.value).isprintable()
    return refusal.value.reason


# --------------------------------------------------------------------------------- golden vectors


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_signed_vectors_encode_to_and_verify_from_the_written_bytes(path: Path) -> None:
    """Byte for byte: Ed25519 signatures have no chance in them."""
    vector = json.loads(path.read_text("utf-8"))
    key = Ed25519PrivateKey.from_private_bytes(vector["test_only_private_key_seed"].encode())
    assert load_pem_public_key(vector["public_key"].encode()) == key.public_key()
    signer = Signer(key)
    assert signer.kid == vector["kid"]
    datagram = written_datagram(vector["fields"], signer.kid)
    payload = vector["text"].encode("ascii")
    assert encoded(datagram, signer) == [payload]
    announcer = AnnouncerKey(signer.kid, key.public_key(), ((datagram.sent, datagram.sent),))
    assert verifier(announcer).verify(payload, datagram.sent) == datagram


def test_there_are_signed_vectors() -> None:
    assert len(VECTORS) == 7


# ------------------------------------------------------------------------------------- properties


@examples
@given(st.one_of(st.binary(max_size=1500), st.binary(max_size=600).map(lambda t: b'{"' + t)))
def test_any_bytes_are_refused(payload: bytes) -> None:
    """A sender without the key gets nothing through and breaks nothing."""
    reason(payload)


@examples
@given(st.binary(max_size=1200))
def test_any_bytes_that_are_signed_decode_or_are_refused(text: bytes) -> None:
    """Even an announcer cannot break a listener."""
    ending = b',"kid":"' + SIGNER.kid.encode() + b'"'
    for payload in (signed(text + ending), signed(b'{"v":2,' + text + ending)):
        with contextlib.suppress(DatagramError, DuplicateDatagram):
            verifier().verify(payload, NOW)


_changes: list[Callable[[bytes, int, int], bytes]] = [
    lambda p, at, _: p[:at],
    lambda p, at, _: p[at:],
    lambda p, at, _: p[:at] + p[at + 1 :],
    lambda p, at, byte: p[:at] + bytes([byte]) + p[at:],
    lambda p, at, byte: p[:at] + bytes([byte]) + p[at + 1 :],
    lambda p, at, _: p[:at] + p[at : at + 1].swapcase() + p[at + 1 :],
    lambda p, at, _: p + p[at:],
    lambda p, at, _: p[-97:] + p[at:],
    lambda p, at, byte: p[:-97] + p[at : at + byte] + p[-97:],
]


@examples
@given(
    st.integers(0, 7),
    st.lists(
        st.tuples(st.sampled_from(_changes), st.integers(0, 1400), st.integers(0, 255)),
        min_size=1,
        max_size=3,
    ),
)
def test_what_was_changed_never_passes(
    count: int, changes: list[tuple[Callable[[bytes, int, int], bytes], int, int]]
) -> None:
    """Cut, doubled, flipped, spliced: a signed datagram is whole or refused."""
    good = payload = datagram(*(event(n + 1) for n in range(count)))
    for change, at, byte in changes:
        payload = change(payload, at % (len(payload) + 1), byte)
    if payload != good:
        reason(payload)


@examples
@given(st.binary(max_size=2000))
def test_any_answer_is_a_page_or_an_error(body: bytes) -> None:
    """A broken server or proxy is told from a good one."""
    for parse in (
        api_responses.announcers,
        api_responses.users,
        lambda text: api_responses.events(text, 0),
    ):
        with contextlib.suppress(api_responses.AnswerError):
            parse(body)


# ------------------------------------------------------------------------------------- one by one


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (next(encode_json(LOG_ID, NOW, 42, [event()])), "unsigned"),
        (datagram(event(), signer=OTHER), "unknown-kid"),
        (datagram(event())[:-1], "unsigned"),
        (datagram(event()) + b" ", "unsigned"),
        (datagram(event()).replace(b"10.0.0.7", b"10.0.0.8"), "signature"),
        (datagram(event()).replace(b'"head":42', b'"head":43'), "signature"),
        (datagram(event(), sent=NOW - seconds(61)), "skew"),
        (datagram(event(), sent=NOW + seconds(61)), "skew"),
        (datagram(sent=NOW - seconds(61)), "skew"),
        (b"x" * 1401, "too-long"),
        (signed(b'{"v":3,"kid":"%b"' % SIGNER.kid.encode()), "version"),
        (signed(b'{"v":2,"kid":"%b"' % SIGNER.kid.encode()), "malformed"),
        (signed(b'{"v":2,,"kid":"%b"' % SIGNER.kid.encode()), "not-json"),
        (signed(b'{"v":1,"log":"","kid":"%b"' % SIGNER.kid.encode()), "version-1"),
        (signed(b'{"log":"","v":1,"kid":"%b"' % SIGNER.kid.encode()), "version-1"),
        (b'{"v":1,"log":"', "version-1"),
    ],
)
def test_each_refusal_has_its_reason(payload: bytes, expected: str) -> None:
    """An operator sees a wrong clock, a forger and a rotated key apart."""
    assert reason(payload) == expected


def test_only_want_of_proof_can_be_overlooked() -> None:
    """--insecure shows what nothing proves, never what something speaks against."""
    assert not UNVERIFIED_REASONS & {
        "skew",
        "version",
        "version-1",
        "malformed",
        "too-long",
        "log",
        "old-heartbeat",
    }


def test_members_in_another_order_are_no_reason() -> None:
    """A member in its usual place is checked early, one elsewhere late."""
    rest = (
        b'"log":"%b","v":2,"head":42,"first":42,"at":"2026-01-02T03:04:05.678901Z",'
        b'"events":[["valid_user@example.com","10.0.0.7",51514]],"kid":"%b"'
    ) % (str(LOG_ID).encode(), SIGNER.kid.encode())
    payload = signed(b'{"sent":"2026-01-02T03:04:05.000000Z",' + rest)
    assert verifier().verify(payload, NOW).updates == (event(),)
    assert reason(signed(b'{"sent":"2026-01-02T03:05:06.000000Z",' + rest)) == "skew"


def test_the_dates_of_a_key_are_judged_when_it_is_used() -> None:
    """A listener that runs for years notices."""
    judge = verifier(AnnouncerKey(SIGNER.kid, ANNOUNCER.key, ((NOW, NOW + seconds(10)),)))
    for moment, expected in ((-1, "key-not-yet-valid"), (11, "key-expired")):
        sent = NOW + seconds(moment)
        assert reason(datagram(event(), sent=sent), judge, sent) == expected
    assert judge.verify(datagram(event()), NOW).updates == (event(),)


def test_a_replay_is_a_copy_and_a_heartbeat_must_be_newer() -> None:
    """The same bytes again say nothing new."""
    judge = verifier()
    update, heartbeat = datagram(event()), datagram()
    for payload in (update, heartbeat):
        assert judge.verify(payload, NOW).head == 42
        with pytest.raises(DuplicateDatagram):
            judge.screen(payload, NOW)
        with pytest.raises(DuplicateDatagram):
            judge.verify(payload, NOW + seconds(30))
    assert reason(datagram(sent=NOW - seconds(1)), judge) == "old-heartbeat"
    assert judge.verify(datagram(sent=NOW + seconds(1)), NOW).updates == ()


def test_a_flood_is_refused_before_its_signature_is_looked_at() -> None:
    """`screen` needs no cryptography: not even a right-looking signature is tried."""
    good = datagram(event())
    forged = good[:-88] + base64.urlsafe_b64encode(bytes(64))[:86] + b'"}'
    verifier().screen(forged, NOW)
    assert reason(forged) == "signature"


# ------------------------------------------------------------------------------------------- keys


def test_keys_come_from_files_and_from_the_server(tmp_path: Path) -> None:
    """Those of the server replace each other; those of the operator stay."""
    authority, stranger = Authority.create(), Authority.create()
    ca = tmp_path / "ca.crt"
    ca.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    own, first, second, foreign = (
        authority.issue_announcer(),
        authority.issue_announcer(),
        authority.issue_announcer(),
        stranger.issue_announcer(),
    )
    file = tmp_path / "own.crt"
    file.write_bytes(own.certificate_pem())
    keys = KnownAnnouncers.from_files(ca, [file])
    assert len(keys.known) == 1
    refusals = keys.replace_published(
        [first.certificate_pem().decode(), foreign.certificate_pem().decode(), "nonsense"]
    )
    assert refusals == ["not issued by a trusted CA", "no certificate"]
    before = set(keys.known)
    assert len(before) == 2
    keys.replace_published([second.certificate_pem().decode()])
    assert len(set(keys.known) & before) == 1
    many = [authority.issue_announcer().certificate_pem().decode() for _ in range(3)]
    assert keys.replace_published(many * MAX_PUBLISHED) == []  # the same three again and again
    assert len(keys.known) == 4

    file.write_bytes(foreign.certificate_pem())
    with pytest.raises(ConfigError, match=r"own.crt is refused: not issued by a trusted CA"):
        KnownAnnouncers.from_files(ca, [file])
    file.write_text("nonsense")
    with pytest.raises(ConfigError, match="holds no certificate in PEM form"):
        KnownAnnouncers.from_files(ca, [file])
    with pytest.raises(ConfigError, match="cannot be read"):
        KnownAnnouncers.from_files(ca, [tmp_path / "nowhere.crt"])


# ------------------------------------------------------------------------------------------ pages


def page(*seqs: int, head: int = 9) -> bytes:
    events = b",".join(encode_update(event(seq)) for seq in seqs)
    return b'{"log":"%b","head":%d,"events":[%b]}' % (str(LOG_ID).encode(), head, events)


def test_a_page_with_a_hole_is_an_error() -> None:
    """The log is gapless: a server that shows otherwise is asked again."""
    assert [e.seq for e in api_responses.events(page(5, 6, 7), 4).events] == [5, 6, 7]
    assert api_responses.events(page(), 9).events == []
    for wrong in (page(5, 7), page(6), page(5, 5), page(5, head=4)):
        with pytest.raises(api_responses.AnswerError):
            api_responses.events(wrong, 4)


def test_the_path_of_the_next_page_is_checked() -> None:
    """It becomes a request: nothing else may be slipped in there."""
    presence = b'"presence":{"interval_s":60,"late_after_s":90.0,"offline_after_s":180}'
    opening = b'{"log":"%b","head":1,%b,"users":[],"next":' % (str(LOG_ID).encode(), presence)
    assert api_responses.users(opening + b'"/api/users?after=a%40b&limit=1"}').following
    for path in ("https://evil.example/", "/api/client", "/api/users?a b", "/api/users?\\r\\nX: y"):
        with pytest.raises(api_responses.AnswerError):
            api_responses.users(opening + f'"{path}"}}'.encode())


def test_the_servers_presence_times_are_checked() -> None:
    """A board computes states with them."""
    presence = b'"presence":{"interval_s":60,"late_after_s":90.0,"offline_after_s":180}'
    page = b'{"log":"%b","head":1,%b,"users":[],"next":null}' % (str(LOG_ID).encode(), presence)
    assert api_responses.users(page).presence == PresenceTimes(60, 90, 180)
    for wrong in (b"0", b"-1", b"true", b'"60"', b"null", b"1e999", b"NaN"):
        with pytest.raises(api_responses.AnswerError, match="`late_after_s` is no number"):
            api_responses.users(page.replace(b"90.0", wrong))
    with pytest.raises(api_responses.AnswerError, match="`presence` is no object"):
        api_responses.users(page.replace(presence, b'"presence":60'))


# ------------------------------------------------------------------------------------------ state


def test_a_state_file_follows_no_link_that_another_user_has_put_there(tmp_path: Path) -> None:
    """Its temporary name can be guessed."""
    path, victim = tmp_path / "state.json", tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f"state.json.{os.getpid()}.tmp").symlink_to(victim)
    StateFile(path).save(Position(LOG_ID, 1), 100.0)
    assert victim.read_text() == "precious"
    assert StateFile(path).load() == Position(LOG_ID, 1)
    assert not path.is_symlink()


def test_a_state_file_is_replaced_as_a_whole_and_not_too_often(tmp_path: Path) -> None:
    """A disk bears one write a second; the last one is written in any case."""
    path = tmp_path / "state.json"
    state = StateFile(path)
    assert state.load() is None
    state.save(Position(LOG_ID, 1), 100.0)
    state.save(Position(LOG_ID, 2), 100.5)
    assert StateFile(path).load() == Position(LOG_ID, 1)
    state.save(Position(LOG_ID, 2), 101.0)
    state.save(Position(LOG_ID, 3), 101.1, at_once=True)
    assert StateFile(path).load() == Position(LOG_ID, 3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
    assert json.loads(path.read_text()) == {"log": str(LOG_ID), "seq": 3}


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"log":"x","seq":1}', "{" * 9000])
def test_another_file_is_not_taken_for_a_state(tmp_path: Path, text: str) -> None:
    """And it is not overwritten."""
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is no listener's state"):
        StateFile(path).load()
    assert path.read_text() == text


def test_a_state_survives_a_crash_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is on the disk before it is renamed, and the rename before the save returns."""
    path = tmp_path / "state.json"
    synced = []

    def fsync(descriptor: int) -> None:
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        synced.append((kind, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    StateFile(path).save(Position(LOG_ID, 1), 100.0)
    assert synced == [("file", False), ("directory", True)]


def test_a_state_is_a_regular_file(tmp_path: Path) -> None:
    """A FIFO would be waited for, and a device would be replaced by a file."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path(os.devnull)):
        with pytest.raises(ConfigError, match="is no regular file"):
            StateFile(path).load()
