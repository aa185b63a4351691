"""Counting and logging what was refused: identities, handshakes, PROXY headers, connections."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict

import structlog

from tornado_status.errors import Refusal
from tornado_status.runtime.rate_limit import RateLimit


class Refusals:
    """Counts every refusal, and logs one of its kind a minute.

    An identity is counted once a connection, or once a request behind a proxy. `counts` holds all
    refusals by reason.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._log = structlog.get_logger()
        self._rate_limits: defaultdict[str, RateLimit] = defaultdict(RateLimit)  # by event

    def count(
        self,
        counted: str,
        event: str = "",
        *,
        per: object = None,
        level: int = logging.INFO,
        **fields: str,
    ) -> None:
        """Count one refusal for the reason `counted`; log `event` with `fields`, if it has one.

        Events of one kind share a rate limit: of one reason, or what `per` says instead.
        """
        self.counts[counted] += 1
        if not event:
            return
        suppressed = self._rate_limits[event].allow(per or counted)
        if suppressed is not None:
            self._log.log(level, event, **fields, suppressed=suppressed)

    def at_the_start(self, refusal: Refusal, client_ip: str) -> None:
        """Count an identity that is refused before its first check-in."""
        self.count(refusal.reason, "identity refused", reason=refusal.reason, client_ip=client_ip)

    def on_an_open_connection(self, refusal: Refusal, client_ip: str, email: str) -> None:
        """Count an identity that was accepted before, and log its e-mail address.

        An operator who revokes a certificate sees that the revocation is in force.
        """
        self.count(
            refusal.reason,
            "identity refused",
            per=(refusal.reason, email),
            reason=refusal.reason,
            client_ip=client_ip,
            email=email,
        )
