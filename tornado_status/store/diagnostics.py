"""Questions to a database about itself, for the doctor. Changes nothing."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from tornado_status.errors import ConfigError, StoreUnavailable
from tornado_status.store import migrate
from tornado_status.store.database import Connection, StatementFailed, parse_url
from tornado_status.store.embedded.binaries import find_binaries
from tornado_status.store.embedded.postgres import EmbeddedPostgres
from tornado_status.store.failover import Parameters, shown, split
from tornado_status.store.log_id import database_identity
from tornado_status.store.remote_database import sslmode

_QUESTIONS = """\
SELECT current_setting('server_version'), current_setting('server_version_num')::int,
       current_setting('fsync'), current_setting('full_page_writes'),
       current_setting('synchronous_commit'), pg_is_in_recovery(),
       coalesce(has_schema_privilege(current_schema(), 'CREATE'), false), clock_timestamp()
"""


_AHEAD = "SELECT extract(epoch FROM at - clock_timestamp())::float8 FROM head"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The state of a database.

    `clock` is the database's, in UTC, at `asked` of ours, give or take `clock_error_s`. `revision`
    is None before the first migration. `newer`: a newer version has migrated it, and this one can
    serve it all the same. `refusal` is why this version cannot, or "". `log_ahead_s` is how far the
    log's newest time is ahead of the database's clock; negative, or 0, in a log that is in order.
    """

    version: str
    version_number: int
    fsync: bool
    full_page_writes: bool
    synchronous_commit: bool
    standby: bool
    may_create: bool
    clock: datetime.datetime
    asked: datetime.datetime
    clock_error_s: float
    revision: str | None
    newest_revision: str
    warnings: tuple[str, ...] = ()
    newer: bool = False
    refusal: str = ""
    log_ahead_s: float = 0.0


async def diagnose(parameters: Parameters, timeout_s: float) -> Diagnosis:
    """Ask a database. Raises `StoreUnavailable` if it does not answer."""
    connection = await Connection.open(parameters, timeout_s, writable=False)
    try:
        before = datetime.datetime.now(datetime.UTC)
        row = await connection.fetch_one(_QUESTIONS, timeout_s=timeout_s)
        after = datetime.datetime.now(datetime.UTC)
        revision = await migrate.current(connection)
        newer, refusal = False, ""
        try:
            newer = migrate.check(revision)
        except ConfigError as error:
            refusal = str(error)
        ours = revision is not None and not refusal
        (ahead_s,) = await connection.fetch_one(_AHEAD) if ours else (0.0,)
        # A standby writes no WAL, and takes no check-ins.
        warnings = () if row[5] else tuple((await database_identity(connection)).warnings())
    except StatementFailed as error:
        raise StoreUnavailable(f"the database refuses: {error}") from error
    finally:
        await connection.close()
    version, number, fsync, pages, synchronous, standby, may_create, clock = row
    return Diagnosis(
        version=version,
        version_number=number,
        fsync=fsync == "on",
        full_page_writes=pages == "on",
        synchronous_commit=synchronous != "off",
        standby=standby,
        may_create=may_create,
        clock=clock.astimezone(datetime.UTC),
        asked=before + (after - before) / 2,
        clock_error_s=(after - before).total_seconds() / 2,
        revision=revision,
        newest_revision=migrate.REVISION,
        warnings=warnings,
        newer=newer,
        refusal=refusal,
        log_ahead_s=ahead_s,
    )


def external(url: str) -> Parameters:
    """Return the connection parameters of a URL. Raises `ConfigError`."""
    return parse_url(url)


def remote_hosts(parameters: Parameters) -> list[tuple[str, str]]:
    """Return place and `sslmode` of each host that is not local. Raises `ConfigError`."""
    hosts = [(shown(host), sslmode(host)) for host in split(parameters)]
    return [(place, mode) for place, mode in hosts if mode is not None]


def embedded(data_dir: Path) -> Parameters | None:
    """Return the parameters of a running embedded PostgreSQL, None if it does not run.

    Raises `ConfigError` if there are no binaries.
    """
    find_binaries()
    return EmbeddedPostgres(data_dir).running()
