"""The doctor's checks of certificates, keys and CRLs, which it reads as the server does."""

from __future__ import annotations

import ipaddress
import itertools
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from tornado_status.commands.doctor.finding import Finding, note, ok, problem
from tornado_status.config.settings import Settings
from tornado_status.errors import ConfigError
from tornado_status.pki.authorities import NOT_A_CA, read_authority
from tornado_status.pki.certificates import issued_by
from tornado_status.pki.credentials import load_credentials
from tornado_status.pki.datagram_signing import load_signing
from tornado_status.pki.expiry import Validity, distinct_names, name_of
from tornado_status.pki.extensions import find_extension
from tornado_status.pki.files import read_certificates
from tornado_status.pki.tls_contexts import (
    management_context,
    self_test,
    server_context,
    webhook_contexts,
)
from tornado_status.pki.trust_anchors import crl_file, load_anchors

TOPIC = "certificates"
AT_ONCE = "The server reads it within a second."


def examine(settings: Settings) -> Iterator[Finding]:
    """Run all of these checks."""
    broken = [*_unusable(settings)]
    yield from broken
    if not broken:
        yield from _terms(settings)
        yield from _authorities(settings)
        if settings.ingress.mode == "tls":
            yield from _server_certificate(settings)
    yield from _lists(settings)
    yield from _permissions(settings)


def _unusable(settings: Settings) -> Iterator[Finding]:
    """Read each file as the server does. A setting that several need is reported once."""
    reported = set()
    for reading in (
        lambda: _read_server_certificate(settings),
        lambda: load_anchors(settings.tls),
        lambda: load_signing(settings.announce, load_anchors(settings.tls)),
        lambda: management_context(settings.management),
        lambda: webhook_contexts(settings.alerts),
    ):
        try:
            reading()
        except ConfigError as error:
            setting = str(error).partition(": ")[0]
            if setting not in reported:
                reported.add(setting)
                yield problem(TOPIC, str(error), "The server does not start with it.")


def _read_server_certificate(settings: Settings) -> None:
    if settings.ingress.mode == "tls":  # in mode proxy it is the proxy's
        self_test(server_context(settings.tls))


def _terms(settings: Settings) -> Iterator[Finding]:
    now = time.time()
    for term in load_credentials(settings, None).validities:
        warning = term.warning(now)
        if warning is None:
            yield ok(TOPIC, f"{term.setting}: {term.subject}, {term.days_left(now):.0f} days left")
        elif term.kind == "crl":
            command = _command("crl", settings.tls.client_ca)
            advice = f"Make a new one with `{command}`, and again before each expires."
            over = settings.tls.on_expired_crl == "refuse" and not term.in_force(now)
            yield problem(TOPIC, warning, advice) if over else note(TOPIC, warning, advice)
        elif term.in_force(now):
            yield note(TOPIC, warning, _renewal(settings, term))
        else:
            yield problem(TOPIC, warning, _renewal(settings, term))


def _renewal(settings: Settings, term: Validity) -> str:
    """Return how to renew a certificate: by a command, if `status-certs` can renew it."""
    command = None
    if term.setting == "tls.certificate":
        command = _server_command(settings)
    elif term.setting == "announce.signing_key" and settings.announce.signing_key is not None:
        command = _announcer_command(settings, settings.announce.signing_key)
    if command is None:
        return f"Put a new one in its place. {AT_ONCE}"
    return f"Renew it: `{command}` does so with its CA. {AT_ONCE}"


def _server_command(settings: Settings) -> str | None:
    """Return the command that renews the server's certificate, with its names; None if none can."""
    file, key = settings.tls.certificate, settings.tls.private_key
    if (file.name, key) != ("server.crt", file.with_name("server.key")):
        return None  # the command writes these two
    leaf = read_certificates("tls.certificate", file)[0]
    if not _is_of_client_ca(settings, leaf):
        return None
    words = [f"--ip {name}" if _is_ip(name) else f"--name {name}" for name in _names(leaf)]
    return _command(f"server {' '.join(words or ['--name NAME'])} --force", file)


def _announcer_command(settings: Settings, key: Path) -> str | None:
    """Return the command that renews the announcer's key and certificate; None if none can."""
    leaf = read_certificates("announce.signing_key", key.with_suffix(".crt"))[0]
    if key.suffix != ".key" or not _is_of_client_ca(settings, leaf):
        return None
    name = "" if key.stem == "announcer" else f" --name {key.stem}"
    return _command(f"announcer{name} --force", key)


def _is_of_client_ca(settings: Settings, certificate: x509.Certificate) -> bool:
    return any(issued_by(certificate, ca) for ca in load_anchors(settings.tls).cas)


def _command(words: str, beside: Path) -> str:
    """Return a command of status-certs that writes into the directory of the file `beside`."""
    directory = beside.parent
    out = "" if directory == Path("certs").absolute() else f" --out {directory}"
    return f"status-certs {words}{out}"


def _authorities(settings: Settings) -> Iterator[Finding]:
    anchors = load_anchors(settings.tls)
    for certificate, name in zip(anchors.cas, distinct_names(anchors.cas), strict=True):
        ca = read_authority(certificate.public_bytes(Encoding.DER))
        if ca.flaw == NOT_A_CA:
            yield note(
                TOPIC,
                f"tls.client_ca: {name} is no CA certificate: the server refuses every certificate "
                "below it",
                "Right for a client's own certificate. A CA needs basicConstraints CA:TRUE and, if "
                "it has a keyUsage, keyCertSign.",
            )
        elif ca.flaw is not None:
            yield problem(
                TOPIC,
                f"tls.client_ca: {name}: {ca.flaw.detail}",
                "The server refuses every certificate below it. Make a new CA.",
            )
        if crl_file(settings.tls) is not None and ca.id not in anchors.crls:
            yield note(
                TOPIC,
                f"tls.crl: there is no CRL of {name}: no certificate that it issued can be revoked",
                f"Make one with `{_command('crl', settings.tls.client_ca)}`, and append it to the "
                "file.",
            )


def _server_certificate(settings: Settings) -> Iterator[Finding]:
    chain = read_certificates("tls.certificate", settings.tls.certificate)
    leaf, path = chain[0], settings.tls.certificate
    names = _names(leaf)
    if names:
        yield ok(TOPIC, f"tls.certificate: clients can reach the server as {', '.join(names)}")
    else:
        yield problem(
            TOPIC,
            f"tls.certificate: {path} names no host in its subjectAltName, and clients look "
            "nowhere else",
            "Make one with the names that clients use: `status-certs server --name NAME --force`.",
        )
    usage = find_extension(leaf.extensions, x509.ExtendedKeyUsage)
    if usage is not None and ExtendedKeyUsageOID.SERVER_AUTH not in usage:
        # The server refuses all others: see `tls_contexts`.
        yield problem(
            TOPIC,
            f"tls.certificate: {path}: its extended key usage has anyExtendedKeyUsage without "
            "serverAuth",
            "Clients that use OpenSSL refuse it. Put one with serverAuth in its place.",
        )
    yield from _chain(settings, chain)


def _chain(settings: Settings, chain: Sequence[x509.Certificate]) -> Iterator[Finding]:
    for lower, upper in itertools.pairwise(chain):
        if not issued_by(lower, upper):
            yield problem(
                TOPIC,
                f"tls.certificate: {name_of(upper.subject)} stands behind "
                f"{name_of(lower.subject)} in the file and has not issued it",
                "Put the certificates in order: the server's first, then who issued it, and so on.",
            )
            return
    cas = read_certificates("tls.client_ca", settings.tls.client_ca)
    if any(issued_by(chain[-1], ca) for ca in cas):
        yield ok(TOPIC, "tls.certificate: issued by tls.client_ca, which the clients know")
    else:
        yield note(
            TOPIC,
            f"tls.certificate: its chain ends with {name_of(chain[-1].issuer)}, which is not in "
            "tls.client_ca",
            "Right where another CA issues servers' certificates: then clients must trust it.",
        )


def _lists(settings: Settings) -> Iterator[Finding]:
    if crl_file(settings.tls) is None:
        yield note(
            TOPIC,
            "tls.crl: there is no CRL: no certificate can be revoked",
            f"Make one with `{_command('crl', settings.tls.client_ca)}`, and name it in tls.crl.",
        )


def _permissions(settings: Settings) -> Iterator[Finding]:
    keys: dict[str, Path | None] = {
        "tls.private_key": settings.tls.private_key if settings.ingress.mode == "tls" else None,
        "announce.signing_key": settings.announce.signing_key,
        "management.private_key": settings.management.private_key,
    }
    for setting, path in keys.items():
        if path is None:
            continue
        try:
            mode = path.stat().st_mode
        except OSError:
            continue  # reported already
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            yield problem(
                TOPIC,
                f"{setting}: every user of this machine can read {path}",
                f"Run `chmod 600 {path}`, and make a new key if others work on this machine.",
            )


def _names(certificate: x509.Certificate) -> list[str]:
    names = find_extension(certificate.extensions, x509.SubjectAlternativeName)
    if names is None:
        return []
    return [
        *names.get_values_for_type(x509.DNSName),
        *map(str, names.get_values_for_type(x509.IPAddress)),
    ]


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
