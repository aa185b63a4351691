"""The ordinary HTTP of the check-in port: checking in, one's own record, and reading."""

from tornado_status.api.access import Access
from tornado_status.api.access_log import AccessLog
from tornado_status.api.application import make_application
from tornado_status.api.board.page import load_board
from tornado_status.api.in_flight import InFlight
from tornado_status.api.live.subscriptions import Streams
from tornado_status.api.problem import problem_answer

__all__ = [
    "Access",
    "AccessLog",
    "InFlight",
    "Streams",
    "load_board",
    "make_application",
    "problem_answer",
]
