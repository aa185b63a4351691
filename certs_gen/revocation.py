"""Revocation: which certificate a serial number belongs to, and the CRL that follows the last one.

Owns the entries that go from one CRL to the next, and how CRLs are numbered. Reads the directory of
a set and writes nothing: see `key_files`. `authority` signs.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from certs_gen.authority import CRL_DAYS, MAX_DAYS, MAX_NUMBER_BITS, Authority, first_crl_number
from tornado_status.errors import ConfigError
from tornado_status.model.email_address import parse_email
from tornado_status.pki.certificates import UNREADABLE, issued_by, quietly

# Without those for the certificates of other CAs (cACompromise, aACompromise), and without those
# that can be reversed (certificateHold, removeFromCRL): a revocation here is final.
REASONS = {
    reason.value: reason
    for reason in (
        x509.ReasonFlags.unspecified,
        x509.ReasonFlags.key_compromise,
        x509.ReasonFlags.affiliation_changed,
        x509.ReasonFlags.superseded,
        x509.ReasonFlags.cessation_of_operation,
        x509.ReasonFlags.privilege_withdrawn,
    )
}

_SERIAL = re.compile(
    r"(?:serial=)?(?:0x)?(?P<digits>[0-9a-f]+|[0-9a-f]{2}(?::[0-9a-f]{2})+)",
    re.ASCII | re.IGNORECASE,
)
_CRL_BEGINS = b"-----BEGIN X509 CRL-----"
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate of the CA, and the file in which it lies. `emails` are canonical."""

    path: Path
    serial: int
    emails: frozenset[str]


def parse_serial(text: str) -> int:
    """Return a serial number from its hex digits, as the server, openssl or a browser shows them.

    They may have colons between pairs, and `0x` or `serial=` before them. Raises `ValueError` with
    a sentence.
    """
    match = _SERIAL.fullmatch(text)
    if match is None:
        raise ValueError(f"expected an e-mail address or a serial number in hex, got {text!r}")
    serial = int(match["digits"].replace(":", ""), 16)
    if not 1 <= serial.bit_length() <= MAX_NUMBER_BITS:
        raise ValueError(
            f"expected a serial number of at most 20 bytes (RFC 5280), and not 0, got {text!r}"
        )
    return serial


def issued_in(directory: Path, authority: Authority) -> tuple[list[Issued], list[Path]]:
    """Find the certificates of `authority` in every `*.crt` of the directory, but not its own.

    The second list is of the files that hold no certificate that can be read.
    """
    found: list[Issued] = []
    unread: list[Path] = []
    for path in sorted(directory.glob("*.crt")):
        try:
            found += [
                Issued(path, certificate.serial_number, _emails(certificate))
                for certificate in _certificates(path)
                if certificate != authority.certificate
                and issued_by(certificate, authority.certificate)
            ]
        except (OSError, *UNREADABLE):
            unread.append(path)
    return found, unread


def serials(
    wanted: Iterable[str | int], issued: Sequence[Issued], authority: Authority
) -> list[int]:
    """Return the serial numbers to revoke, each once, for canonical e-mails and serial numbers.

    Raises `ConfigError` for an e-mail that has no certificate, and for the CA itself.
    """
    found: dict[int, None] = {}
    for target in wanted:
        if isinstance(target, int):
            found[target] = None
            continue
        theirs = [certificate.serial for certificate in issued if target in certificate.emails]
        if not theirs:
            raise ConfigError(
                f"there is no certificate for {target} here that this CA issued: "
                "revoke it by its serial number"
            )
        found.update(dict.fromkeys(theirs))
    ca = authority.certificate
    # An intermediate CA's number is one of another CA's, and may be that of a leaf here.
    if ca.issuer == ca.subject and ca.serial_number in found:
        raise ConfigError(
            f"{ca.serial_number:x} is the CA itself, which no list of its own can revoke: "
            "make a new CA, and trust the old one no more"
        )
    return list(found)


def last_crl(path: Path, authority: Authority) -> x509.CertificateRevocationList | None:
    """Read the list that the next one is to follow. None when there is nothing at `path`.

    Raises `ConfigError` unless it is one complete list of this CA: any other file is not
    overwritten.
    """
    try:
        pem = path.read_bytes()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.is_symlink():
            return None
        raise ConfigError(f"{path}: cannot read it: {error.strerror}") from error
    lists = pem.count(_CRL_BEGINS)
    if lists != 1:
        raise ConfigError(f"{path}: expected one CRL in PEM, found {lists or 'none'}")
    try:
        crl = x509.load_pem_x509_crl(pem)
        critical = [extension for extension in crl.extensions if extension.critical]
        ours = crl.issuer == authority.certificate.subject
        for entry in crl:
            _ = entry.extensions  # is read only now, and must be written again
    except UNREADABLE as error:
        raise ConfigError(f"{path}: expected a CRL, and this one cannot be read") from error
    if not ours or not crl.is_signature_valid(authority.key.public_key()):
        raise ConfigError(
            f"{path}: not signed by this CA in its own name, so it is not overwritten: "
            "move it away to begin a new list"
        )
    if critical:
        # They say of which part or since when (RFC 5280, 5.2.4 and 5.2.5): not the whole list.
        raise ConfigError(
            f"{path}: expected a complete list, found the critical extension "
            f"{critical[0].oid.dotted_string}"
        )
    return crl


def next_crl(
    authority: Authority,
    last: x509.CertificateRevocationList | None,
    revoked: Iterable[int] = (),
    *,
    reason: x509.ReasonFlags = x509.ReasonFlags.unspecified,
    days: int | None = None,
    now: datetime.datetime | None = None,
) -> x509.CertificateRevocationList:
    """Sign the list that follows `last`: its entries as they are, then what else is `revoked`.

    The list is good for `days`, by default for `CRL_DAYS` and until the end of `last` at least.
    Raises `ConfigError` if it cannot be numbered or signed.
    """
    moment = now or datetime.datetime.now(datetime.UTC)
    entries = [] if last is None else list(last)
    listed = {entry.serial_number for entry in entries}
    entries += [_entry(serial, reason, moment) for serial in revoked if serial not in listed]
    return authority.crl(
        entries,
        next_number(last, moment),
        days=days or max(CRL_DAYS, _days_left(last, moment)),
        now=moment,
    )


def number_of(crl: x509.CertificateRevocationList) -> int:
    """Return the CRL number; 0 when it has none, as lists of version 1 have not."""
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def next_number(last: x509.CertificateRevocationList | None, now: datetime.datetime) -> int:
    """Return a number above that of `last`, and above those of lists that are lost.

    Numbers must never fall (RFC 5280, 5.2.3), even if the file was lost. A number is therefore the
    time, or one more than the last number if that is ahead of the clock.
    """
    number = first_crl_number(now)
    if last is not None:
        number = max(number, number_of(last) + 1)
    if number.bit_length() > MAX_NUMBER_BITS:
        raise ConfigError("the number of the last CRL is the highest there is: make a new CA")
    return number


def _certificates(path: Path) -> list[x509.Certificate]:
    if not path.is_file():  # a pipe would have no end
        raise ValueError("not a file")
    with quietly():
        return x509.load_pem_x509_certificates(path.read_bytes())


def _emails(certificate: x509.Certificate) -> frozenset[str]:
    found = set()
    for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        with contextlib.suppress(ValueError):  # a server's or an announcer's name is no e-mail
            found.add(parse_email(str(name.value)))
    return frozenset(found)


def _entry(
    serial: int, reason: x509.ReasonFlags, now: datetime.datetime
) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder().revocation_date(now)
    try:
        builder = builder.serial_number(serial)
    except ValueError as error:  # another tool issued it
        raise ConfigError(f"{serial:x}: a serial number that RFC 5280 does not allow") from error
    if reason is not x509.ReasonFlags.unspecified:  # said by saying nothing (RFC 5280, 5.3.1)
        builder = builder.add_extension(x509.CRLReason(reason), critical=False)
    return builder.build()


def _days_left(last: x509.CertificateRevocationList | None, now: datetime.datetime) -> int:
    if last is None or last.next_update_utc is None:
        return 0
    return min(math.ceil((last.next_update_utc - now) / _DAY), MAX_DAYS)
