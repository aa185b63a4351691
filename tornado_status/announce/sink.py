"""The interface between the announcer and its transports; each kind of target has a class."""

from __future__ import annotations

from typing import Protocol


class SendError(OSError):
    """A sink that is no socket could not send.

    `reason` takes the place of an errno: a short stable word for counters. The text is for the
    operator.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Sink(Protocol):
    """Sends datagrams to one target, by one interface or connection.

    `target` names it in counters, `via` is the interface or connection in the log, `encoding` is
    json, sealed or binary.
    """

    @property
    def target(self) -> str: ...

    @property
    def via(self) -> str: ...

    @property
    def encoding(self) -> str: ...

    @property
    def problem(self) -> OSError | None:
        """Why nothing can be sent now; None if it can, as far as is known."""

    def send(self, payload: bytes, /) -> bool:
        """Send a datagram at once: raise `OSError` rather than wait.

        Return False if it is queued, within a limit. Then the sink reports what became of it.
        """

    def close(self) -> None: ...
