"""The set-up of logging, with a rate limit for the lines that a peer can cause.

A line is an event with fields. Untrusted text is escaped. Tracebacks show no variables: they may be
keys or passwords.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Any, TextIO

import structlog

from tornado_status.config.settings import LoggingSettings
from tornado_status.runtime.rate_limit import RateLimit

# Loggers of libraries whose lines a peer can cause.
CAUSED_BY_PEERS = ("tornado.access", "tornado.application", "tornado.general", "asyncio")

# It has many loggers below it, and a filter of a logger does not see their lines: the handler does.
OF_TRACING = "opentelemetry"


def configure(settings: LoggingSettings) -> None:
    """Log to standard error, for us and for the libraries."""
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    before: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _escape,
    ]
    after: list[Any]
    if settings.format == "json":
        transform = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        after = [
            structlog.processors.ExceptionRenderer(transform),
            structlog.processors.JSONRenderer(),
        ]
    else:
        after = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr is not None and sys.stderr.isatty(),
                exception_formatter=_write_traceback,
            )
        ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(["suppressed"]),
            *before,
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *after],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    handler.addFilter(_Limit(OF_TRACING))
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for noisy in ("alembic", "sqlalchemy", "asyncio", "urllib3"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))
    for name in CAUSED_BY_PEERS:
        logger = logging.getLogger(name)
        for limit in [each for each in logger.filters if isinstance(each, _Limit)]:
            logger.removeFilter(limit)
        logger.addFilter(_Limit())
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _escape(logger: object, method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Escape control characters: a peer's text must not forge lines or control a terminal."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = _visible(value)
    return event


def _visible(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _write_traceback(out: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    # Indented, because the text of an error may have several lines, and each line at the margin is
    # an event. Structlog would use rich if it is installed, which shows variables.
    for line in "".join(traceback.format_exception(*exc_info)).rstrip("\n").split("\n"):
        out.write(f"\n  {_visible(line)}")


class _Limit(logging.Filter):
    """Passes one line of each kind a minute, with the number of those suppressed.

    With a `name` it limits that logger and those below it; other lines pass.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self._limit = RateLimit()

    def filter(self, record: logging.LogRecord) -> bool:
        if not super().filter(record):
            return True
        # Of the text before formatting: the arguments tell the peer and the time.
        suppressed = self._limit.allow((record.levelno, record.msg))
        if suppressed is None:
            return False
        record.suppressed = suppressed
        return True
