"""Turns received bytes into verified datagrams, or into unverified updates if asked for.

Cheap checks are done at once. Signatures are verified in turns, from a queue that is fair to all
senders. No event loop is imported: the caller schedules the turns.
"""

from __future__ import annotations

import datetime
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from listeners.events import Source, Update
from listeners.operator_warnings import OperatorWarnings
from listeners.receive.fair_queue import FairQueue
from listeners.verify.unverified import Encoding, UnverifiedReader
from listeners.verify.verifier import UNVERIFIED_REASONS, DuplicateDatagram, Verifier
from tornado_status.errors import DatagramError
from tornado_status.wire.datagram import Datagram, decode_binary
from tornado_status.wire.sealed_datagram import OTHER_SECRET, Opener, is_sealed

VERIFY = 32  # signatures checked in a row, some milliseconds: sockets are drained between
MAX_SEALED_HELD = 1024  # of an unknown epoch, about 1.5 MB, until its key is fetched
MAX_UNVERIFIED = 4096  # unverified updates that wait for the reader, with `insecure`


@dataclass(slots=True)
class VerificationCounts:
    """Datagrams, by their fate."""

    datagrams: int = 0
    duplicates: int = 0  # whole datagrams
    refused: Counter[str] = field(default_factory=Counter)  # datagrams, by reason
    ignored: int = 0  # of the encoding that was not asked for
    dropped: int = 0  # no room, before they were opened or verified
    clock_is_right: bool = True  # False: the newest datagram was of another time than this clock's


@dataclass(frozen=True, slots=True)
class VerificationCallbacks:
    """The functions that a `Verification` calls.

    `verified` gets a verified datagram and its sender, and may raise `DatagramError`.
    `unknown_key` is called for a datagram whose key is not known. `progress` is called after a
    turn, and when unverified updates came. `call_soon` schedules a turn.
    """

    verified: Callable[[Datagram, Source], None]
    unknown_key: Callable[[], None]
    progress: Callable[[], None]
    call_soon: Callable[[Callable[[], None]], object]


class Verification:
    """Checks each datagram, and hands it on or counts why not.

    Without a `verifier` nothing is verified. With `insecure` updates without proof go to
    `unverified`. Without an `opener`, which may be taken away, sealed datagrams are refused.
    """

    def __init__(
        self,
        verifier: Verifier | None,
        callbacks: VerificationCallbacks,
        warnings: OperatorWarnings,
        *,
        encoding: Encoding,
        insecure: bool,
        opener: Opener | None,
    ) -> None:
        self.counts = VerificationCounts()
        self.unverified: deque[Update] = deque()
        self.reader = UnverifiedReader(encoding)
        self._verifier = verifier
        self._callbacks = callbacks
        self._warnings = warnings
        self._encoding = encoding
        self._insecure = insecure
        self.opener = opener
        self._sealed_held: deque[tuple[bytes, Sequence[object]]] = deque()
        self._queue = FairQueue()
        self._scheduled = False
        self._warned_of_binary = False

    def __len__(self) -> int:
        """Return how many datagrams wait for their signature check."""
        return len(self._queue)

    def receive(self, payload: bytes, address: Sequence[object]) -> None:
        """Check a datagram, and queue it for its signature check if it may be right."""
        self.counts.datagrams += 1
        source = (str(address[0]), int(str(address[1])))
        try:
            if is_sealed(payload):
                opened = self._open(payload, address)
                if opened is None:
                    return
                payload = opened
            if not payload.startswith(b'{"'):
                self._receive_binary(payload, source)
            elif self._encoding is Encoding.BINARY:
                self.counts.ignored += 1
            elif self._verifier is None:
                self._read_unverified(payload, source)
            else:
                self._screen(self._verifier, payload, source)
        except DatagramError as error:
            self._refuse(source, error)

    def receive_sealed_again(self) -> None:
        """Receive the datagrams again whose epoch was unknown: there are new keys."""
        held, self._sealed_held = self._sealed_held, deque()
        self.counts.datagrams -= len(held)
        for payload, address in held:
            self.receive(payload, address)

    def _open(self, sealed: bytes, address: Sequence[object]) -> bytes | None:
        """Return the datagram inside a sealed one; None if it waits for the key of its epoch.

        Raises `DatagramError`.
        """
        if self.opener is None:
            raise DatagramError(
                "sealed", "it is sealed: only a reader's certificate (--cert, --key) can open it"
            )
        try:
            return self.opener.open(sealed)
        except DatagramError as error:
            if error.reason in OTHER_SECRET:
                self._callbacks.unknown_key()
            if error.reason != "unknown-epoch":
                raise
        if len(self._sealed_held) >= MAX_SEALED_HELD:
            self._sealed_held.popleft()
            self.counts.dropped += 1
        self._sealed_held.append((sealed, address))
        return None

    def _screen(self, verifier: Verifier, payload: bytes, source: Source) -> None:
        try:
            verifier.screen(payload, datetime.datetime.now(datetime.UTC))
        except DuplicateDatagram:
            self.counts.duplicates += 1
        except DatagramError as error:
            self._without_proof(payload, source, error)
        else:
            if not self._queue.put(payload, source):
                self.counts.dropped += 1
            if not self._scheduled:
                self._schedule(verifier)

    def _schedule(self, verifier: Verifier) -> None:
        self._scheduled = True
        self._callbacks.call_soon(partial(self._verify_some, verifier))

    def _verify_some(self, verifier: Verifier) -> None:
        """Verify some of what waits. The loop reads the sockets between two calls."""
        for _ in range(VERIFY):
            waiting = self._queue.get()
            if waiting is None:
                break
            self._verify(verifier, *waiting)
        self._scheduled = False
        if len(self._queue):
            self._schedule(verifier)
        self._callbacks.progress()

    def _verify(self, verifier: Verifier, payload: bytes, source: Source) -> None:
        try:
            try:
                datagram = verifier.verify(payload, datetime.datetime.now(datetime.UTC))
                self._queue.prove(source)
                self._callbacks.verified(datagram, source)
                self.counts.clock_is_right = True
            except DatagramError as error:
                self._without_proof(payload, source, error)
        except DuplicateDatagram:
            self.counts.duplicates += 1
        except DatagramError as error:
            self._refuse(source, error)

    def _without_proof(self, payload: bytes, source: Source, error: DatagramError) -> None:
        """Report an unknown key. Read the updates if they are asked for, else raise `error`."""
        if error.reason == "unknown-kid":
            self._callbacks.unknown_key()
        if not (self._insecure and error.reason in UNVERIFIED_REASONS):
            raise error
        self._read_unverified(payload, source)

    def _receive_binary(self, payload: bytes, source: Source) -> None:
        # With --encoding binary the operator accepts that nothing is verified.
        if self._insecure or self._encoding is Encoding.BINARY:
            self._read_unverified(payload, source)
            return
        if self._encoding is Encoding.JSON:
            self.counts.ignored += 1
            return
        decode_binary(payload)  # raises if it is no datagram at all
        self.counts.refused["binary"] += 1
        if not self._warned_of_binary:
            self._warned_of_binary = True
            self._warnings.warn(
                "datagrams of the binary format are not signed: they are counted, and shown only "
                "with --encoding binary or --insecure"
            )

    def _read_unverified(self, payload: bytes, source: Source) -> None:
        for update in self.reader.receive(payload):
            if len(self.unverified) < MAX_UNVERIFIED:
                self.unverified.append(Update(update, source, verified=False))
            else:
                self.counts.dropped += 1
        if self.unverified:
            self._callbacks.progress()

    def _refuse(self, source: Source, error: DatagramError) -> None:
        self.counts.refused[error.reason] += 1
        if error.reason == "skew":
            self.counts.clock_is_right = False
        self._warnings.warn_limited(
            f"dropped a datagram from {source[0]}", error.reason, str(error)
        )
