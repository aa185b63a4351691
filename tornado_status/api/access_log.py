"""The access log: counts the responses of ordinary HTTP, and logs a sample of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import structlog
from prometheus_client.core import Metric
from tornado.web import RequestHandler

from tornado_status.api.client import CHECK_IN_METHODS, ClientHandler
from tornado_status.api.handler import METHODS, Handler
from tornado_status.errors import StatusError
from tornado_status.observe import metrics
from tornado_status.observe.counters import CheckIns
from tornado_status.runtime.rate_limit import RateLimit


class AccessLog:
    """Counts each response in `requests`, by method and status, and refused ones in `check_ins`.

    Logs one request a minute of each kind (handler, method, status and user), with the number of
    those suppressed. It logs no recorded check-in: a line each would cost more than the check-in.
    """

    def __init__(self, check_ins: CheckIns) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self._check_ins = check_ins
        self._limit = RateLimit()
        self._log = structlog.get_logger()

    def log_response(self, handler: RequestHandler) -> None:
        """Count one request, and log it unless its kind was logged within the last minute."""
        method, status = handler.request.method or "", handler.get_status()
        self.requests[method if method in METHODS else "other", str(status)] += 1
        is_check_in = isinstance(handler, ClientHandler) and method in CHECK_IN_METHODS
        if is_check_in and status >= 400:
            self._count_refused(getattr(handler, "error", None), status)
        # A 500 has its own line, with the traceback.
        if isinstance(handler, Handler) and status != 500 and not (is_check_in and status < 400):
            self._log_request(handler, method, status)

    def metrics(self) -> Iterable[Metric]:
        yield metrics.counters(
            "http_requests",
            "Requests answered by ordinary HTTP; plain check-ins do without it",
            ["method", "code"],
            self.requests,
        )

    def _count_refused(self, error: BaseException | None, status: int) -> None:
        if isinstance(error, StatusError):
            self._check_ins.refused(error)
        else:
            self._check_ins.results["refused" if status < 500 else "failed"] += 1

    def _log_request(self, handler: Handler, method: str, status: int) -> None:
        check_in = getattr(handler, "check_in", None)
        email = check_in.email if check_in is not None else None
        known = method if method in METHODS else "other"  # a client can invent methods
        suppressed = self._limit.allow((type(handler), known, status, email))
        if suppressed is None:
            return
        self._log.info(
            "request",
            method=method,
            path=handler.request.path,
            status=status,
            duration_ms=round(handler.request.request_time() * 1000, 3),
            client_ip=handler.request.remote_ip,
            request_id=handler.request_id,
            suppressed=suppressed,
            **({} if email is None else {"email": email}),
        )
