"""/api/client: check in, or read one's own record."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tornado_status.api.handler import Handler
from tornado_status.api.problem import Problem
from tornado_status.api.users import record_json
from tornado_status.errors import TooFrequent
from tornado_status.model.check_in_rate_limit import REFUSAL_DELAY_S

if TYPE_CHECKING:
    from tornado_status.api.dependencies import ApiStore
    from tornado_status.model.check_in_rate_limit import CheckInRateLimit

CHECK_IN_METHODS = ("POST", "PUT", "PATCH")


class ClientHandler(Handler):
    """`PATCH`, `POST`, `PUT`: 204 after the commit. `GET`: the client's own record."""

    store: ApiStore
    rate_limit: CheckInRateLimit | None

    async def post(self) -> None:
        if self.rate_limit is not None:
            try:
                self.rate_limit.allow(self.check_in.email, time.monotonic())
            except TooFrequent:
                await asyncio.sleep(REFUSAL_DELAY_S)
                raise
        check_in = self.check_in
        if self.span is not None:
            check_in = self.span.mark(check_in)
        await self.store.record(check_in)
        self.set_status(204)

    patch = post
    put = post

    async def get(self) -> None:
        async with self.turn():
            record = await self.store.user(self.check_in.email)
        if record is None:
            raise Problem(404, "No check-in is recorded yet")
        self.write_json(record_json(record))
