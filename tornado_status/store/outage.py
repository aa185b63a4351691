"""Log lines about a database that is away: when it is lost, while it is away, when it is back."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from tornado_status.runtime.rate_limit import RateLimit


class Outage:
    """At most one outage at a time. Lines of one reason are limited to one a minute.

    A recovery is logged if its loss was: a database that fails each commit cannot fill the log.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limit = RateLimit(clock=clock)
        self._log = structlog.get_logger()
        self._since: float | None = None
        self._logged = False

    def lost(self, reason: str) -> None:
        """Log that the connection broke."""
        if (suppressed := self._allow("lost", reason)) is not None:
            self._log.warning("database lost, reconnecting", reason=reason, suppressed=suppressed)

    def away(self, reason: str) -> None:
        """Log that an attempt to connect failed."""
        if (suppressed := self._allow("away", reason)) is not None:
            self._log.warning(
                "database away, trying again",
                reason=reason,
                away_s=self._away_s(),
                suppressed=suppressed,
            )

    def over(self) -> None:
        """Log that check-ins are recorded again, if they were not."""
        if self._since is not None and self._logged:
            self._log.info("database is back", away_s=self._away_s())
        self._since, self._logged = None, False

    def _allow(self, kind: str, reason: str) -> int | None:
        if self._since is None:
            self._since = self._clock()
        suppressed = self._limit.allow((kind, reason))
        self._logged |= suppressed is not None
        return suppressed

    def _away_s(self) -> float:
        return 0.0 if self._since is None else round(self._clock() - self._since, 1)
