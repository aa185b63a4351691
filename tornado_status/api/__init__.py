"""The ordinary HTTP of the check-in port: check-ins, records, the log, live streams, the board."""

from tornado_status.api.access import Access
from tornado_status.api.access_log import AccessLog
from tornado_status.api.application import make_application
from tornado_status.api.board.page import load_board
from tornado_status.api.in_flight import RequestsInFlight
from tornado_status.api.live.subscriptions import Subscriptions
from tornado_status.api.problem import problem_answer

__all__ = [
    "Access",
    "AccessLog",
    "RequestsInFlight",
    "Subscriptions",
    "load_board",
    "make_application",
    "problem_answer",
]
