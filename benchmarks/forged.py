"""How many forged datagrams a second a listener stands beside the true ones.

`python -m benchmarks.forged`. A socket on loopback gets forged datagrams and one true one in each
batch. The listener's own verification reads them; its processor time is what is measured.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.contender import LOOPBACK
from listeners.operator_warnings import OperatorWarnings
from listeners.verify.unverified import Encoding
from listeners.verify.verification import Verification, VerificationCallbacks
from listeners.verify.verifier import Verifier
from tornado_status.model.records import Event
from tornado_status.pki.announcer_keys import AnnouncerKey, Signer, key_id
from tornado_status.wire.datagram import encode_json
from tornado_status.wire.sealed_datagram import EpochSecret, Opener, Sealer

BATCH = 256  # datagrams that fit in the receive buffer
BATCHES = 100

KEY = Ed25519PrivateKey.generate()
SECRET = EpochSecret(1, os.urandom(32))
LOG_ID = uuid.uuid4()
Payloads = Iterator[bytes]


def signed(key: Ed25519PrivateKey, kid: str) -> Payloads:
    """Yield datagrams of one check-in, signed with a key that may not be the one they name."""
    signer = Signer(key)
    signer.kid = kid
    for seq in itertools.count(1):
        now = datetime.datetime.now(datetime.UTC)
        event = Event(seq, "check-in", "valid_user@example.com", now, LOOPBACK, 51514)
        yield from encode_json(LOG_ID, now, seq, [event], signer)


def sealed(payloads: Payloads, secret: EpochSecret, each: int) -> Payloads:
    """Yield them sealed; after `each` of them another sender goes on."""
    while True:
        sealer = Sealer(secret)
        for payload in itertools.islice(payloads, each):
            yield sealer.seal(payload)


def processor_us(true: Payloads, forged: Payloads) -> float:
    """Return the listener's microseconds for each forged datagram."""
    ours = KEY.public_key()
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    announcer = AnnouncerKey(key_id(ours), ours, ((now - day, now + day),))
    heard: list[object] = []
    turns: list[Callable[[], None]] = []
    callbacks = VerificationCallbacks(
        verified=lambda datagram, source: heard.append(datagram),
        unknown_key=lambda: None,
        progress=lambda: None,
        call_soon=turns.append,
    )
    opener = Opener()
    opener.use([SECRET])
    verification = Verification(
        Verifier(lambda: {announcer.kid: announcer}),
        callbacks,
        OperatorWarnings(lambda sentence: None),
        encoding=Encoding.AUTO,
        insecure=False,
        opener=opener,
    )
    used_s = 0.0
    with (
        socket.socket(type=socket.SOCK_DGRAM) as hearing,
        socket.socket(type=socket.SOCK_DGRAM) as sending,
    ):
        hearing.bind((LOOPBACK, 0))
        hearing.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        for _ in range(BATCHES):
            for payload in (*itertools.islice(forged, BATCH), next(true)):
                sending.sendto(payload, hearing.getsockname())
            begun = time.process_time()
            for _ in range(BATCH + 1):
                verification.receive(*hearing.recvfrom(2048))
            while turns:
                turns.pop()()
            used_s += time.process_time() - begun
    if len(heard) != BATCHES:
        raise RuntimeError(f"{len(heard)} of {BATCHES} true datagrams were heard")
    return used_s / BATCH / BATCHES * 1e6


def main() -> None:
    argparse.ArgumentParser(
        description="Count the forged datagrams that a listener stands a second."
    ).parse_args()
    kid = key_id(KEY.public_key())
    stranger, other = Ed25519PrivateKey.generate(), EpochSecret(SECRET.epoch, os.urandom(32))
    replayed = next(sealed(signed(KEY, kid), SECRET, 1))
    kinds: dict[str, tuple[bool, Payloads]] = {
        "signed with another key, not sealed": (False, signed(stranger, kid)),
        "sealed with another secret, of one sender": (
            True,
            sealed(signed(stranger, kid), other, BATCH * BATCHES),
        ),
        "sealed with another secret, each of another sender": (
            True,
            sealed(signed(stranger, kid), other, 1),
        ),
        "a true one with a changed byte": (
            True,
            (replayed[:-1] + bytes([replayed[-1] ^ n % 255 + 1]) for n in itertools.count()),
        ),
    }
    for name, (is_sealed, forged) in kinds.items():
        true = signed(KEY, kid)
        us = processor_us(sealed(true, SECRET, BATCHES) if is_sealed else true, forged)
        print(f"{name}: {us:.1f} us each, {1e6 / us:,.0f} a second on one core")


if __name__ == "__main__":
    main()
