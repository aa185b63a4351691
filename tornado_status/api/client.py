"""/api/client: check in, or read one's own record."""

from __future__ import annotations

import time
from typing import Protocol

from tornado_status.api.problem import Handler, Problem
from tornado_status.api.users import record_json
from tornado_status.model.records import CheckIn, Event, StatusRecord

CHECK_IN_METHODS = ("POST", "PUT", "PATCH")


class Recorder(Protocol):
    """The part of the store that this handler needs."""

    async def record(self, check_in: CheckIn) -> Event: ...

    async def user(self, email: str) -> StatusRecord | None: ...


class Limit(Protocol):
    """How often one identity may check in: `limits.CheckInRateLimit`."""

    def allow(self, email: str, now: float) -> None: ...


class ClientHandler(Handler):
    """`PATCH`, `POST`, `PUT`: 204 after the commit. `GET`: the caller's own record."""

    store: Recorder
    limit: Limit | None

    async def post(self) -> None:
        if self.limit is not None:
            self.limit.allow(self.check_in.email, time.monotonic())
        check_in = self.check_in
        if self.span is not None:
            check_in = self.span.mark(check_in)
        await self.store.record(check_in)
        self.set_status(204)

    patch = post
    put = post

    async def get(self) -> None:
        record = await self.store.user(self.check_in.email)
        if record is None:
            raise Problem(404, "No check-in is recorded yet")
        self.write_json(record_json(record))
