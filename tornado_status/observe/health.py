"""Checks: what keeps the server from recording check-ins, and what soon will. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tornado_status.pki.expiry import Validity

NO_CRL = "tls.crl: no CRL, revoked certificates are accepted; status-certs crl makes one"


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    `problems` are why no check-in can be recorded now, `warnings` what to fix before that. Both
    are sentences by kind: a kind stays the same while its sentence changes.
    """

    name: str
    problems: dict[str, str]
    warnings: dict[str, str]

    @property
    def status(self) -> str:
        return "problem" if self.problems else "warning" if self.warnings else "ok"

    @property
    def reasons(self) -> list[str]:
        return [*self.problems.values(), *self.warnings.values()]


def database(problem: str, warnings: Sequence[str] = ()) -> Check:
    """Check the database. `problem` is why check-ins cannot be recorded now, or ""."""
    problems = {"database": problem} if problem else {}
    return Check("database", problems, {warning: warning for warning in warnings})


def presence(warnings: Mapping[str, str]) -> Check:
    """Check the presence sweep and the log's times. `warnings` are by kind."""
    return Check("presence", {}, dict(warnings))


def certificates(
    name: str, validities: Sequence[Validity], now: float, needed: Sequence[Validity] = ()
) -> Check:
    """Check certificates. If none of those `needed` is in force, no client can be served."""
    warnings = _warnings(validities, now)
    problems: dict[str, str] = {}
    if needed and not any(each.in_force(now) for each in needed):
        problems = _warnings(needed, now)
        warnings = {kind: text for kind, text in warnings.items() if kind not in problems}
    return Check(name, problems, warnings)


def crls(validities: Sequence[Validity], cas: int, now: float, *, refuse: bool) -> Check:
    """Check the CRLs of `cas` CAs. With `refuse`, an expired one locks out its CA's clients."""
    if not validities:
        return Check("crl", {}, {"none": NO_CRL})
    warnings = _warnings(validities, now)
    expired = sum(each.not_after < now for each in validities)
    if refuse and expired == len(validities) >= cas:
        return Check("crl", warnings, {})
    return Check("crl", {}, warnings)


def files(problem: str) -> Check:
    """Check the last reload. `problem` is why it failed, or ""."""
    warning = f"the last reload failed, the previous files are in force: {problem}"
    return Check("files", {}, {"reload": warning} if problem else {})


def announcements(failing: Mapping[str, str]) -> Check:
    """Check the targets. `failing` is why, by target; check-ins are recorded all the same."""
    return Check(
        "announce", {}, {target: f"{target}: {reason}" for target, reason in failing.items()}
    )


def _warnings(validities: Iterable[Validity], now: float) -> dict[str, str]:
    found = {}
    for each in validities:
        text = each.warning(now)
        if text is not None:
            when = "soon" if each.in_force(now) else "now"
            found[f"{each.setting} {each.subject} {when}"] = text
    return found
