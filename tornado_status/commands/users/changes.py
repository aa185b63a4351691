"""Enrolling, removing and erasing users from the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tornado_status.config.settings import Settings
from tornado_status.errors import ConfigError
from tornado_status.model.email_address import parse_email
from tornado_status.store.enrolment import OfflineEnrolment
from tornado_status.store.log_id import connected

MAX_SHOWN = 1000  # characters of a wrong line of standard input: an e-mail address has up to 254

Say = Callable[[str], None]


def emails(words: Sequence[str], lines: Iterable[str]) -> list[str]:
    """Return the canonical form of each e-mail address, once.

    A `-` in `words` stands for the addresses in `lines`. Raises `ConfigError` at the first that is
    no address.
    """
    found: dict[str, None] = {}
    for word in words:
        for text in (line.strip() for line in lines) if word == "-" else (word,):
            if not text:
                continue
            try:
                found[parse_email(text)] = None
            except ValueError as error:
                shown = ascii(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}...")
                raise ConfigError(f"{shown}: {' '.join(str(error).split())}") from error
    return list(found)


async def add(settings: Settings, users: Sequence[str], say: Say) -> int:
    """Enrol users; return how many existed already. Raises `StatusError`."""
    async with connected(settings.database, writable=True) as connection:
        enrolment = OfflineEnrolment(connection)
        await enrolment.prepare()
        enrolled = await enrolment.enrol(users)
    for email in users:
        say(f"{email}: {'enrolled' if email in enrolled else 'already there'}")
    return len(users) - len(enrolled)


async def remove(settings: Settings, users: Sequence[str], say: Say) -> int:
    """Remove users with their records; return how many are unknown. Raises `StatusError`."""
    async with connected(settings.database, writable=True) as connection:
        enrolment = OfflineEnrolment(connection)
        await enrolment.prepare()
        removed = await enrolment.remove(users)
    for email in users:
        say(f"{email}: {'removed' if email in removed else 'unknown'}")
    return len(users) - len(removed)


async def erase(settings: Settings, users: Sequence[str], say: Say) -> int:
    """Remove users, and blank them in the log; return how many are unknown.

    `removed` is announced with the e-mail address, so that listeners know which user to forget.
    Only then is that event blanked, too. Raises `StatusError`.
    """
    unknown = 0
    async with connected(settings.database, writable=True) as connection:
        enrolment = OfflineEnrolment(connection)
        await enrolment.prepare()
        removed = await enrolment.remove(users)
        announced = bool(removed) and await enrolment.announced()
        for email in users:
            entries = await enrolment.erase(email)
            if not entries:
                unknown += 1
                say(f"{email}: unknown")
                continue
            note = ""
            if email in removed and not announced:
                note = "; not announced by name: no server took it in time"
            say(f"{email}: erased in {entries} entries of the log{note}")
    return unknown
