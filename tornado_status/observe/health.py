"""Whether the server can serve, and what to see to before it cannot: verdicts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tornado_status.pki.expiry import Validity

NO_CRL = "tls.crl: no CRL, revoked certificates are accepted; status-certs crl makes one"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    `problems` are why nothing can be recorded now, `warnings` what should be seen to before that.
    Each has a kind, which stays the same while its sentence changes.
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
    """`problem` is why check-ins cannot be recorded now, or ""."""
    problems = {"database": problem} if problem else {}
    return Check("database", problems, {warning: warning for warning in warnings})


def certificates(
    name: str, terms: Sequence[Validity], now: float, needed: Sequence[Validity] = ()
) -> Check:
    """Look at `terms`; once none of those `needed` is in force, nobody can be served."""
    warnings = _warnings(terms, now)
    problems: dict[str, str] = {}
    if needed and not any(term.in_force(now) for term in needed):
        problems = _warnings(needed, now)
        warnings = {kind: text for kind, text in warnings.items() if kind not in problems}
    return Check(name, problems, warnings)


def lists(terms: Sequence[Validity], cas: int, now: float, *, refuse: bool) -> Check:
    """Look at revocation lists of `cas` CAs. With `refuse`, a late one locks out all of its CA."""
    if not terms:
        return Check("crl", {}, {"none": NO_CRL})
    warnings = _warnings(terms, now)
    late = sum(term.not_after < now for term in terms)
    if refuse and late == len(terms) >= cas:
        return Check("crl", warnings, {})
    return Check("crl", {}, warnings)


def files(problem: str) -> Check:
    """`problem` is why what is in the files now was not put in force, or ""."""
    said = f"what is in the files is not in force, the last reload failed: {problem}"
    return Check("files", {}, {"reload": said} if problem else {})


def announcements(failing: Mapping[str, str]) -> Check:
    """`failing` says of targets why they could not be sent to; check-ins are recorded anyway."""
    return Check(
        "announce", {}, {target: f"{target}: {reason}" for target, reason in failing.items()}
    )


def _warnings(terms: Iterable[Validity], now: float) -> dict[str, str]:
    found = {}
    for term in terms:
        text = term.warning(now)
        if text is not None:
            over = "over" if not term.in_force(now) else "soon"
            found[f"{term.setting} {term.subject} {over}"] = text
    return found
