"""What was asked of ordinary HTTP: counted by what came of it."""

from __future__ import annotations

from collections import Counter

from tornado.web import RequestHandler

from tornado_status.api.client import CHECK_IN_METHODS, ClientHandler
from tornado_status.api.problem import METHODS
from tornado_status.errors import StatusError
from tornado_status.measure import CheckIns


class AccessLog:
    """Is told of every answered request. `requests` counts them by method and status.

    `check_ins` learns of the check-ins among them that were refused.
    """

    def __init__(self, check_ins: CheckIns) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self._check_ins = check_ins

    def answered(self, handler: RequestHandler) -> None:
        """Count one request."""
        method, status = handler.request.method or "", handler.get_status()
        self.requests[method if method in METHODS else "other", str(status)] += 1
        if isinstance(handler, ClientHandler) and method in CHECK_IN_METHODS and status >= 400:
            if isinstance(handler.error, StatusError):
                self._check_ins.refused(handler.error)
            else:
                self._check_ins.results["refused" if status < 500 else "failed"] += 1
