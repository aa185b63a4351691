"""The validity of certificates and CRLs, and warnings before it ends. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cryptography import x509

DAY_S = 86400.0
# Before a certificate expires: time to find out how it is renewed. A program renews a short-lived
# one, so the warning comes only when little of its life is left.
WARN_CERTIFICATE_S = 14 * DAY_S
WARN_SHARE = 0.2
WARN_CRL_S = 3 * DAY_S  # a long weekend


@dataclass(frozen=True, slots=True)
class Validity:
    """The validity of one certificate or CRL.

    `setting` is the key that names its `file`; `subject` is the holder of the certificate or the CA
    of the CRL. Times are seconds since the epoch; `not_after` is infinite for a CRL without a next
    update.
    """

    kind: Literal["certificate", "crl"]
    setting: str
    file: str
    subject: str
    not_before: float
    not_after: float

    def days_left(self, now: float) -> float:
        """Return the days from `now` to the end, negative after it."""
        return (self.not_after - now) / DAY_S

    def in_force(self, now: float) -> bool:
        """Return whether it is valid at `now`."""
        return self.not_before <= now <= self.not_after

    def warning(self, now: float) -> str | None:
        """Return a warning for the operator, or None if there is time enough."""
        days = self.days_left(now)
        if self.kind == "crl":
            which = f"{self.setting}: the CRL of {self.subject}"
            if days < 0:
                return f"{which} expired {_duration(-days)} ago"
            if days < WARN_CRL_S / DAY_S:
                return f"{which} expires in {_duration(days)}"
            return None
        whose = f"{self.setting}: {self.file} ({self.subject})"
        if days < 0:
            return f"{whose} expired {_duration(-days)} ago"
        if now < self.not_before:
            return f"{whose} is not valid yet: is this machine's clock right?"
        if self.not_after - now < min(
            WARN_CERTIFICATE_S, WARN_SHARE * (self.not_after - self.not_before)
        ):
            return f"{whose} expires in {_duration(days)}"
        return None


def certificate_validities(
    setting: str, file: str, certificates: Sequence[x509.Certificate]
) -> list[Validity]:
    """Return the validities of certificates that were read from `file`."""
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
    """Return each certificate's name, with its serial number if another one has the same name.

    Two certificates have one name while a CA is being renewed. Warnings and metrics must not
    confuse them.
    """
    names = [name_of(certificate.subject) for certificate in certificates]
    return [
        name if names.count(name) == 1 else f"{name}, serial {certificate.serial_number:x}"
        for certificate, name in zip(certificates, names, strict=True)
    ]


def name_of(subject: x509.Name) -> str:
    """Return a name's common name, or all of it if it has none."""
    names = subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else subject.rfc4514_string()


def _duration(days: float) -> str:
    if days >= 1.95:
        return f"{days:.0f} days"
    hours = days * 24
    return f"{hours:.0f} hours" if hours >= 1.95 else f"{hours * 60:.0f} minutes"
