"""Verifying a chain that came in a header instead of a handshake, up to the CAs in force."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from tornado_status.errors import IdentityError, Refusal
from tornado_status.pki.certificates import UNREADABLE, quietly

UNTRUSTED = Refusal(
    403, "untrusted-chain", "The certificate does not lead to a CA that is trusted here"
)

_FOR_CLIENTS = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)


class ChainVerifier:
    """Verifies chains up to `cas`: signatures, dates, CA flags, path length, name constraints.

    `identity` checks what a leaf has to be. Its extensions and those of the CAs need not follow the
    web's profile: private CAs made by hand have to go on working.
    """

    def __init__(self, cas: Sequence[x509.Certificate]) -> None:
        agnostic = Criticality.AGNOSTIC
        ca_policy = (
            ExtensionPolicy.permit_all()
            .require_present(x509.BasicConstraints, agnostic, None)
            .may_be_present(x509.KeyUsage, agnostic, _may_sign)
            .may_be_present(x509.ExtendedKeyUsage, agnostic, _may_issue_to_clients)
        )
        self._builder = (
            PolicyBuilder()
            .store(Store(list(cas)))
            .extension_policies(ca_policy=ca_policy, ee_policy=ExtensionPolicy.permit_all())
        )

    def verify(
        self, certificate: bytes, chain: Sequence[bytes], now: float
    ) -> list[x509.Certificate]:
        """Return the chain from the certificate to a CA, that one last.

        All in DER, `now` in seconds since the epoch. Raises `IdentityError`, whatever the bytes.
        """
        moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
        with quietly():
            try:
                leaf = x509.load_der_x509_certificate(certificate)
                between = [x509.load_der_x509_certificate(der) for der in chain]
                verifier = self._builder.time(moment).build_client_verifier()
                return verifier.verify(leaf, between).chain
            except VerificationError as error:
                raise IdentityError(*UNTRUSTED) from error
            except UNREADABLE as error:
                raise IdentityError(
                    400, "certificate-unreadable", "The certificate cannot be read"
                ) from error


def _may_sign(policy: Policy, ca: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("a CA that may not sign certificates")


def _may_issue_to_clients(
    policy: Policy, ca: x509.Certificate, usages: x509.ExtendedKeyUsage | None
) -> None:
    if usages is not None and not any(usage in usages for usage in _FOR_CLIENTS):
        raise ValueError("a CA that may not issue to clients")
