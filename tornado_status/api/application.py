"""The routes of the check-in port, as Tornado's ordinary Application."""

from __future__ import annotations

from typing import Protocol

from tornado.web import Application, RequestHandler

from tornado_status.api.access import Access
from tornado_status.api.access_log import AccessLog
from tornado_status.api.board.page import Board, BoardFileHandler, BoardPageHandler
from tornado_status.api.client import ClientHandler, Limit, Recorder
from tornado_status.api.export import EventsExportHandler, HistoryExportHandler
from tornado_status.api.in_flight import InFlight
from tornado_status.api.live.connections import SocketHandler, StreamHandler, Watch
from tornado_status.api.live.subscriptions import Streams
from tornado_status.api.openapi import OpenApiHandler
from tornado_status.api.problem import NotFound, Peers, Tracing
from tornado_status.api.users import (
    AnnouncersHandler,
    EventsHandler,
    HistoryHandler,
    Registry,
    UserHandler,
    UsersHandler,
)
from tornado_status.runtime.rate_limit import RateLimit

# What the groups in the routes are.
PARAMETERS = {"([^/]+)": "email", "(csv|jsonl)": "format", "(.+)": "file"}


class Judge_(Peers, Watch, Protocol):
    """What the handlers need to know of who sent a request."""


class ApiStore(Recorder, Registry, Protocol):
    """The parts of the store that the handlers need."""


def make_application(
    store: ApiStore,
    access: Access,
    in_flight: InFlight,
    peers: Judge_,
    limit: Limit | None,
    access_log: AccessLog,
    streams: Streams,
    board: Board,
    tracing: Tracing | None = None,
) -> Application:
    """Return the application.

    `in_flight` counts its requests; `peers` tells who sent one, `limit` how often
    each may check in. `access_log` is told of every answer; `streams` serves who follows,
    `board` is the page for people. `tracing` makes spans of requests, where there is one.
    """
    common: dict[str, object] = {
        "in_flight": in_flight,
        "peers": peers,
        "mistakes": RateLimit(),
        "refusals": RateLimit(),
        "tracing": tracing,
    }
    reading = {**common, "store": store, "access": access}
    following = {**reading, "streams": streams, "watch": peers}
    routes: list[tuple[str, type[RequestHandler], dict[str, object]]] = [
        (r"/api/client", ClientHandler, {**common, "store": store, "limit": limit}),
        (r"/api/users", UsersHandler, reading),
        (r"/api/users/([^/]+)", UserHandler, reading),
        (r"/api/users/([^/]+)/history", HistoryHandler, reading),
        (r"/api/users/([^/]+)/history\.(csv|jsonl)", HistoryExportHandler, reading),
        (r"/api/events\.(csv|jsonl)", EventsExportHandler, reading),
        (r"/api/events", EventsHandler, reading),
        (r"/api/announcers", AnnouncersHandler, reading),
        (r"/api/stream", StreamHandler, following),
        (r"/api/socket", SocketHandler, following),
        (r"/api/openapi\.json", OpenApiHandler, common),
        (r"/", BoardPageHandler, {**reading, "board": board}),
        (r"/board/(.+)", BoardFileHandler, {**reading, "board": board}),
    ]
    return Application(
        [(path, handler, {**known, "route": _template(path)}) for path, handler, known in routes],
        default_handler_class=NotFound,
        default_handler_args=common,
        log_function=access_log.answered,
    )


def _template(path: str) -> str:
    """Return a route's pattern as the field writes it: `/api/users/{email}`."""
    for pattern, name in PARAMETERS.items():
        path = path.replace(pattern, f"{{{name}}}")
    return path.replace("\\", "")
