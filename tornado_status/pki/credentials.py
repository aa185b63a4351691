"""All certificates and keys that the server reads from files, loaded together or not at all."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tornado_status.config.settings import Settings
from tornado_status.pki.certificates import ca_id
from tornado_status.pki.crl import CRLMark
from tornado_status.pki.datagram_signing import Signing, load_signing
from tornado_status.pki.expiry import Validity, certificate_validities, distinct_names
from tornado_status.pki.files import read_certificates
from tornado_status.pki.tls_contexts import (
    management_context,
    self_test,
    server_context,
    webhook_contexts,
)
from tornado_status.pki.trust_anchors import Anchors, load_anchors


@dataclass(frozen=True, slots=True)
class Credentials:
    """The contents of the files with certificates and keys.

    `validities` are those of every certificate and CRL in them.
    """

    context: ssl.SSLContext | None  # None in mode proxy
    anchors: Anchors
    signing: Signing | None
    management_context: ssl.SSLContext | None
    webhook_contexts: Mapping[str, ssl.SSLContext]  # by the alert's name
    validities: tuple[Validity, ...]


def load_credentials(
    settings: Settings, before: Anchors | None, marks: Sequence[CRLMark] = ()
) -> Credentials:
    """Read all files; `before` are the anchors in force, `marks` the newest CRLs that were.

    Raises `ConfigError`.
    """
    context = None
    if settings.ingress.mode == "tls":
        context = server_context(settings.tls)
        self_test(context)
    anchors = load_anchors(settings.tls, before, marks)
    signing = load_signing(settings.announce, anchors)
    validities = (*_certificates(settings), *_crls(settings, anchors))
    return Credentials(
        context,
        anchors,
        signing,
        management_context(settings.management),
        webhook_contexts(settings.alerts),
        validities,
    )


def credential_files(settings: Settings) -> list[Path]:
    """Return the files to watch."""
    tls, announce, management = settings.tls, settings.announce, settings.management
    files = [tls.client_ca, tls.crl, announce.next_certificate]
    if settings.ingress.mode == "tls":
        files += [tls.certificate, tls.private_key]
    files += [management.certificate, management.private_key]
    files += [alert.ca for alert in settings.alerts]
    if announce.signing_key is not None:
        files += [announce.signing_key, announce.signing_key.with_suffix(".crt")]
    return [file for file in files if file is not None]


def _certificates(settings: Settings) -> list[Validity]:
    tls, announce = settings.tls, settings.announce
    signing = announce.signing_key
    files = {
        "tls.certificate": tls.certificate if settings.ingress.mode == "tls" else None,
        "tls.client_ca": tls.client_ca,
        "announce.signing_key": signing.with_suffix(".crt") if signing is not None else None,
        "announce.next_certificate": announce.next_certificate,
        "management.certificate": settings.management.certificate,
    }
    found = []
    for setting, file in files.items():
        if file is None:
            continue
        found += certificate_validities(setting, str(file), read_certificates(setting, file))
    return found


def _crls(settings: Settings, anchors: Anchors) -> list[Validity]:
    names = dict(zip(map(ca_id, anchors.cas), distinct_names(anchors.cas), strict=True))
    return [
        Validity(
            "crl",
            "tls.crl",
            str(settings.tls.crl),
            names[crl.mark.ca],
            crl.mark.this_update,
            crl.next_update,
        )
        for crl in anchors.crls.values()
    ]
