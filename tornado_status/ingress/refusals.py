"""Identities that were refused: counted by reason, and told in the log within bounds.

At the start of a connection and while it is open alike: an operator who revokes a certificate sees
that it is in force.
"""

from __future__ import annotations

from collections import Counter

import structlog

from tornado_status.errors import IdentityError
from tornado_status.runtime.rate_limit import RateLimit


class Refusals:
    """Is told of every refusal, once a connection, or once a request where a proxy is in front.

    `counts` holds them by reason, beside those of handshakes and of whole connections.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._log = structlog.get_logger()
        self._logged = RateLimit()

    def at_the_start(self, refusal: IdentityError, client_ip: str) -> None:
        """Count an identity that nothing was recorded of yet, and log one of its kind a minute."""
        self._tell(refusal, client_ip)

    def on_an_open_connection(self, refusal: IdentityError, client_ip: str, email: str) -> None:
        """Count one that was good before. The log says whose it is, one of them a minute."""
        self._tell(refusal, client_ip, email=email)

    def _tell(self, refusal: IdentityError, client_ip: str, **whose: str) -> None:
        self.counts[refusal.reason] += 1
        suppressed = self._logged.allow((refusal.reason, *whose.values()))
        if suppressed is not None:
            self._log.info(
                "identity refused",
                reason=refusal.reason,
                client_ip=client_ip,
                **whose,
                suppressed=suppressed,
            )
