"""What the announcer needs of whatever carries datagrams out: another kind of target is a class."""

from __future__ import annotations

from typing import Protocol


class Outlet(Protocol):
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
        """Hand a datagram over, at once: raise `OSError` rather than wait, and keep nothing."""

    def close(self) -> None: ...
