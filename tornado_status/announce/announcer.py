"""The announcer: committed events to datagrams, datagrams to every target, heartbeats in silence.

Never waits and never queues: a datagram that the kernel refuses is counted, and listeners repair.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import errno
import socket
import uuid
from collections import Counter
from collections.abc import Callable, Sequence

import structlog

from tornado_status import datagram
from tornado_status.announce.sockets import ADVICE, open_sockets
from tornado_status.checkin import Event
from tornado_status.config import Announce, Target
from tornado_status.errors import DatagramError
from tornado_status.logs import RateLimit

# How long a target that refused counts as failing. Not until the next datagram gets through: to a
# unicast address where nobody listens every second one seems to.
FAILING_S = 60.0


class Announcer:
    """Sends every event it is given to every target, in order.

    `sent` counts datagrams by target, `errors` refusals by target and errno name.
    """

    def __init__(self, settings: Announce) -> None:
        self._settings = settings
        self.signer: datagram.Signs | None = None  # may change at any time
        self._log = structlog.get_logger()
        self._warnings = RateLimit()
        self._json: list[tuple[Target, socket.socket]] = []
        self._binary: list[tuple[Target, socket.socket]] = []
        self._last_sent = float("-inf")
        self._heartbeat: asyncio.Task[None] | None = None
        self.sent: Counter[str] = Counter()
        self.errors: Counter[tuple[str, str]] = Counter()
        self._failed: dict[str, tuple[float, str]] = {}

    def open(self) -> None:
        """Open the sockets. Raises `ConfigError` where a target can never be reached as set."""
        try:
            for target in self._settings.targets:
                sockets = self._binary if target.encoding == "binary" else self._json
                self.sent[str(target)] += 0  # known from the start, for who counts
                for sock in open_sockets(target, self._settings.source_port):
                    sockets.append((target, sock))
        except BaseException:
            self._close_sockets()
            raise

    def start_heartbeats(self, state: Callable[[], tuple[uuid.UUID, int] | None]) -> None:
        """After `heartbeat_s` of silence announce the stream and head that `state` returns."""
        if self._settings.heartbeat_s and self._json:
            self._heartbeat = asyncio.create_task(self._send_heartbeats(state), name="heartbeat")

    def announce(self, stream: uuid.UUID, head: int, events: Sequence[Event]) -> None:
        """Send committed events, in order; `head` is the newest number that is known."""
        if self._json:
            now = datetime.datetime.now(datetime.UTC)
            try:
                for payload in datagram.encode_json(stream, now, head, events, self.signer):
                    self._send(self._json, payload)
            except DatagramError as error:
                self._refused("encoding", "all", error.reason, str(error))
            self._last_sent = asyncio.get_running_loop().time()
        if self._binary:
            for event in events:
                try:
                    self._send(self._binary, datagram.encode_binary(event))
                except DatagramError as error:
                    self._refused("encoding", "binary", error.reason, str(error))

    def failing(self) -> dict[str, str]:
        """Return why targets could not be sent to, those of the last `FAILING_S`."""
        now = asyncio.get_running_loop().time()
        return {
            target: reason
            for target, (failed, reason) in self._failed.items()
            if now - failed < FAILING_S
        }

    async def close(self) -> None:
        """Stop the heartbeats and close the sockets."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._heartbeat
            self._heartbeat = None
        self._close_sockets()

    def _send(self, sockets: list[tuple[Target, socket.socket]], payload: bytes) -> None:
        for target, sock in sockets:
            try:
                sock.send(payload)
                self.sent[str(target)] += 1
            except OSError as error:
                name = errno.errorcode.get(error.errno or 0, "UNKNOWN")
                advice = ADVICE.get(error.errno or 0, str(error.strerror))
                self._refused("send", str(target), name, advice)

    def _refused(self, what: str, target: str, name: str, advice: str) -> None:
        self.errors[target, name] += 1
        self._failed[target] = (asyncio.get_running_loop().time(), f"{name}: {advice}")
        held = self._warnings.admit((target, name))
        if held is not None:
            self._log.warning(
                f"announcement not sent ({what})",
                target=target,
                errno=name,
                advice=advice,
                before=held,
            )

    async def _send_heartbeats(self, state: Callable[[], tuple[uuid.UUID, int] | None]) -> None:
        loop = asyncio.get_running_loop()
        interval_s = self._settings.heartbeat_s
        while True:
            silence = loop.time() - self._last_sent
            if silence < interval_s:
                await asyncio.sleep(interval_s - silence)
                continue
            known = state()
            if known is None:
                self._last_sent = loop.time()  # nothing to say yet: look again later
                continue
            stream, head = known
            self.announce(stream, head, ())

    def _close_sockets(self) -> None:
        for _, sock in self._json + self._binary:
            sock.close()
        self._json, self._binary = [], []
