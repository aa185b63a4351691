"""Logs problems and warnings of checks, such as a certificate that expires, while they last."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from tornado_status.observe.health import Check
from tornado_status.runtime.rate_limit import RateLimit

CHECK_EVERY_S = 60.0
LOG_EVERY_S = 12 * 3600.0  # so that every day of the log has it


class ExpiryWarnings:
    """Logs each warning when it arises, and every `LOG_EVERY_S` while it lasts."""

    def __init__(
        self, checks: Callable[[], Sequence[Check]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._checks = checks
        self._clock = clock
        self._limit = RateLimit(LOG_EVERY_S, clock)
        self._log = structlog.get_logger()

    def restart(self) -> None:
        """Log all warnings now, whatever was logged before: the files have changed."""
        self._limit = RateLimit(LOG_EVERY_S, self._clock)
        self.check()

    def check(self) -> None:
        """Log the warnings that are due."""
        for check in self._checks():
            for kind, text in check.problems.items():
                if self._limit.allow(kind) is not None:
                    self._log.error("check failing", check=check.name, reason=text)
            for kind, text in check.warnings.items():
                if self._limit.allow(kind) is not None:
                    self._log.warning("check failing", check=check.name, reason=text)

    async def run(self) -> None:
        """Check every `CHECK_EVERY_S`, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            self.check()
