"""The other adapters as the handlers see them: api may not import them, see server.py."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import Protocol

from tornado.httputil import HTTPServerRequest

from tornado_status.model.records import (
    CheckIn,
    Event,
    EventPage,
    GroupKey,
    HistoryEnd,
    HistoryEntry,
    HistoryPage,
    Lineage,
    LogSlice,
    LogSpan,
    Peer,
    StatusRecord,
    UserPage,
)
from tornado_status.pki.trust_anchors import Anchors


class TrustInForce(Protocol):
    """`ingress.trust.Trust`."""

    anchors: Anchors


class Authenticator(Protocol):
    """Ingress: by connection if TLS ends here, by request if it ends at a proxy in front."""

    @property
    def trust(self) -> TrustInForce: ...

    def peer_of(self, request: HTTPServerRequest) -> Peer: ...

    def is_last(self, request: HTTPServerRequest) -> bool: ...

    def begin(self, request: HTTPServerRequest) -> bool: ...

    def end(self, request: HTTPServerRequest) -> None: ...

    def watch(self, request: HTTPServerRequest) -> Callable[[], str | None]: ...


class ApiStore(Protocol):
    """`store.Store`. Each method raises `StoreUnavailable`."""

    async def record(self, check_in: CheckIn) -> Event: ...

    async def enrol(self, email: str) -> bool: ...

    async def remove(self, email: str) -> bool: ...

    async def user(self, email: str) -> StatusRecord | None: ...

    async def users(self, after: str, limit: int, last: str | None = None) -> UserPage: ...

    async def last_user(self, after: str, limit: int) -> str | None: ...

    async def history(self, email: str, before: int | None, limit: int) -> HistoryPage: ...

    async def history_end(self, email: str, before: int, limit: int) -> HistoryEnd: ...

    async def log(self, after: int | None, limit: int) -> tuple[int, list[HistoryEntry]]: ...

    async def events(self, after: int, limit: int) -> EventPage: ...

    async def log_span(self) -> LogSpan: ...

    async def group_keys(self) -> list[GroupKey]: ...

    async def announcers(self) -> tuple[uuid.UUID, list[str]]: ...


class EventFeed(Protocol):
    """`store.follow.feed.Feed`: the newest events, and the log behind them."""

    log_id: uuid.UUID
    lineage: Lineage
    head: int
    advanced: asyncio.Event

    async def open(self) -> None: ...

    def close(self) -> None: ...

    def after(self, position: int, limit: int) -> list[Event] | None: ...

    async def read(self, position: int, emails: Sequence[str] | None, reader: str) -> LogSlice: ...

    async def span(self) -> LogSpan: ...
