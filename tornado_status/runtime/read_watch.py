"""Ending TLS reads and handshakes that do not return.

One read of OpenSSL handles all messages of TLS itself, such as KeyUpdate, that come before the next
data. It takes as long as they keep coming: a peer that sends nothing else would stop the event
loop. One step of a handshake whose client sends records of one byte is the same.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
import time
from types import FrameType

TICK_S = 0.05  # between two looks at the watched thread
LONGEST_READ_S = 0.02  # of CPU time; a read of one record takes some 20 microseconds

_WATCHED = (ssl.SSLSocket.read.__code__, ssl.SSLSocket.do_handshake.__code__)


class ReadWatch:
    """Watches the thread that makes it: a daemon thread shuts down what that reads endlessly.

    The read then returns, as if the peer had hung up. Between two looks it costs nothing.
    """

    def __init__(self) -> None:
        self._watched = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._watched)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="read watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching. Call it before the watched thread ends."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        reading: FrameType | None = None
        since = 0.0
        while not self._stopped.wait(TICK_S):
            now = time.clock_gettime(self._clock)
            frame = sys._current_frames().get(self._watched)
            if frame is None or frame.f_code not in _WATCHED:
                reading = None
            elif frame is not reading:  # else it is the same call: each has a frame of its own
                reading, since = frame, now
            elif now - since > LONGEST_READ_S:
                with contextlib.suppress(OSError):
                    # Without TLS, whose state belongs to the other thread.
                    socket.socket.shutdown(frame.f_locals["self"], socket.SHUT_RDWR)
                reading = None
            del frame
