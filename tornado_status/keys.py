"""What is read from the files with certificates and keys, all of it or nothing."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from tornado_status.announce import Signing, load_signing
from tornado_status.config import Settings
from tornado_status.ingress import Anchors, load_anchors, self_test, server_context


@dataclass(frozen=True, slots=True)
class Keys:
    """What is read from the files with certificates and keys, all of it or nothing."""

    context: ssl.SSLContext
    anchors: Anchors
    signing: Signing | None


def load_keys(settings: Settings, before: Anchors | None) -> Keys:
    """Read all of them anew; `before` are the anchors in force. Raises `ConfigError`."""
    context = server_context(settings.tls)
    self_test(context)
    anchors = load_anchors(settings.tls, before)
    return Keys(context, anchors, load_signing(settings.announce, settings.tls.client_ca))


def key_files(settings: Settings) -> list[Path]:
    """Return the files to watch."""
    tls, announce = settings.tls, settings.announce
    files = [tls.certificate, tls.private_key, tls.client_ca, tls.crl, announce.next_certificate]
    if announce.signing_key is not None:
        files += [announce.signing_key, announce.signing_key.with_suffix(".crt")]
    return [file for file in files if file is not None]
