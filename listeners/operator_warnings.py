"""Warnings for the operator, with a rate limit for those that a sender or the server can cause."""

from __future__ import annotations

from collections.abc import Callable

from tornado_status.runtime.rate_limit import RateLimit


class OperatorWarnings:
    """Hands sentences to `warn`."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self._limit = RateLimit()

    def warn_limited(self, subject: str, reason: str, sentence: str) -> None:
        """Warn at most once a minute for each `subject` and `reason`."""
        suppressed = self._limit.allow((subject, reason))
        if suppressed is not None:
            more = f" ({suppressed} more like it before)" if suppressed else ""
            self.warn(f"{subject}: {sentence}{more}")
