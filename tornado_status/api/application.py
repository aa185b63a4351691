"""The routes of the check-in port, as Tornado's ordinary Application."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tornado.web import Application, RequestHandler

from tornado_status.api.access import Access
from tornado_status.api.access_log import AccessLog
from tornado_status.api.board.page import BoardFileHandler, BoardPage, BoardPageHandler
from tornado_status.api.client import ClientHandler
from tornado_status.api.dependencies import ApiStore, Authenticator
from tornado_status.api.event_log import (
    AnnouncersHandler,
    EventsExportHandler,
    EventsHandler,
    HistoryExportHandler,
    LogHandler,
)
from tornado_status.api.handler import (
    MAX_READS,
    MAX_READS_EACH,
    MAX_REQUESTS_EACH,
    NotFoundHandler,
)
from tornado_status.api.in_flight import RequestsInFlight
from tornado_status.api.live.connections import SocketHandler, StreamHandler
from tornado_status.api.live.subscriptions import Subscriptions
from tornado_status.api.openapi import OpenApiHandler
from tornado_status.api.reader_keys import GroupKeysHandler
from tornado_status.api.users import HistoryHandler, UserHandler, UsersHandler
from tornado_status.runtime.fair_semaphore import FairSemaphore
from tornado_status.runtime.rate_limit import RateLimit

if TYPE_CHECKING:
    from tornado_status.model.check_in_rate_limit import CheckInRateLimit
    from tornado_status.model.presence import PresenceTimes
    from tornado_status.observe.tracing import Tracing

# The names of the groups in the routes.
PARAMETERS = {"([^/]+)": "email", "(csv|jsonl)": "format", "(.+)": "file"}


def make_application(
    store: ApiStore,
    access: Access,
    in_flight: RequestsInFlight,
    authenticator: Authenticator,
    rate_limit: CheckInRateLimit | None,
    access_log: AccessLog,
    subscriptions: Subscriptions,
    presence: PresenceTimes,
    board: BoardPage,
    tracing: Tracing | None = None,
) -> Application:
    """Return the application. `rate_limit` and `tracing` are None if they are off."""
    common: dict[str, object] = {
        "in_flight": in_flight,
        "authenticator": authenticator,
        "error_log_limit": RateLimit(),
        "refusal_log_limit": RateLimit(),
        "reads": FairSemaphore(MAX_READS_EACH, MAX_READS),
        "requests": FairSemaphore(MAX_REQUESTS_EACH, sys.maxsize),
        "tracing": tracing,
    }
    read = {**common, "store": store, "access": access}
    check_in = {**common, "store": store, "rate_limit": rate_limit}
    subscribe = {**read, "subscriptions": subscriptions}
    routes: list[tuple[str, type[RequestHandler], dict[str, object]]] = [
        (r"/api/client", ClientHandler, check_in),
        (r"/api/users", UsersHandler, {**read, "presence": presence}),
        (r"/api/users/([^/]+)", UserHandler, read),
        (r"/api/users/([^/]+)/history", HistoryHandler, read),
        (r"/api/users/([^/]+)/history\.(csv|jsonl)", HistoryExportHandler, read),
        (r"/api/events\.(csv|jsonl)", EventsExportHandler, read),
        (r"/api/events", EventsHandler, read),
        (r"/api/log", LogHandler, read),
        (r"/api/announcers", AnnouncersHandler, read),
        (r"/api/group-keys", GroupKeysHandler, read),
        (r"/api/stream", StreamHandler, subscribe),
        (r"/api/socket", SocketHandler, subscribe),
        (r"/api/openapi\.json", OpenApiHandler, common),
        (r"/", BoardPageHandler, {**read, "board": board}),
        (r"/board/(.+)", BoardFileHandler, {**read, "board": board}),
    ]
    return Application(
        [(path, handler, {**parts, "route": _template(path)}) for path, handler, parts in routes],
        default_handler_class=NotFoundHandler,
        default_handler_args=common,
        log_function=access_log.log_response,
    )


def _template(path: str) -> str:
    """Return a route's pattern as traces name it: `/api/users/{email}`."""
    for pattern, name in PARAMETERS.items():
        path = path.replace(pattern, f"{{{name}}}")
    return path.replace("\\", "")
