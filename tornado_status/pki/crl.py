"""Certificate revocation lists (CRLs): reading and verifying them. Pure.

OpenSSL's own CRL check is off: it fails every handshake once a CRL is expired or missing. A CRL
belongs to a CA by its name and its key (`certificates.ca_id`). A CA with a new key is another CA,
with a CRL of its own.
"""

from __future__ import annotations

import datetime
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from tornado_status.errors import CRLError
from tornado_status.pki.certificates import UNREADABLE, ca_id, quietly, same_name
from tornado_status.pki.extensions import find_extension

CLOCK_SKEW_S = 300.0  # a CRL may be from so far in our clock's future

_UNDERSTOOD = {x509.CRLNumber.oid, x509.AuthorityKeyIdentifier.oid}
# Refused also if they are not critical, as they must be (RFC 5280, 5.2.4 and 5.2.5).
_INCOMPLETE = {x509.DeltaCRLIndicator.oid, x509.IssuingDistributionPoint.oid}
_UNDERSTOOD_OF_ENTRIES = {x509.CRLReason.oid, x509.InvalidityDate.oid}
_BEGINS, _ENDS = b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"


@dataclass(frozen=True, slots=True)
class CRLMark:
    """The newest CRL of a CA that was in force. No later one may revoke less.

    `ca` is the CA's `ca_id` and `name` its name for an operator. `number` is 0 for a CRL without a
    number. `entries` is a hash of the revoked serial numbers.
    """

    ca: bytes
    name: str
    number: int
    this_update: float
    entries: bytes

    def check(self, newer: CRLMark) -> None:
        """Raise `CRLError` if `newer`, of the same CA, may not follow."""
        if newer.number < self.number:
            raise CRLError(
                f"number {newer.number} is older than {self.number}, which was in force for "
                f"{self.name}"
            )
        if newer.number > self.number or newer.entries == self.entries:
            return
        if self.number:
            raise CRLError(
                f"number {self.number} was in force for {self.name} with other entries: make a CRL "
                "with a higher number"
            )
        if newer.this_update <= self.this_update:
            raise CRLError(f"it is not newer than the one that was in force for {self.name}")


@dataclass(frozen=True, slots=True)
class CRL:
    """A CA's CRL, its signature verified.

    `serials` are the revoked serial numbers. Times are seconds since the epoch; `next_update` is
    infinite if the CRL has none.
    """

    mark: CRLMark
    next_update: float
    serials: frozenset[int]


def read_crls(pem: bytes, cas: Sequence[x509.Certificate], now: float) -> tuple[CRL, ...]:
    """Read the CRLs in PEM, each issued by one of `cas`. An expired one is read like any other.

    Raises `CRLError`, with the reason as a sentence, if there is no CRL or one cannot be used. A
    CRL cannot be used if it is cut off, another CA's, forged or from the future. Nor can one with
    an unknown critical extension, nor a delta or partial CRL.
    """
    found: dict[bytes, CRL] = {}
    for block in _blocks(pem):
        try:
            newer = _verify(x509.load_pem_x509_crl(block), cas, now)
        except UNREADABLE as error:
            raise CRLError("not a CRL in PEM") from error
        older = found.get(newer.mark.ca)
        if older is None or _rank(newer) > _rank(older):
            found[newer.mark.ca] = newer
    if not found:
        raise CRLError("no CRL in PEM")
    return tuple(found.values())


def replace_crls(
    marks: Iterable[CRLMark], new: Iterable[CRL], cas: Sequence[x509.Certificate]
) -> dict[bytes, CRL]:
    """Return the new CRLs by CA. Raises `CRLError` if one may not follow those of `marks`.

    Also raised if there is none of a trusted CA that has a mark. An attacker who can write the
    file, or a restored backup, must not undo a revocation.
    """
    after = {newer.mark.ca: newer for newer in new}
    trusted = set(map(ca_id, cas))
    for known in marks:
        newer = after.get(known.ca)
        if newer is not None:
            known.check(newer.mark)
        elif known.ca in trusted:
            raise CRLError(
                f"the CRL of {known.name} is missing, whose number {known.number} was in force: "
                "put all CRLs into the file, one after the other, or remove the CA from "
                "tls.client_ca"
            )
    return after


def _verify(
    crl: x509.CertificateRevocationList, cas: Sequence[x509.Certificate], now: float
) -> CRL:
    with quietly():
        issuer = crl.issuer
        name = issuer.rfc4514_string()
    issuers = [ca for ca in cas if same_name(ca.subject, issuer)]
    if not issuers:
        raise CRLError("issued by none of the client CAs")
    signers = [ca for ca in issuers if _signed_by(crl, ca)]
    if not signers:
        raise CRLError("its signature is not that of the CA it names")
    for extension in crl.extensions:
        if extension.oid in _INCOMPLETE:
            raise CRLError("a delta or partial CRL; a complete one is needed")
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise CRLError(
                f"its critical extension {extension.oid.dotted_string} is not understood"
            )
    with quietly():
        serials = frozenset(map(_serial, crl))
    this_update = crl.last_update_utc.timestamp()
    if this_update > now + CLOCK_SKEW_S:
        raise CRLError("from the future: is this machine's clock right?")
    numbered = find_extension(crl.extensions, x509.CRLNumber)
    number = 0 if numbered is None else numbered.crl_number
    entries = hashlib.sha256(repr(sorted(serials)).encode()).digest()
    mark = CRLMark(ca_id(signers[0]), name, number, this_update, entries)
    return CRL(mark, _epoch(crl.next_update_utc), serials)


def _serial(entry: x509.RevokedCertificate) -> int:
    """Return the serial number of an entry. Raises `CRLError` if more must be known of it."""
    for extension in entry.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD_OF_ENTRIES:
            raise CRLError(
                f"an entry has the critical extension {extension.oid.dotted_string}, which is not "
                "understood"
            )
    return entry.serial_number


def _rank(crl: CRL) -> tuple[int, float]:
    return crl.mark.number, crl.mark.this_update


def _signed_by(crl: x509.CertificateRevocationList, ca: x509.Certificate) -> bool:
    usage = find_extension(ca.extensions, x509.KeyUsage)
    if usage is not None and not usage.crl_sign:
        return False
    try:
        return crl.is_signature_valid(ca.public_key())  # type: ignore[arg-type] # or TypeError
    except (TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False


def _epoch(moment: datetime.datetime | None) -> float:
    return math.inf if moment is None else moment.timestamp()


def _blocks(pem: bytes) -> list[bytes]:
    blocks = [block + _ENDS for block in pem.split(_ENDS)[:-1]]
    if pem.count(_BEGINS) != len(blocks):
        raise CRLError("a CRL without its end: was the file cut off?")
    return blocks
