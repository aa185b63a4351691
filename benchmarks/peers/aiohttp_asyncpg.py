"""Check-ins with aiohttp and asyncpg, on uvloop."""

from __future__ import annotations

import asyncio
import datetime

import asyncpg
import uvloop
from aiohttp import web

from benchmarks.peers.python_parts import (
    BAD_NAME,
    METHODS,
    PATH,
    UPSERT,
    announcing,
    email_of,
    server_context,
    setting,
)

POOL = 16


async def main() -> None:
    announce = announcing()
    pool = await asyncpg.create_pool(
        host=setting("DATABASE_SOCKET"),
        user=setting("DATABASE_USER"),
        database=setting("DATABASE"),
        min_size=POOL,
        max_size=POOL,
    )
    upsert = UPSERT % ("$1", "$2", "$3", "$4")

    async def check_in(request: web.Request) -> web.Response:
        transport = request.transport
        if transport is None:
            raise web.HTTPBadRequest
        email = email_of(transport.get_extra_info("peercert"))  # read once, at the handshake
        if email is None:
            return web.Response(status=400, body=BAD_NAME)
        client_ip, client_port = transport.get_extra_info("peername")
        last_seen = datetime.datetime.now(datetime.UTC)
        await pool.execute(upsert, email, last_seen, client_ip, client_port)
        announce(email, last_seen, client_ip, client_port)
        return web.Response(status=204)

    application = web.Application()
    for method in METHODS:
        application.router.add_route(method, PATH, check_in)
    runner = web.AppRunner(application, access_log=None, keepalive_timeout=180)
    await runner.setup()
    site = web.TCPSite(
        runner, "127.0.0.1", int(setting("PORT")), ssl_context=server_context(), backlog=1024
    )
    await site.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
