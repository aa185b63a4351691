"""Hints for the log: the meaning of each kind of failed handshake. Pure."""

from __future__ import annotations

# OpenSSL's words: those with `alert` came from the client, the others are this server's own.
_HINTS = {
    "alert-unknown-ca": "the client does not trust this server's CA: give it the CA certificate "
    "that issued tls.certificate",
    "alert-bad-certificate": "the client refuses this server's certificate",
    "alert-certificate-unknown": "the client refuses this server's certificate: it does not trust "
    "its CA, or expects another host name",
    "alert-certificate-expired": "the client refuses this server's certificate as expired: renew "
    "it, or set the client's clock",
    "alert-unsupported-certificate": "the client refuses this server's certificate: it is not for "
    "a server",
    "alert-protocol-version": "the client speaks an older TLS than tls.minimum_version",
    "peer-did-not-return-a-certificate": "the client sent no certificate",
    "unable-to-get-local-issuer-certificate": "no CA in tls.client_ca issued the client's "
    "certificate",
    "self-signed-certificate": "no CA in tls.client_ca issued the client's certificate",
    "self-signed-certificate-in-certificate-chain": "no CA in tls.client_ca issued the client's "
    "certificate",
    "certificate-has-expired": "the client's certificate has expired: issue a new one",
    "certificate-is-not-yet-valid": "the client's certificate is not valid yet: compare the clocks",
    "unsuitable-certificate-purpose": "the client's certificate is not for a client (its key "
    "usage or extended key usage)",
    "unsupported-protocol": "the client speaks an older TLS than tls.minimum_version",
    "http-request": "the client speaks plain HTTP: its URL must begin with https://",
    "https-proxy-request": "the client takes this server for a web proxy",
    "wrong-version-number": "the client does not speak TLS",
    "excessive-message-size": "the client sent more than a handshake needs",
    "timeout": "the client did not finish within server.handshake_timeout_s",
    "closed": "the client closed the connection",
}


def hint(kind: str) -> str | None:
    """Return what a kind of handshake failure means, None if its words say it already."""
    _, alert, name = kind.partition("alert-")  # tlsv1-alert-unknown-ca, tls-alert-unknown-ca
    return _HINTS.get(f"alert-{name}" if alert else kind)
