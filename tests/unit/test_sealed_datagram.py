"""Sealed datagrams: AES-256-GCM by epoch and by sender, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from tornado_status.errors import DatagramError
from tornado_status.wire.datagram import MAX_DATAGRAM
from tornado_status.wire.sealed_datagram import (
    MAX_SEALED,
    MAX_SENDERS,
    PAST_EPOCHS,
    EpochSecret,
    Opener,
    Sealer,
    is_sealed,
)

KEY = EpochSecret(7, bytes(range(32)))
NEXT = EpochSecret(8, bytes(range(1, 33)))
PAYLOAD = b'{"v":2,"email":"valid_user@example.com"}'


def opener(*keys: EpochSecret) -> Opener:
    opener = Opener()
    opener.use(keys or (KEY,))
    return opener


def reason(opener: Opener, sealed: bytes) -> str:
    with pytest.raises(DatagramError) as raised:
        opener.open(sealed)
    return raised.value.reason


@given(st.binary(max_size=MAX_DATAGRAM))
def test_what_is_sealed_can_be_opened(payload: bytes) -> None:
    sealed = Sealer(KEY).seal(payload)
    assert is_sealed(sealed)
    assert len(sealed) == len(payload) + 42 <= MAX_SEALED
    assert opener().open(sealed) == payload


def test_its_bytes_are_those_of_the_protocol() -> None:
    """By docs/protocol.md alone: HKDF-Expand is one HMAC here, the nonce is the counter."""
    sealer = Sealer(KEY)
    sealer.seal(PAYLOAD)
    sealed = sealer.seal(PAYLOAD)
    header, sender = sealed[:26], sealed[6:18]
    assert header == b"\0\2" + (7).to_bytes(4, "big") + sender + (1).to_bytes(8, "big")
    info = b"tornado_status sealed 2" + sender + b"\1"
    key = hmac.digest(KEY.secret, info, hashlib.sha256)
    nonce = bytes(4) + header[18:]
    assert AESGCM(key).decrypt(nonce, sealed[26:], header) == PAYLOAD


def test_a_stored_datagram_can_still_be_opened() -> None:
    """A golden vector: the bytes never change without another version."""
    sealed = base64.b64decode(
        "AAIAAAAHAAECAwQFBgcICQoLAAAAAAAAAAVhnLosyFzjh/1hrW4lpShX/AuzLDQOSRD26NMOzgvf"
        "CWs7O+wNxsYoAkRqRwf8OqhHlnEkMLpctA=="
    )
    assert opener().open(sealed) == PAYLOAD


@given(st.integers(0, len(PAYLOAD) + 41), st.integers(1, 255))
def test_no_byte_can_be_changed(position: int, change: int) -> None:
    sealed = bytearray(Sealer(KEY).seal(PAYLOAD))
    sealed[position] ^= change
    expected = {
        0: "forged",
        1: "version",
        **dict.fromkeys(range(2, 6), "unknown-epoch"),
    }.get(position, "forged")
    assert reason(opener(), bytes(sealed)) == expected


def test_two_senders_never_share_a_key() -> None:
    """Two servers, or one before and after its restart: each counts from zero."""
    first, second = Sealer(KEY).seal(PAYLOAD), Sealer(KEY).seal(PAYLOAD)
    assert first[18:26] == second[18:26] == bytes(8)
    assert first[6:18] != second[6:18]
    assert first[26:] != second[26:]
    both = opener()
    assert both.open(first) == both.open(second) == PAYLOAD


def test_no_nonce_repeats() -> None:
    sealer = Sealer(KEY)
    assert len({sealer.seal(PAYLOAD)[:26] for _ in range(1000)}) == 1000


@pytest.mark.parametrize("size", [0, 1, 26, 41])
def test_too_short(size: int) -> None:
    assert reason(opener(), Sealer(KEY).seal(b"")[:size]) == "malformed"


def test_too_long() -> None:
    assert reason(opener(), bytes(MAX_SEALED + 1)) == "too-long"


def test_the_epochs_before_are_known_a_while() -> None:
    """A datagram on its way when the epoch changes, or of a server that is some seconds late."""
    epochs = [EpochSecret(number, bytes([number] * 32)) for number in range(10)]
    sealed = [Sealer(epoch).seal(PAYLOAD) for epoch in epochs]
    known = Opener()
    assert known.use(epochs[0:2])
    assert known.use(epochs[1:3])
    assert not known.use(epochs[1:3])
    assert known.use(epochs[2:4])
    assert known.use(epochs[6:8])  # a reader was revoked: two were withdrawn
    opened = [number for number in range(10) if _opens(known, sealed[number])]
    assert opened == [*range(4 - PAST_EPOCHS, 4), 6, 7]


def _opens(known: Opener, sealed: bytes) -> bool:
    try:
        return known.open(sealed) == PAYLOAD
    except DatagramError:
        return False


def test_another_secret_of_the_same_epoch_replaces_the_first() -> None:
    """After a restored backup the numbers of epochs may be used again."""
    other = EpochSecret(KEY.epoch, NEXT.secret)
    known = opener(KEY)
    assert known.open(Sealer(KEY).seal(PAYLOAD)) == PAYLOAD
    assert reason(known, Sealer(other).seal(PAYLOAD)) == "forged"
    assert known.use([other])
    assert known.open(Sealer(other).seal(PAYLOAD)) == PAYLOAD
    assert reason(known, Sealer(KEY).seal(PAYLOAD)) == "forged"


def test_forged_datagrams_take_no_memory() -> None:
    """Only a sender that has sealed something is remembered, and of those not all."""
    known = opener()
    for _ in range(2 * MAX_SENDERS):
        sealed = Sealer(EpochSecret(KEY.epoch, NEXT.secret)).seal(PAYLOAD)
        assert reason(known, sealed) == "forged"
    assert len(known._ciphers) == 0
    for _ in range(2 * MAX_SENDERS):
        known.open(Sealer(KEY).seal(PAYLOAD))
    assert len(known._ciphers) == MAX_SENDERS
