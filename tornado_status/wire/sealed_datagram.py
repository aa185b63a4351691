"""Sealed datagrams: AES-256-GCM around a signed JSON datagram. No sockets, no clock.

docs/protocol.md describes them byte by byte. All servers and readers of a database share the secret
of an epoch. Every `Sealer` derives a key of its own from it, by a random name that its datagrams
carry, and counts its nonces. No nonce repeats, however many servers there are, and restarts.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tornado_status.errors import DatagramError
from tornado_status.runtime.bounded_dict import BoundedDict
from tornado_status.wire.datagram import MAX_DATAGRAM

SECRET_BYTES = 32
MAX_EPOCH = 2**32 - 1

_HEADER = struct.Struct("!BBI12sQ")  # marker, version, epoch, sender, counter
_MARKER, _VERSION = 0, 2  # neither JSON nor binary v0 begins with a zero byte
_SENDER_BYTES = 12
_TAG_BYTES = 16
_PURPOSE = b"tornado_status sealed 2"
# 1,442: with the headers of UDP and IPv6 1,490, less than an Ethernet frame's 1,500.
MAX_SEALED = _HEADER.size + MAX_DATAGRAM + _TAG_BYTES

# Reasons of `Opener.open` that another secret would mend, unless the datagram is forged.
OTHER_SECRET = frozenset({"unknown-epoch", "forged"})

MAX_SENDERS = 64  # whose derived keys an opener keeps
PAST_EPOCHS = 2  # a datagram may be on its way, or another server some seconds late


@dataclass(frozen=True, slots=True)
class EpochSecret:
    """The secret that all servers and readers share in an epoch: 32 random bytes."""

    epoch: int
    secret: bytes


class Sealer:
    """Seals signed datagrams in one epoch."""

    def __init__(self, key: EpochSecret) -> None:
        self.epoch = key.epoch
        self._sender = os.urandom(_SENDER_BYTES)
        self._cipher = _cipher(key.secret, self._sender)
        self._count = 0

    def seal(self, payload: bytes) -> bytes:
        """Return a signed datagram sealed. No two calls use the same nonce."""
        header = _HEADER.pack(_MARKER, _VERSION, self.epoch, self._sender, self._count)
        nonce = _nonce(self._count)
        self._count += 1
        return header + self._cipher.encrypt(nonce, payload, header)


class Opener:
    """Opens sealed datagrams of the epochs that are known."""

    def __init__(self) -> None:
        self._secrets: dict[int, bytes] = {}
        self._ciphers = BoundedDict[tuple[int, bytes], AESGCM](MAX_SENDERS)

    def use(self, keys: Iterable[EpochSecret]) -> bool:
        """Open datagrams of these epochs from now on, and of the last ones before them.

        Returns whether a key is new.
        """
        fresh = {key.epoch: key.secret for key in keys}
        before = sorted(epoch for epoch in self._secrets if epoch < min(fresh, default=0))
        secrets = {epoch: self._secrets[epoch] for epoch in before[-PAST_EPOCHS:]} | fresh
        changed = not fresh.items() <= self._secrets.items()
        if changed:
            self._ciphers.clear()
        self._secrets = secrets
        return changed

    def open(self, sealed: bytes) -> bytes:
        """Return the signed datagram inside.

        Raises `DatagramError`: `too-long`, `malformed`, `version`, `unknown-epoch`, or `forged` if
        no holder of the secret has sealed it.
        """
        if len(sealed) > MAX_SEALED:
            raise DatagramError("too-long", f"more than {MAX_SEALED} bytes")
        if len(sealed) < _HEADER.size + _TAG_BYTES:
            raise DatagramError("malformed", f"{len(sealed)} bytes are no sealed datagram")
        _, version, epoch, sender, count = _HEADER.unpack_from(sealed)
        if version != _VERSION:
            raise DatagramError(
                "version", f"version {version} of sealed datagrams is not {_VERSION}"
            )
        secret = self._secrets.get(epoch)
        if secret is None:
            raise DatagramError("unknown-epoch", f"no key of epoch {epoch} is known")
        cipher = self._ciphers.get((epoch, sender))
        known = cipher is not None
        if cipher is None:
            cipher = _cipher(secret, sender)
        try:
            payload = cipher.decrypt(_nonce(count), sealed[_HEADER.size :], sealed[: _HEADER.size])
        except InvalidTag:
            raise DatagramError("forged", "it was not sealed with the key of its epoch") from None
        if not known:  # only now: a forged datagram displaces no sender's key
            self._ciphers[epoch, sender] = cipher
        return payload


def is_sealed(payload: bytes) -> bool:
    """Return whether a datagram says that it is sealed."""
    return payload[:1] == b"\0"


def _cipher(secret: bytes, sender: bytes) -> AESGCM:
    return AESGCM(HKDFExpand(SHA256(), 32, _PURPOSE + sender).derive(secret))


def _nonce(count: int) -> bytes:
    return count.to_bytes(12, "big")
