"""What was asked of ordinary HTTP: counted by what came of it, and told in the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import structlog
from prometheus_client.core import Metric
from tornado.web import RequestHandler

from tornado_status.api.client import CHECK_IN_METHODS, ClientHandler
from tornado_status.api.problem import METHODS, Handler
from tornado_status.errors import StatusError
from tornado_status.observe import metrics
from tornado_status.observe.counters import CheckIns
from tornado_status.runtime.rate_limit import RateLimit


class AccessLog:
    """Is told of every answered request. `requests` counts them by method and status.

    `check_ins` learns of the check-ins among them that were refused. Of requests of one kind (the
    path's handler, method, status and whose it is) one a minute is logged, and how many were not;
    check-ins that were recorded are not: a line each would be the costliest part of them.
    """

    def __init__(self, check_ins: CheckIns) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self._check_ins = check_ins
        self._logged = RateLimit()
        self._log = structlog.get_logger()

    def answered(self, handler: RequestHandler) -> None:
        """Count one request, and log it."""
        method, status = handler.request.method or "", handler.get_status()
        self.requests[method if method in METHODS else "other", str(status)] += 1
        is_check_in = isinstance(handler, ClientHandler) and method in CHECK_IN_METHODS
        if is_check_in and status >= 400:
            self._refused(getattr(handler, "error", None), status)
        # A 500 has a line of its own, with its traceback.
        if isinstance(handler, Handler) and status != 500 and not (is_check_in and status < 400):
            self._tell(handler, method, status)

    def metrics(self) -> Iterable[Metric]:
        yield metrics.counters(
            "http_requests",
            "Requests answered by ordinary HTTP; plain check-ins do without it",
            ["method", "code"],
            self.requests,
        )

    def _refused(self, error: BaseException | None, status: int) -> None:
        if isinstance(error, StatusError):
            self._check_ins.refused(error)
        else:
            self._check_ins.results["refused" if status < 500 else "failed"] += 1

    def _tell(self, handler: Handler, method: str, status: int) -> None:
        check_in = getattr(handler, "check_in", None)
        email = check_in.email if check_in is not None else None
        known = method if method in METHODS else "other"  # anybody can invent methods
        suppressed = self._logged.allow((type(handler), known, status, email))
        if suppressed is None:
            return
        self._log.info(
            "request",
            method=method,
            path=handler.request.path,
            status=status,
            duration_ms=round(handler.request.request_time() * 1000, 3),
            client_ip=handler.request.remote_ip,
            email=email,
            request_id=handler.request_id,
            suppressed=suppressed,
        )
