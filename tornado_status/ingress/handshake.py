"""TLS handshakes: each waits in the loop, is made in steps, and ends within its time-out.

A handshake costs a millisecond of CPU, which would delay the check-ins of kept connections. While
there are any, a thread makes the steps: OpenSSL releases the GIL. Otherwise the loop does, which
saves the hand-over. A step is only made once there is something to read, so it never waits for a
peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import queue
import ssl
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from tornado_status.ingress.peer_stream import bytes_read, bytes_unread
from tornado_status.runtime.base_acceptor import Address

if TYPE_CHECKING:
    from tornado_status.ingress.tls_acceptor import TlsAcceptor

# Bytes from a client before its handshake is done. A chain of RSA certificates has some 8 KiB;
# OpenSSL would keep 128 KiB of a ClientHello.
MAX_HANDSHAKE_BYTES = 32_768
TURN_S = 0.01  # of the loop's time, for steps in one turn; the others are left to the threads
MAX_STEP_BYTES = 8192  # that the loop reads in one step: more may be of thousands of records


class HandshakeTooLong(OSError):
    """The client sent more than `MAX_HANDSHAKE_BYTES`."""

    reason = "EXCESSIVE_MESSAGE_SIZE"  # as OpenSSL calls it


class HandshakeSteps:
    """Makes one step of a handshake at a time: in threads while the loop `is_busy`, else in it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, threads: int, is_busy: Callable[[], bool]
    ) -> None:
        self._loop = loop
        self._is_busy = is_busy
        self._loop_queue: deque[Handshake] = deque()
        self._thread_queue: queue.SimpleQueue[Handshake | None] = queue.SimpleQueue()
        self._done: deque[tuple[Handshake, BaseException | None]] = deque()  # by the threads
        self._reported = False
        self._threads = [
            threading.Thread(target=self._work, name=f"handshake-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def step(self, handshake: Handshake) -> None:
        """Make one step soon; `handshake.stepped` is called in the loop with the error, if any."""
        if self._is_busy() or bytes_unread(handshake.secure) > MAX_STEP_BYTES:
            self._thread_queue.put(handshake)
            return
        if not self._loop_queue:
            self._loop.call_soon(self._step_in_loop)
        self._loop_queue.append(handshake)

    def close(self) -> None:
        """End the threads, each after its current step."""
        self._leave_to_threads()
        for _ in self._threads:
            self._thread_queue.put(None)
        for thread in self._threads:
            thread.join()

    def _step_in_loop(self) -> None:
        until = self._loop.time() + TURN_S
        while self._loop_queue and self._loop.time() < until:
            handshake = self._loop_queue.popleft()
            handshake.stepped(_step(handshake))
        self._leave_to_threads()

    def _leave_to_threads(self) -> None:
        while self._loop_queue:
            self._thread_queue.put(self._loop_queue.popleft())

    def _work(self) -> None:
        while (handshake := self._thread_queue.get()) is not None:
            self._done.append((handshake, _step(handshake)))
            if not self._reported:  # else the loop is woken already and will find this one too
                self._reported = True
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(self._report)

    def _report(self) -> None:
        self._reported = False
        while self._done:
            handshake, error = self._done.popleft()
            handshake.stepped(error)


def _step(handshake: Handshake) -> BaseException | None:
    """Make one step, and return the error, if any."""
    try:
        handshake.secure.do_handshake()
    except BaseException as error:
        return error
    return None


class Handshake:
    """One handshake under way. It ends in one call of `established`, `failed` or `dropped`."""

    __slots__ = (
        "_acceptor",
        "_address",
        "_deadline",
        "_expired",
        "_loop",
        "_over",
        "_stepping",
        "_steps",
        "began",
        "bundle",
        "has_hello",
        "secure",
    )

    def __init__(
        self,
        acceptor: TlsAcceptor,
        steps: HandshakeSteps,
        loop: asyncio.AbstractEventLoop,
        secure: ssl.SSLSocket,
        address: Address,
        timeout_s: float,
        bundle: int,
    ) -> None:
        self.bundle = bundle  # of the CAs that it is verified with: see `Trust`
        self._acceptor = acceptor
        self._steps = steps
        self._loop = loop
        self.secure = secure
        self.began = loop.time()
        self._address = address
        self._over = False
        self._expired = False
        self._deadline = loop.call_later(timeout_s, self.expire)
        # The kernel hands out a connection once its client has sent bytes: see TCP_DEFER_ACCEPT.
        self._stepping = True
        self.has_hello = False  # set in a step, once the ClientHello is whole

    def begin(self) -> None:
        """Make the first step."""
        self._steps.step(self)

    @property
    def awaits_client(self) -> bool:
        """Whether the next bytes are the client's to send."""
        return not self._stepping

    def expire(self) -> None:
        """End the handshake as one that took too long."""
        self._end()
        if self._stepping:
            self._expired = True  # `stepped` reports it: a thread may use the socket
        else:
            self._acceptor.failed(self.secure, self._address, TimeoutError())

    def abandon(self) -> None:
        """End the handshake without an alert."""
        self._end()
        if not self._stepping:
            self._acceptor.dropped(self.secure, self._address)

    def stepped(self, error: BaseException | None) -> None:
        """Go on after a step, or end the handshake."""
        self._stepping = False
        if self._expired:
            self._acceptor.failed(self.secure, self._address, TimeoutError())
        elif self._over:
            self._acceptor.dropped(self.secure, self._address)
        elif isinstance(error, ssl.SSLWantReadError):
            if bytes_read(self.secure) > MAX_HANDSHAKE_BYTES:
                self._finish()
                self._acceptor.failed(self.secure, self._address, HandshakeTooLong())
                return
            self._loop.add_reader(self.secure, self._readable)
            self._acceptor.awaits_client(self)
        elif isinstance(error, ssl.SSLWantWriteError):
            self._loop.add_writer(self.secure, self._writable)
        elif error is None:
            self._finish()
            self._acceptor.established(self.secure, self._address)
        else:
            self._finish()
            failure = error if isinstance(error, OSError) else OSError(errno.EIO, str(error))
            self._acceptor.failed(self.secure, self._address, failure)

    def _readable(self) -> None:
        self._loop.remove_reader(self.secure)
        self._stepping = True
        self._steps.step(self)

    def _writable(self) -> None:
        self._loop.remove_writer(self.secure)
        self._stepping = True
        self._steps.step(self)

    def _end(self) -> None:
        self._finish()
        if not self._stepping:
            self._loop.remove_reader(self.secure)
            self._loop.remove_writer(self.secure)

    def _finish(self) -> None:
        self._over = True
        self._deadline.cancel()
