"""Telling the operator, again and again, what should be seen to: warnings to the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from tornado_status.observe.health import Check
from tornado_status.runtime.rate_limit import RateLimit

LOOK_EVERY_S = 60.0
SAY_EVERY_S = 12 * 3600.0  # whoever looks at the log once a day sees it


class ExpiryWarnings:
    """Logs each warning when it arises, and twice a day while it lasts."""

    def __init__(
        self, checks: Callable[[], Sequence[Check]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._checks = checks
        self._clock = clock
        self._said = RateLimit(SAY_EVERY_S, clock)
        self._log = structlog.get_logger()

    def again(self) -> None:
        """Say all of it now, whatever was said before: something has been changed."""
        self._said = RateLimit(SAY_EVERY_S, self._clock)
        self.look()

    def look(self) -> None:
        """Log what is to be said now."""
        for check in self._checks():
            for kind, text in (check.problems | check.warnings).items():
                if self._said.allow(kind) is not None:
                    self._log.warning(text, check=check.name)

    async def run(self) -> None:
        """Look once a minute, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.look()
