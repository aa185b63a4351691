"""How long certificates and revocation lists are good, and warnings before they end. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cryptography import x509

DAY_S = 86400.0
# Before a certificate's end: time to find out who renews it. A short-lived one is renewed by a
# program, and there is reason to worry only when little of its life is left.
WARN_CERTIFICATE_S = 14 * DAY_S
WARN_SHARE = 0.2
WARN_LIST_S = 3 * DAY_S  # a long weekend


@dataclass(frozen=True, slots=True)
class Validity:
    """How long one certificate or revocation list is good.

    `setting` is the key that names its `file`; `subject` whose certificate, or which CA's list, it
    is. Times are seconds since the epoch; `not_after` is infinite where a list names no next one.
    """

    kind: Literal["certificate", "list"]
    setting: str
    file: str
    subject: str
    not_before: float
    not_after: float

    def days_left(self, now: float) -> float:
        """Return the days from `now` to the end, negative behind it."""
        return (self.not_after - now) / DAY_S

    def in_force(self, now: float) -> bool:
        """Say whether it is good at `now`."""
        return self.not_before <= now <= self.not_after

    def warning(self, now: float) -> str | None:
        """Return what an operator should know, or None where there is time enough."""
        days = self.days_left(now)
        if self.kind == "list":
            which = f"{self.setting}: the list of {self.subject} is out of date"
            if days < 0:
                return f"{which} for {-days:.1f} days"
            if days < WARN_LIST_S / DAY_S:
                return f"{which} in {days:.1f} days"
            return None
        whose = f"{self.setting}: {self.file} ({self.subject})"
        if days < 0:
            return f"{whose} has expired {-days:.1f} days ago"
        if now < self.not_before:
            return f"{whose} is not valid yet: is this machine's clock right?"
        if self.not_after - now < min(
            WARN_CERTIFICATE_S, WARN_SHARE * (self.not_after - self.not_before)
        ):
            return f"{whose} expires in {days:.1f} days"
        return None


def certificate_terms(
    setting: str, file: str, certificates: Sequence[x509.Certificate]
) -> list[Validity]:
    """Return the terms of certificates that were read from `file`."""
    return [
        Validity(
            "certificate",
            setting,
            file,
            name,
            certificate.not_valid_before_utc.timestamp(),
            certificate.not_valid_after_utc.timestamp(),
        )
        for certificate, name in zip(certificates, distinct_names(certificates), strict=True)
    ]


def distinct_names(certificates: Sequence[x509.Certificate]) -> list[str]:
    """Return each certificate's name, with its serial number where another one has it too.

    So it is for a CA that is being renewed. Warnings and metrics must not take the two for one.
    """
    names = [name_of(certificate.subject) for certificate in certificates]
    return [
        name if names.count(name) == 1 else f"{name}, serial {certificate.serial_number:x}"
        for certificate, name in zip(certificates, names, strict=True)
    ]


def name_of(subject: x509.Name) -> str:
    """Return a name's common name, or all of it where it has none."""
    names = subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else subject.rfc4514_string()
