"""The doctor's checks of the database: reachable, durable, with the clock of this machine."""

from __future__ import annotations

from collections.abc import Iterator

from tornado_status.commands.doctor.finding import Finding, note, ok, problem
from tornado_status.config.settings import EMBEDDED, Settings
from tornado_status.errors import ConfigError, StoreError
from tornado_status.store import diagnostics as ask
from tornado_status.store.diagnostics import Diagnosis
from tornado_status.store.failover import Parameters
from tornado_status.store.remote_database import VERIFIED

TOPIC = "database"
CLOCK = "clock"
OLDEST = 150000  # PostgreSQL 15
NOTED_S = 1.0  # a difference that confuses a reader of the logs
REFUSED_S = 30.0  # half of the difference at which listeners refuse datagrams


async def examine(settings: Settings) -> list[Finding]:
    """Ask the database of the settings; an embedded one only if it runs."""
    try:
        if settings.database.url == EMBEDDED:
            parameters = ask.embedded(settings.database.data_dir)
            if parameters is None:
                return [ok(TOPIC, "database.url: embedded, which runs while the server does")]
        else:
            parameters = ask.external(settings.database.url)
        found = await ask.diagnose(parameters, settings.database.connect_timeout_s)
    except ConfigError as error:
        return [problem(TOPIC, str(error), "The server does not start with it.")]
    except StoreError as error:
        return [problem(TOPIC, f"the database cannot be reached: {error}", _advice(str(error)))]
    return [
        *_identity(parameters),
        *_state(found),
        *_durability(found, settings.database.durability),
        *_clock(found),
    ]


def _advice(reason: str) -> str:
    if any(word in reason for word in ("certificate", "SSL", "authentication method requirement")):
        return (
            "A database on another machine must show a certificate of a CA that sslrootcert in "
            "database.url names, and ask for the password by SCRAM: docs/deploy.md has the steps, "
            "and the exceptions."
        )
    return (
        "Does it run, does database.url name it, and may this machine connect to it "
        "(listen_addresses, pg_hba.conf, a firewall)?"
    )


def _identity(parameters: Parameters) -> Iterator[Finding]:
    for place, mode in ask.remote_hosts(parameters):
        if mode == VERIFIED:
            yield ok(TOPIC, f"the certificate of {place} is verified")
        else:
            yield note(
                TOPIC,
                f"sslmode={mode}: the certificate of {place} is not verified",
                "A machine between the two can pose as the database. Give it a certificate and "
                "remove sslmode: docs/deploy.md has the steps.",
            )


def _state(found: Diagnosis) -> Iterator[Finding]:
    if found.version_number < OLDEST:
        yield problem(
            TOPIC,
            f"PostgreSQL {found.version} is too old",
            "Use one of the versions 15 to 18.",
        )
    else:
        yield ok(TOPIC, f"PostgreSQL {found.version} answers")
    if found.standby:
        yield problem(
            TOPIC,
            "the database is a standby: it takes no check-ins",
            "Name the primary in database.url, or all hosts: the server finds the one that writes.",
        )
    for warning in found.warnings:
        yield note(
            TOPIC, warning, "Grant it, if you can; docs/backup.md explains the consequences."
        )
    if found.revision == found.newest_revision:
        yield ok(TOPIC, f"its tables are those of this version ({found.revision})")
    elif found.refusal:
        yield problem(TOPIC, found.refusal, "A server of this version does not start with it.")
    elif found.newer:
        yield note(
            TOPIC,
            f"its tables are of revision {found.revision}, newer than this program's "
            f"{found.newest_revision}, and compatible",
            "A newer version has migrated it: this server goes on; upgrade it, too.",
        )
    else:
        sentence = f"its tables are of revision {found.revision or 'none'}"
        if found.revision is None and not found.may_create:
            yield problem(
                TOPIC,
                f"{sentence}, and the user of database.url may not make any",
                "Run `GRANT CREATE ON SCHEMA public TO USER` in it, or make that user its owner.",
            )
        else:
            yield note(
                TOPIC,
                sentence,
                f"The server brings them to {found.newest_revision} at its next start.",
            )


def _durability(found: Diagnosis, wanted: str) -> Iterator[Finding]:
    for setting, is_on in (
        ("fsync", found.fsync),
        ("full_page_writes", found.full_page_writes),
        ("synchronous_commit", found.synchronous_commit),
    ):
        if is_on:
            continue
        sentence = (
            f"{setting} is off: a crash may lose acknowledged check-ins or damage the database"
        )
        advice = f"Run `ALTER SYSTEM SET {setting} = on` and `SELECT pg_reload_conf()` in it."
        if setting == "synchronous_commit":
            advice += " A role's own setting ends with `ALTER ROLE USER RESET synchronous_commit`."
        if wanted == "warn":
            yield note(TOPIC, f"{sentence}; database.durability: warn allows it", advice)
        else:
            yield problem(TOPIC, sentence, f"{advice} The server refuses the database as it is.")
    if found.fsync and found.full_page_writes and found.synchronous_commit:
        yield ok(TOPIC, "acknowledged check-ins survive a crash")


def _clock(found: Diagnosis) -> Iterator[Finding]:
    off = (found.clock - found.asked).total_seconds()
    sentence = (
        f"the database's clock is {abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} ours"
    )
    distance = max(0.0, abs(off) - found.clock_error_s)
    advice = "Let a time service (chrony, systemd-timesyncd) set the clock of both machines."
    if distance >= REFUSED_S:
        yield problem(CLOCK, sentence, advice)
    elif distance >= NOTED_S:
        yield note(CLOCK, sentence, advice)
    else:
        yield ok(CLOCK, "the database's clock is ours")
    if found.log_ahead_s >= NOTED_S:
        yield problem(
            CLOCK,
            f"the log is {found.log_ahead_s:.1f} s ahead of the database's clock: new events all "
            "get the log's time until the clock reaches it",
            "If the clock is right, and that is too long to wait, run `tornado-status log new`; "
            "docs/presence.md explains the consequences.",
        )
