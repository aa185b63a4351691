"""Certificate revocation lists: which certificates their CA has taken back. Pure.

Judged here and not by OpenSSL: its CRL flags fail every handshake once a list is late or missing.
A list belongs to a CA by its name and its key (`certificates.ca_id`): a CA that was renewed with a
new key is another one, with a list of its own.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from tornado_status.errors import RevocationListError
from tornado_status.pki.certificates import UNREADABLE, ca_id, quietly, same_name

CLOCK_SKEW_S = 300.0  # a list may be this much younger than our clock believes possible

_UNDERSTOOD = {x509.CRLNumber.oid, x509.AuthorityKeyIdentifier.oid}
_BEGINS, _ENDS = b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A CA's list, its signature verified.

    `ca` is the CA's `ca_id` and `name` its name for an operator; `serials` are the serial numbers
    it has taken back. Times are seconds since the epoch; `next_update` is infinite where the CA
    promises none.
    """

    ca: bytes
    name: str
    number: int
    this_update: float
    next_update: float
    serials: frozenset[int]


def read_lists(
    pem: bytes, cas: Sequence[x509.Certificate], now: float
) -> tuple[RevocationList, ...]:
    """Read the lists in PEM, each issued by one of `cas`. An old one is read like any other.

    Raises `RevocationListError` in a sentence: no list, one that ends in the middle, another CA's,
    forged, from the future, or with a critical extension that nobody here understands (delta and
    partial lists).
    """
    found: dict[bytes, RevocationList] = {}
    for block in _blocks(pem):
        try:
            newer = _judge(x509.load_pem_x509_crl(block), cas, now)
        except UNREADABLE as error:
            raise RevocationListError("not a certificate revocation list in PEM") from error
        older = found.get(newer.ca)
        if older is None or newer.number > older.number:
            found[newer.ca] = newer
    if not found:
        raise RevocationListError("no certificate revocation list in PEM")
    return tuple(found.values())


def replace_lists(
    old: Iterable[RevocationList], new: Iterable[RevocationList], cas: Sequence[x509.Certificate]
) -> dict[bytes, RevocationList]:
    """Return the new lists by CA. Raises `RevocationListError` where a number went back.

    So it does where the list of one of `cas` is left out that was there before. An attacker who can
    write the file, or a restored backup, must not bring back who was revoked.
    """
    after = {newer.ca: newer for newer in new}
    trusted = set(map(ca_id, cas))
    for known in old:
        newer = after.get(known.ca)
        if newer is None and known.ca in trusted:
            raise RevocationListError(
                f"the list of {known.name} is left out, whose number {known.number} is in force: "
                "put all lists into the file, one behind the other, or take the CA out of "
                "tls.client_ca"
            )
        if newer is not None and newer.number < known.number:
            raise RevocationListError(
                f"number {newer.number} is older than {known.number}, which is in force for "
                f"{known.name}"
            )
    return after


def _judge(
    crl: x509.CertificateRevocationList, cas: Sequence[x509.Certificate], now: float
) -> RevocationList:
    with quietly():
        issuer = crl.issuer
        name = issuer.rfc4514_string()
    issuers = [ca for ca in cas if same_name(ca.subject, issuer)]
    if not issuers:
        raise RevocationListError("issued by none of the client CAs")
    signers = [ca for ca in issuers if _signed_by(crl, ca)]
    if not signers:
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
        ca=ca_id(signers[0]),
        name=name,
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
    blocks = [block + _ENDS for block in pem.split(_ENDS)[:-1]]
    if pem.count(_BEGINS) != len(blocks):
        raise RevocationListError("a list without its end: was the file cut off?")
    return blocks
