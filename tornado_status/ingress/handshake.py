"""TLS handshakes: each waits in the loop, steps in a thread, and ends within its time.

A handshake costs a millisecond of CPU, which would keep those waiting who only check in. OpenSSL
lets go of the GIL, so a thread can do it; and as a step is only made once there is something to
read, a thread never waits for a peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import queue
import ssl
import threading
from collections import deque
from typing import Protocol

Address = tuple[str, int]


class Owner(Protocol):
    """Who is told how a handshake ends. Each handshake ends in one call of one of these."""

    def established(self, secure: ssl.SSLSocket, address: Address) -> None: ...

    def failed(self, secure: ssl.SSLSocket, address: Address, error: OSError) -> None: ...

    def dropped(self, secure: ssl.SSLSocket, address: Address) -> None: ...


class HandshakeThreads:
    """A few threads that make one step of a handshake at a time, and report in the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self._loop = loop
        self._waiting: queue.SimpleQueue[Handshake | None] = queue.SimpleQueue()
        self._done: deque[tuple[Handshake, BaseException | None]] = deque()
        self._reported = False
        self._threads = [
            threading.Thread(target=self._work, name=f"handshake-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def step(self, handshake: Handshake) -> None:
        """Make one step; `handshake.stepped` is called in the loop with what it raised."""
        self._waiting.put(handshake)

    def close(self) -> None:
        """End the threads, each after the step it is in."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (handshake := self._waiting.get()) is not None:
            error: BaseException | None = None
            try:
                handshake.secure.do_handshake()
            except BaseException as raised:
                error = raised
            self._done.append((handshake, error))
            if not self._reported:  # else the loop is on its way and will find this one too
                self._reported = True
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                    self._loop.call_soon_threadsafe(self._report)

    def _report(self) -> None:
        self._reported = False
        while self._done:
            handshake, error = self._done.popleft()
            handshake.stepped(error)


class Handshake:
    """One handshake under way."""

    __slots__ = (
        "_address",
        "_deadline",
        "_loop",
        "_over",
        "_owner",
        "_stepping",
        "_threads",
        "began",
        "bundle",
        "secure",
    )

    def __init__(
        self,
        owner: Owner,
        threads: HandshakeThreads,
        loop: asyncio.AbstractEventLoop,
        secure: ssl.SSLSocket,
        address: Address,
        timeout_s: float,
        bundle: int,
    ) -> None:
        self.bundle = bundle  # of the CAs that it is verified with: see `Trust`
        self._owner = owner
        self._threads = threads
        self._loop = loop
        self.secure = secure
        self.began = loop.time()
        self._address = address
        self._over = False
        self._deadline = loop.call_later(timeout_s, self._expire)
        # The kernel hands out a connection when its client has spoken: see TCP_DEFER_ACCEPT.
        self._stepping = True
        threads.step(self)

    def abandon(self) -> None:
        """Close without a word."""
        self._end()
        if not self._stepping:
            self._owner.dropped(self.secure, self._address)

    def stepped(self, error: BaseException | None) -> None:
        """A step has been made: go on, or come to an end."""
        self._stepping = False
        if self._over:
            self._owner.dropped(self.secure, self._address)
        elif isinstance(error, ssl.SSLWantReadError):
            self._loop.add_reader(self.secure, self._readable)
        elif isinstance(error, ssl.SSLWantWriteError):
            self._loop.add_writer(self.secure, self._writable)
        elif error is None:
            self._finish()
            self._owner.established(self.secure, self._address)
        else:
            self._finish()
            failure = error if isinstance(error, OSError) else OSError(errno.EIO, str(error))
            self._owner.failed(self.secure, self._address, failure)

    def _readable(self) -> None:
        self._loop.remove_reader(self.secure)
        self._stepping = True
        self._threads.step(self)

    def _writable(self) -> None:
        self._loop.remove_writer(self.secure)
        self._stepping = True
        self._threads.step(self)

    def _expire(self) -> None:
        self._end()
        if not self._stepping:  # else dropped when the thread lets go of it
            self._owner.failed(self.secure, self._address, TimeoutError())

    def _end(self) -> None:
        self._finish()
        if not self._stepping:
            self._loop.remove_reader(self.secure)
            self._loop.remove_writer(self.secure)

    def _finish(self) -> None:
        self._over = True
        self._deadline.cancel()
