"""Announcements without a server, and a relay that loses, doubles and delays them."""

from __future__ import annotations

import datetime
import random
import socket
import threading
import uuid
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.support.harness import (
    GROUP,
    LOOPBACK,
    PATIENCE_S,
)
from tornado_status.model.records import Event
from tornado_status.pki.announcer_keys import Signer
from tornado_status.wire.datagram import encode_json

LOG_ID = uuid.UUID("0b0e7a52-4c1f-4f57-9d8e-2f6a3c5b1d90")
OTHER = Signer(Ed25519PrivateKey.from_private_bytes(b"another key, also for tests only"))


class Announcing:
    """Announces as the server does, on loopback, with the key of a certificate or without one."""

    def __init__(self, port: int, key: Path | None = None, log_id: uuid.UUID = LOG_ID) -> None:
        self.port = port
        self.log_id = log_id
        self.signer: Signer | None = None
        if key is not None:
            loaded = load_pem_private_key(key.read_bytes(), None)
            assert isinstance(loaded, Ed25519PrivateKey)
            self.signer = Signer(loaded)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(
            socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK)
        )
        self.socket.bind((LOOPBACK, 0))

    def __enter__(self) -> Announcing:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def payload(self, *seqs: int, head: int = 0, ahead_s: float = 0.0) -> bytes:
        now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=ahead_s)
        events = [
            Event(seq, "check-in", f"user{seq}@example.com", now, "10.0.0.7", 1) for seq in seqs
        ]
        [payload] = encode_json(self.log_id, now, max([head, *seqs]), events, self.signer)
        return payload

    def send(self, payload: bytes) -> None:
        self.socket.sendto(payload, (GROUP, self.port))

    def announce(self, *seqs: int, head: int = 0) -> bytes:
        payload = self.payload(*seqs, head=head)
        self.send(payload)
        return payload


class Relay:
    """Passes datagrams on as bad networks do: some never, some twice, some late."""

    def __init__(self, to: int, loss: float, seed: int = 1) -> None:
        self._chance = random.Random(seed)  # noqa: S311 - the same at each run
        self._loss = loss
        self._to = (LOOPBACK, to)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((LOOPBACK, 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", (LOOPBACK, self.port))
        self._thread.join(PATIENCE_S)
        self._socket.close()

    def _run(self) -> None:
        late: list[bytes] = []
        while payload := self._socket.recv(2048):
            if self._chance.random() < self._loss:
                continue
            late += [payload] * self._chance.choice([1, 1, 2])
            self._chance.shuffle(late)
            while len(late) > 3:
                self._socket.sendto(late.pop(), self._to)
