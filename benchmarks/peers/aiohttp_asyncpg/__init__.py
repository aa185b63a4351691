"""aiohttp with asyncpg, on uvloop."""
