"""A TLS 1.3 client that sends messages of TLS itself, which Python's `ssl` never does."""

from __future__ import annotations

import hmac
import socket
import ssl
import struct
from pathlib import Path
from types import TracebackType

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.support.harness import LOOPBACK, PATIENCE_S, Server

_HANDSHAKE, _DATA = 22, 23
_SUITES = {
    "TLS_AES_128_GCM_SHA256": ("sha256", 32, 16),
    "TLS_AES_256_GCM_SHA384": ("sha384", 48, 32),
}
_KEY_UPDATE = b"\x18\x00\x00\x01\x00"  # the other side need not update its keys


class MessageClient:
    """A connection whose client writes its records itself (RFC 8446, 4.6.3, 5.2 and 7)."""

    def __init__(self, server: Server, directory: Path, cert: str = "client") -> None:
        keys = directory / f"keys-{cert}.log"
        keys.unlink(missing_ok=True)
        context = ssl.create_default_context(cafile=str(server.certs / "ca.crt"))
        context.load_cert_chain(server.certs / f"{cert}.crt", server.certs / f"{cert}.key")
        context.keylog_filename = str(keys)
        self.socket = socket.create_connection((LOOPBACK, server.port), PATIENCE_S)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.socket.sendall(self._outgoing.read())
                self._incoming.write(self.socket.recv(65536))
        self.socket.sendall(self._outgoing.read())
        suite = self._tls.cipher()
        assert suite is not None
        self._hash, self._size, self._key_size = _SUITES[suite[0]]
        lines = dict(line.split(" ", 1) for line in keys.read_text().splitlines())
        self._use(bytes.fromhex(lines["CLIENT_TRAFFIC_SECRET_0"].split()[1]))

    def __enter__(self) -> MessageClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def key_updates(self, count: int) -> bytes:
        """Return the records of so many KeyUpdate messages, to be sent next."""
        records = []
        for _ in range(count):
            records.append(self._record(_HANDSHAKE, _KEY_UPDATE))
            self._use(self._expand(b"traffic upd", self._size))
        return b"".join(records)

    def record(self, data: bytes) -> bytes:
        """Return the record of at most 16 KiB of data, to be sent next."""
        return self._record(_DATA, data)

    def exchange(self, request: bytes) -> bytes:
        """Send a request and return what is answered, nothing if the connection is closed."""
        return self.answer(self.record(request))

    def answer(self, records: bytes) -> bytes:
        """Send records and return what is answered, nothing if the connection is closed."""
        try:
            self.socket.sendall(records)
            while data := self.socket.recv(65536):
                self._incoming.write(data)
                try:
                    return self._tls.read(65536)
                except ssl.SSLWantReadError:
                    continue
        except OSError:
            pass
        return b""

    def _use(self, secret: bytes) -> None:
        self._secret, self._number = secret, 0
        self._cipher = AESGCM(self._expand(b"key", self._key_size))
        self._iv = int.from_bytes(self._expand(b"iv", 12), "big")

    def _expand(self, label: bytes, size: int) -> bytes:
        label = b"tls13 " + label
        info = struct.pack("!HB", size, len(label)) + label + b"\0\x01"
        return hmac.digest(self._secret, info, self._hash)[:size]

    def _record(self, kind: int, message: bytes) -> bytes:
        inner = message + bytes([kind])
        head = struct.pack("!BHH", _DATA, 0x0303, len(inner) + 16)
        nonce = (self._iv ^ self._number).to_bytes(12, "big")
        self._number += 1
        return head + self._cipher.encrypt(nonce, inner, head)
