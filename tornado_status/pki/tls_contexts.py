"""TLS contexts of the check-in port and the management port, and a self-test of them."""

from __future__ import annotations

import contextlib
import datetime
import os
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from tornado_status.config.settings import AlertSettings, ManagementSettings, TlsSettings
from tornado_status.errors import ConfigError
from tornado_status.pki.certificates import UNREADABLE, issued_by, same_name
from tornado_status.pki.extensions import find_extension
from tornado_status.pki.files import check_file, check_key, read_certificates

# TLS 1.2 with authenticated encryption and forward secrecy only: OpenSSL still offers CBC, with its
# history of padding oracles. The suites of TLS 1.3 are all good.
TLS12_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

DEVELOPMENT_SET = "`status-certs` makes a development set"

# Of certificates (RFC 8879), from openssl/ssl.h; Python has no names for them. We never send a
# compressed one, and what a client sends would be unpacked before anything of it is known.
_OP_NO_CERTIFICATE_COMPRESSION = 1 << 32 | 1 << 33

MINIMUM_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """Return a context that asks every client for a certificate of `settings.client_ca`.

    Raises `ConfigError` that names the setting and the file.
    """
    # Not create_default_context: from Python 3.13 on it sets VERIFY_X509_STRICT, which refuses
    # certificates as the openssl command makes them. `chain_paths` checks what matters of it.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = MINIMUM_VERSIONS[settings.minimum_version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.options |= _OP_NO_CERTIFICATE_COMPRESSION
    context.set_ciphers(TLS12_CIPHERS)
    # One ticket instead of two a handshake: a client needs one connection.
    context.num_tickets = 1
    optional = settings.client_certificate == "optional"
    context.verify_mode = ssl.CERT_OPTIONAL if optional else ssl.CERT_REQUIRED
    for key in ("certificate", "private_key", "client_ca"):
        check_file(f"tls.{key}", getattr(settings, key), DEVELOPMENT_SET)
    # OpenSSL accepts certificates that we cannot read the dates of, and its errors say less.
    chain = read_certificates("tls.certificate", settings.certificate)
    check_key("tls.private_key", settings.private_key)
    _check_purpose(settings.certificate, chain[0])
    cas = read_certificates("tls.client_ca", settings.client_ca)
    with with_issuers(settings.certificate, chain, cas) as file:
        _load_pair(context, "tls", settings.certificate, settings.private_key, file)
    try:
        context.load_verify_locations(settings.client_ca)
    except ssl.SSLError as error:
        raise ConfigError(
            f"tls.client_ca: {settings.client_ca} holds no certificate in PEM"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"tls.client_ca: cannot read {settings.client_ca}: {error.strerror}"
        ) from error
    return context


def self_test(context: ssl.SSLContext) -> None:
    """Make a handshake in memory, to test the server's side. Raises `ConfigError` if it fails."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = context.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server)
    try:
        for _ in range(4):
            try:
                theirs.do_handshake()
                return  # the client has verified our key's signature; it has no certificate
            except ssl.SSLWantReadError:
                pass
            try:
                ours.do_handshake()
            except ssl.SSLWantReadError:
                pass
    except ssl.SSLError as error:
        raise ConfigError(
            f"tls.certificate: a handshake with it fails: {error.reason or error}"
        ) from error
    raise ConfigError("tls.certificate: a handshake with it does not finish")


def management_context(settings: ManagementSettings) -> ssl.SSLContext | None:
    """Return the TLS context of the management port, None if it has no certificate.

    Raises `ConfigError` that names the setting and the file.
    """
    if settings.certificate is None or settings.private_key is None:
        return None
    read_certificates("management.certificate", settings.certificate)
    check_key("management.private_key", settings.private_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # monitoring may be old, and has no identity
    _load_pair(context, "management", settings.certificate, settings.private_key)
    return context


def webhook_contexts(alerts: Sequence[AlertSettings]) -> dict[str, ssl.SSLContext]:
    """Return, by an alert's name, the context that verifies its receiver.

    Raises `ConfigError` that names the alert and the file.
    """
    contexts = {}
    for alert in alerts:
        if alert.ca is not None:
            read_certificates(f"alerts.{alert.name}.ca", alert.ca)
        try:
            context = ssl.create_default_context(cafile=alert.ca)
        except OSError as error:  # replaced since it was read
            raise ConfigError(f"alerts.{alert.name}.ca: cannot use {alert.ca}: {error}") from error
        # Otherwise certificates made with the openssl command are refused.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        contexts[alert.name] = context
    return contexts


@contextlib.contextmanager
def with_issuers(
    path: Path, chain: Sequence[x509.Certificate], cas: Sequence[x509.Certificate]
) -> Iterator[Path]:
    """Yield a file with the server's chain and its issuers from `cas`, as OpenSSL would send them.

    To a certificate alone OpenSSL adds its issuers out of those of clients, in each handshake, and
    verifies it to find them: some 0.1 ms. With the whole chain in one file it does not look.
    """
    issuers = _issuers(chain, cas) if len(chain) == 1 else []
    if not issuers or not hasattr(os, "memfd_create"):  # Linux: another system is only slower
        yield path
        return
    descriptor = os.memfd_create("chain")  # no place on a disk, which may be read-only
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.writelines(each.public_bytes(Encoding.PEM) for each in (*chain, *issuers))
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _issuers(
    chain: Sequence[x509.Certificate], cas: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    """Return from `cas` the CA of the last certificate, the CA of that one, and so on."""
    now = datetime.datetime.now(datetime.UTC)
    last, found = chain[-1], list[x509.Certificate]()
    while len(found) < len(cas) and not same_name(last.issuer, last.subject):
        issuers = [ca for ca in cas if issued_by(last, ca)]
        if not issuers:
            break
        # Of a renewed CA the certificate that is valid now, and longest.
        last = max(issuers, key=lambda ca: (ca.not_valid_before_utc <= now, ca.not_valid_after_utc))
        found.append(last)
    return found


def _load_pair(
    context: ssl.SSLContext, section: str, certificate: Path, key: Path, chain: Path | None = None
) -> None:
    """Load a certificate and its key; `chain` is read instead of `certificate`, if it is given."""
    try:
        context.load_cert_chain(chain or certificate, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            why = f"is not the key of {certificate}: name the two files that were issued together"
        else:
            why = f"cannot be used with {certificate} ({error.reason or error})"
        raise ConfigError(f"{section}.private_key: {key} {why}") from error
    except ValueError as error:
        raise ConfigError(f"{section}.private_key: {key}: {error}") from error
    except OSError as error:  # gone since they were checked
        raise ConfigError(
            f"{section}.private_key: cannot read {certificate} and {key}: {error.strerror}"
        ) from error


def _check_purpose(path: Path, certificate: x509.Certificate) -> None:
    """Refuse a client's certificate: no client would accept it from a server.

    An expired certificate is not refused: the server starts, as nginx and PostgreSQL do, logs an
    error and is not ready. A renewed file then needs no restart, and /readyz says why.
    """
    try:
        usage = find_extension(certificate.extensions, x509.ExtendedKeyUsage)
    except UNREADABLE:
        return
    if usage is not None and {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
    }.isdisjoint(usage):
        raise ConfigError(
            f"tls.certificate: {path} is not for a server (its extended key usage has no "
            "serverAuth), and clients refuse it: name the server's certificate, or make one with "
            "`status-certs server --name NAME --force`"
        )


def _no_password() -> str:
    # Without this, OpenSSL would ask on the terminal and the server would hang.
    raise ValueError("an encrypted key: decrypt it for the server")
