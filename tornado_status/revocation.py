"""Certificate revocation lists: which certificates their CA has taken back. Pure.

Judged here and not by OpenSSL: its CRL flags fail every handshake once a list is late or missing.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from tornado_status.errors import RevocationListError

CLOCK_SKEW_S = 300.0  # a list may be this much younger than our clock believes possible

_UNDERSTOOD = {x509.CRLNumber.oid, x509.AuthorityKeyIdentifier.oid}


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A CA's list, its signature verified.

    `issuer` is the CA's name in DER, `serials` are the serial numbers it has taken back. Times are
    seconds since the epoch; `next_update` is infinite where the CA promises none.
    """

    issuer: bytes
    number: int
    this_update: float
    next_update: float
    serials: frozenset[int]


def read_lists(
    pem: bytes, cas: Sequence[x509.Certificate], now: float
) -> tuple[RevocationList, ...]:
    """Read the lists in PEM, each issued by one of `cas`. An old one is read like any other.

    Raises `RevocationListError` in a sentence: no list, another CA's, forged, from the future, or
    with a critical extension that nobody here understands (delta and partial lists).
    """
    found: dict[bytes, RevocationList] = {}
    for block in _blocks(pem):
        try:
            crl = x509.load_pem_x509_crl(block)
            newer = _judge(crl, cas, now)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise RevocationListError("not a certificate revocation list in PEM") from error
        older = found.get(newer.issuer)
        if older is None or newer.number > older.number:
            found[newer.issuer] = newer
    if not found:
        raise RevocationListError("no certificate revocation list in PEM")
    return tuple(found.values())


def replace_lists(
    old: Iterable[RevocationList], new: Iterable[RevocationList]
) -> dict[bytes, RevocationList]:
    """Return the new lists by issuer. Raises `RevocationListError` where a number went back.

    An attacker who can write the file, or a restored backup, must not bring back who was revoked.
    """
    before = {known.issuer: known for known in old}
    after = {newer.issuer: newer for newer in new}
    for issuer, known in before.items():
        newer = after.get(issuer)
        if newer is not None and newer.number < known.number:
            raise RevocationListError(
                f"number {newer.number} is older than {known.number}, which is in force"
            )
    return after


def _judge(
    crl: x509.CertificateRevocationList, cas: Sequence[x509.Certificate], now: float
) -> RevocationList:
    issuers = [ca for ca in cas if ca.subject == crl.issuer]
    if not issuers:
        raise RevocationListError("issued by none of the client CAs")
    if not any(_signed_by(crl, ca) for ca in issuers):
        raise RevocationListError("its signature is not that of the CA it names")
    for extension in crl.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise RevocationListError("a delta or partial list; a complete one is needed")
    this_update = crl.last_update_utc.timestamp()
    if this_update > now + CLOCK_SKEW_S:
        raise RevocationListError("from the future: is this machine's clock right?")
    try:
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        number = 0
    return RevocationList(
        issuer=crl.issuer.public_bytes(),
        number=number,
        this_update=this_update,
        next_update=_epoch(crl.next_update_utc),
        serials=frozenset(revoked.serial_number for revoked in crl),
    )


def _signed_by(crl: x509.CertificateRevocationList, ca: x509.Certificate) -> bool:
    try:
        usage = ca.extensions.get_extension_for_class(x509.KeyUsage).value
        if not usage.crl_sign:
            return False
    except x509.ExtensionNotFound:
        pass  # any use
    try:
        return crl.is_signature_valid(ca.public_key())  # type: ignore[arg-type] # or TypeError
    except (TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False


def _epoch(moment: datetime.datetime | None) -> float:
    return math.inf if moment is None else moment.timestamp()


def _blocks(pem: bytes) -> list[bytes]:
    end = b"-----END X509 CRL-----"
    return [block + end for block in pem.split(end)[:-1]]
