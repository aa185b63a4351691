"""Check-ins with Tornado as its documentation shows it: RequestHandler, a pool of aiopg."""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

import aiopg
from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

from benchmarks.peers.python_parts import (
    BAD_NAME,
    PATH,
    UPSERT,
    announcing,
    email_of,
    server_context,
    setting,
)

POOL = 32


class CheckInHandler(RequestHandler):
    def initialize(self, pool: aiopg.Pool, announce: Any) -> None:
        self._pool = pool
        self._announce = announce

    async def post(self) -> None:
        # Once a connection: reading the certificate costs as much as the rest of this handler.
        stream = self.request.connection.stream  # type: ignore[union-attr]  # an HTTP1Connection
        try:
            email, address = stream.checked_in_as
        except AttributeError:
            email = email_of(self.request.get_ssl_certificate())
            address = stream.socket.getpeername()
            stream.checked_in_as = email, address
        if email is None:
            self.set_status(400)
            self.finish(BAD_NAME)
            return
        last_seen = datetime.datetime.now(datetime.UTC)
        async with self._pool.acquire() as connection, connection.cursor() as cursor:
            await cursor.execute(UPSERT, (email, last_seen, *address))
        self._announce(email, last_seen, *address)
        self.set_status(204)

    patch = put = post


async def main() -> None:
    pool = await aiopg.create_pool(
        host=setting("DATABASE_SOCKET"),
        user=setting("DATABASE_USER"),
        dbname=setting("DATABASE"),
        minsize=POOL,
        maxsize=POOL,
    )
    application = Application(
        [(PATH, CheckInHandler, {"pool": pool, "announce": announcing()})],
        log_function=lambda handler: None,
    )
    server = HTTPServer(application, ssl_options=server_context(), idle_connection_timeout=180)
    server.listen(int(setting("PORT")), "127.0.0.1", backlog=1024)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
