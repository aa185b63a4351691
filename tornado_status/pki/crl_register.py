"""Keeps the newest CRL of each CA in the database: a restart must not forget what was revoked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from tornado_status.errors import ConfigError, CRLError, StoreError
from tornado_status.pki.crl import CRLMark, replace_crls
from tornado_status.pki.trust_anchors import Anchors
from tornado_status.runtime.waiting import wait_set

REFRESH_S = 60.0  # between two looks at what other servers have in force
RETRY_S = 1.0

Record = Callable[[Sequence[CRLMark]], Awaitable[list[CRLMark]]]


class CRLRegister:
    """Compares the CRLs in force with the newest that any server of the database had.

    `record` writes the marks of newer CRLs, and returns those of all. `marks` are the ones that
    the database had last.
    """

    def __init__(self, record: Record) -> None:
        self.marks: tuple[CRLMark, ...] = ()
        self._record = record
        self._anchors: Anchors | None = None
        self._changed = asyncio.Event()
        self._log = structlog.get_logger()

    def use(self, anchors: Anchors) -> None:
        """Record the CRLs of these anchors from now on."""
        self._anchors = anchors
        self._changed.set()

    def check(self, marks: Sequence[CRLMark]) -> None:
        """Compare the CRLs in use with `marks`, those of the database.

        Raises `ConfigError` if a CRL is older than one that was in force. Call before the first
        check-in is recorded.
        """
        self.marks = tuple(marks)
        if self._anchors is not None:
            _compare(self.marks, self._anchors)

    async def run(self) -> None:
        """Record until cancelled. If another server has a newer CRL, a warning says so."""
        warned = ""
        while True:
            self._changed.clear()
            wait_s = REFRESH_S
            try:
                if self._anchors is not None:
                    own = [crl.mark for crl in self._anchors.crls.values()]
                    self.marks = tuple(await self._record(own))
                    _compare(self.marks, self._anchors)
            except StoreError:
                wait_s = RETRY_S
            except ConfigError as error:
                if str(error) != warned:
                    warned = str(error)
                    self._log.warning("another server has a newer CRL", reason=warned)
            await wait_set(self._changed, wait_s)


def _compare(marks: Sequence[CRLMark], anchors: Anchors) -> None:
    try:
        replace_crls(marks, anchors.crls.values(), anchors.cas)
    except CRLError as error:
        raise ConfigError(f"tls.crl: {error}") from error
