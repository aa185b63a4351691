"""A database whose clock a test sets, while a server uses it."""

from __future__ import annotations

from tests.support.harness import rows

_INSTALL = """\
CREATE TABLE clock_offset (by_s float8);
INSERT INTO clock_offset VALUES (0);
CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$
    SELECT pg_catalog.clock_timestamp() + by_s * interval '1 second' FROM public.clock_offset
$$;
CREATE FUNCTION now() RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT pg_catalog.now() + by_s * interval '1 second' FROM public.clock_offset
$$;
DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database());
END $$;
"""


class MovableClock:
    """Make it before the store connects: its statements then find these functions first."""

    def __init__(self, url: str) -> None:
        self._url = url
        rows(url, _INSTALL)

    def set(self, by_s: float) -> None:
        """Set the clock of the database ahead of the real one, or behind it."""
        rows(self._url, "UPDATE clock_offset SET by_s = %s", by_s)
