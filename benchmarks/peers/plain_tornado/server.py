"""Check-ins with Tornado's RequestHandler and a pool of aiopg connections."""

from __future__ import annotations

import asyncio
import datetime

import aiopg
from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

from benchmarks.peers.python_parts import (
    BAD_NAME,
    PATH,
    Announcer,
    email_of,
    server_context,
    setting,
)

POOL = 32
UPSERT = """
INSERT INTO user_status (email, last_seen, client_ip, client_port) VALUES (%s, %s, %s, %s)
ON CONFLICT (email) DO UPDATE SET last_seen = excluded.last_seen,
    client_ip = excluded.client_ip, client_port = excluded.client_port
"""


class Client(RequestHandler):
    def initialize(self, pool: aiopg.Pool, announcer: Announcer) -> None:
        self._pool = pool
        self._announcer = announcer

    async def post(self) -> None:
        # Once a connection: reading the certificate costs as much as the rest of this handler.
        stream = self.request.connection.stream  # type: ignore[union-attr]  # an HTTP1Connection
        try:
            email, address = stream.checked_in_as
        except AttributeError:
            email, address = (
                email_of(self.request.get_ssl_certificate()),
                stream.socket.getpeername(),
            )
            stream.checked_in_as = email, address
        if email is None:
            self.set_status(400)
            self.finish(BAD_NAME)
            return
        last_seen = datetime.datetime.now(datetime.UTC)
        async with self._pool.acquire() as connection, connection.cursor() as cursor:
            await cursor.execute(UPSERT, (email, last_seen, *address))
        self._announcer.announce(email, last_seen, *address)
        self.set_status(204)

    patch = put = post


async def main() -> None:
    announcer = Announcer()
    pool = await aiopg.create_pool(
        host=setting("DATABASE_SOCKET"),
        user=setting("DATABASE_USER"),
        dbname=setting("DATABASE"),
        minsize=POOL,
        maxsize=POOL,
    )
    application = Application(
        [(PATH, Client, {"pool": pool, "announcer": announcer})],
        log_function=lambda handler: None,
    )
    server = HTTPServer(application, ssl_options=server_context(), idle_connection_timeout=180)
    server.listen(int(setting("PORT")), "127.0.0.1", backlog=1024)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
