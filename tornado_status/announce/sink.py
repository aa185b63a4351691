"""What the announcer needs of whatever carries datagrams out: another kind of target is a class."""

from __future__ import annotations

from typing import Final, Protocol

QUEUED: Final = "queued"  # taken, but not on its way yet: the outlet tells what became of it


class NotCarried(OSError):
    """What a carrier that is no socket says instead of an errno.

    `reason` is a short stable word for counters, the text the sentence for the operator.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class Sink(Protocol):
    """One way out, of one target.

    `target` names it in counters, `via` says by which interface or connection in the log,
    `encoding` is what is sent: json or binary.
    """

    @property
    def target(self) -> str: ...

    @property
    def via(self) -> str: ...

    @property
    def encoding(self) -> str: ...

    @property
    def problem(self) -> OSError | None:
        """Why nothing can be sent for now; None where it can, as far as is known."""

    def send(self, payload: bytes, /) -> object:
        """Hand a datagram over, at once: raise `OSError` rather than wait.

        Where it is kept for a moment instead, within a limit, return `QUEUED`.
        """

    def close(self) -> None: ...
