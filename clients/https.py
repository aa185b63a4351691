"""An HTTPS client with a client certificate, whose errors are sentences. Standard library only.

HttpsError             no answer that can be used
├── SetUpError         the URL or a file is wrong here: nothing was sent
├── Refused            the server said no: the same request fails again until something changes
└── Unreachable        no answer, no trusted server or "not now": a later attempt may work

Every message is one sentence without control characters, whatever the server sent. Nothing is
printed here.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import http.client
import json
import re
import socket
import ssl
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

MAX_DETAIL = 300  # characters of the server's text that are shown: they fit on one line

# Statuses that say "not now" rather than "no": a later attempt may succeed.
NOT_NOW = frozenset({408, 425, 429})

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})

# The alerts that a server sends about a client's certificate (RFC 8446, section 6.2), by the words
# that OpenSSL has for them.
_ALERTS = {
    "certificate required": "it wants a client certificate, and got none",
    "unknown ca": "it does not know the CA that issued the client certificate",
    "certificate expired": "the client certificate has expired, or is not valid yet",
    "certificate revoked": "the client certificate has been revoked",
    "unsupported certificate": "the client certificate is not meant for this use",
    "bad certificate": "the client certificate is damaged or not acceptable",
    "certificate unknown": "the client certificate is not acceptable",
    "access denied": "the client certificate gives no access",
    "decrypt error": "the client certificate's signature does not verify",
    "handshake failure": "no certificate or no cipher that both accept",
    "protocol version": "it does not speak TLS 1.3",
    "insufficient security": "it wants stronger cryptography",
    "unrecognized name": "it does not serve this host name",
}


class HttpsError(Exception):
    """No answer that can be used. The message is a sentence."""


class SetUpError(HttpsError):
    """The URL or a file is wrong on this side."""


class Refused(HttpsError):
    """The server refused: by a TLS alert, or by an HTTP status that is then in `status`."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(HttpsError):
    """No trusted server answered the request now.

    `retry_after_s` is the wait that the server asked for, in seconds and unbounded, if it did.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class _ConnectionClosed(Exception):
    """The kept connection was closed in the meantime: a new one may still work."""


@dataclass(frozen=True, slots=True)
class Target:
    """The parts of an https URL. `path` includes the query."""

    host: str
    port: int
    path: str

    def __str__(self) -> str:
        return f"{self.host} port {self.port}"


def parse_url(url: str) -> Target:
    """Return the parts of an https URL. Raises `SetUpError`."""
    if not (url.isascii() and url.isprintable() and " " not in url):
        raise SetUpError(f"the URL {url!a} contains characters that have no place in one")
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SetUpError(f"the URL {url} is not valid: {error}") from error
    plain = parts.username is None and not parts.fragment and port != 0
    if parts.scheme != "https" or not host or not plain:
        raise SetUpError(f"the URL {url} is not of the form https://HOST[:PORT]/PATH")
    query = f"?{parts.query}" if parts.query else ""
    return Target(host, 443 if port is None else port, (parts.path or "/") + query)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. `body` is cut after the client's `max_body`, and then `whole` is False."""

    status: int
    body: bytes
    whole: bool
    retry_after: str  # the header, or ""

    @property
    def detail(self) -> str | None:
        """The sentence of a problem+json body (RFC 9457), if there is one."""
        try:
            problem: object = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        detail = problem.get("detail") if isinstance(problem, dict) else None
        return printable(detail) if isinstance(detail, str) and detail else None

    @property
    def retry_after_s(self) -> float | None:
        """The seconds of a Retry-After (RFC 9110, section 10.2.3): a number, or a date."""
        value = self.retry_after.strip()
        if value.isascii() and value.isdecimal():
            return float(value)
        try:
            moment = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        return max(0.0, (moment - datetime.datetime.now(datetime.UTC)).total_seconds())


class HttpsClient:
    """Sends requests over one connection, which is kept open and replaced when it has to be.

    Only `interrupt` may be called from another thread. Close the client after use.
    """

    def __init__(
        self,
        target: Target,
        *,
        certificate: Path | None,
        private_key: Path,
        ca: Path,
        timeout_s: float,
        max_body: int,
    ) -> None:
        """Take the settings. Each new connection reads the files, so they can be renewed.

        `certificate` and `private_key` are PEM files. `ca` holds the CA certificates that the
        server's certificate must chain to. Without a `certificate` none is sent. `timeout_s`
        bounds each wait: for a connection, for the handshake, for the next part of an answer.
        `max_body` bounds the bytes of an answer's body.
        """
        self._target = target
        self._certificate = certificate
        self._private_key = private_key
        self._ca = ca
        self._timeout_s = timeout_s
        self._max_body = max_body
        self._connection: http.client.HTTPSConnection | None = None
        self._interrupted = False

    def close(self) -> None:
        """Close the connection, if there is one. The next request opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def interrupt(self) -> None:
        """Let the request that is under way in another thread fail."""
        self._interrupted = True
        connection = self._connection
        if connection is not None and (sock := connection.sock) is not None:
            with contextlib.suppress(OSError):
                # Not SSLSocket's own `shutdown`, which drops the TLS state that the thread uses.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def request(self, method: str, path: str, headers: Mapping[str, str] = _NO_HEADERS) -> Answer:
        """Send a request without a body and return the answer, whatever its status.

        If a kept connection turns out to be closed, the request is sent again over a new one: at
        worst the server gets it twice. Raises `SetUpError`, `Refused` or `Unreachable`.
        """
        self._interrupted = False
        if self._connection is not None:
            try:
                return self._exchange(self._connection, method, path, headers, kept=True)
            except _ConnectionClosed:
                pass
        return self._exchange(self._connect(), method, path, headers, kept=False)

    # ------------------------------------------------------------------------------ connecting

    def load_context(self) -> ssl.SSLContext:
        """Read the files. Raises `SetUpError` that names the one that is wrong."""
        # Without create_default_context's VERIFY_X509_STRICT of Python 3.13: certificates made
        # with the openssl command must do.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # TLS 1.2 shows the client certificate, and so the e-mail address, to an eavesdropper.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        _check_readable(self._ca)
        try:
            context.load_verify_locations(self._ca)
        except OSError as error:  # SSLError is one
            raise SetUpError(f"{self._ca} holds no CA certificate in PEM form") from error
        if self._certificate is None:
            return context
        _check_readable(self._certificate)
        _check_readable(self._private_key)
        try:
            context.load_cert_chain(self._certificate, self._private_key, self._no_password)
        except OSError as error:
            if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
                problem = f"{self._private_key} is not the key of {self._certificate}"
            else:
                problem = (
                    f"{self._certificate} and {self._private_key} are not a certificate and its "
                    f"key in PEM form"
                )
            raise SetUpError(problem) from error
        return context

    def _no_password(self) -> NoReturn:
        # OpenSSL would otherwise ask on the terminal, and an unattended client would wait forever.
        raise SetUpError(f"{self._private_key} is encrypted: give a key without a passphrase")

    def _connect(self) -> http.client.HTTPSConnection:
        """Return a new connection, its handshake done as far as this side can tell."""
        connection = http.client.HTTPSConnection(
            self._target.host,
            self._target.port,
            timeout=self._timeout_s,
            context=self.load_context(),
        )
        self._connection = connection  # before it connects, so that `interrupt` can reach it
        try:
            connection.connect()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError | ValueError):  # ValueError: not a valid host name
                raise self._why_not_connected(error) from error
            raise
        return connection

    def _why_not_connected(self, error: OSError | ValueError) -> HttpsError:
        match error:
            case ConnectionRefusedError():
                return Unreachable(f"Nothing listens on {self._target} (connection refused)")
            case ssl.SSLCertVerificationError():
                return Unreachable(self._why_not_trusted(error))
            case OSError() if _is_hang_up(error):
                return Unreachable(f"{self._target} closed the connection during the TLS handshake")
            case ssl.SSLError():
                return self._why_tls_failed(error)
            case TimeoutError():
                return Unreachable(
                    f"No answer from {self._target} within {self._timeout_s:g} seconds"
                )
            case socket.gaierror():
                return Unreachable(
                    f"The host name {self._target.host} was not found ({error.strerror})"
                )
            case OSError():
                return Unreachable(f"{self._target} cannot be reached ({error.strerror or error})")
            case _:
                return Unreachable(f"{self._target.host} is not a host name")

    def _why_not_trusted(self, error: ssl.SSLCertVerificationError) -> str:
        # Codes of OpenSSL's x509_vfy.h: 62 host name mismatch, 64 IP address mismatch.
        if error.verify_code in (62, 64):
            return (
                f"The server's certificate is not for {self._target.host}: "
                f"use the host name that it was issued for"
            )
        return (
            f"The server's certificate is not trusted by {self._ca} "
            f"({printable(error.verify_message)}): give the CA that issued it"
        )

    def _why_tls_failed(self, error: ssl.SSLError) -> HttpsError:
        """Tell a server's alert from a broken handshake."""
        alert = _alert(error)
        if alert is not None:
            return Refused(f"Refused (TLS alert: {alert}): {_ALERTS[alert]}")
        reason = printable(error.reason or str(error))
        return Unreachable(f"{self._target} does not speak TLS as expected ({reason})")

    # ------------------------------------------------------------------------------- exchanging

    def _exchange(
        self,
        connection: http.client.HTTPSConnection,
        method: str,
        path: str,
        headers: Mapping[str, str],
        *,
        kept: bool,
    ) -> Answer:
        """Send the request and read the answer. Raises `_ConnectionClosed` only if `kept`."""
        try:
            with _alert_before_reset(connection):
                connection.request(method, path, headers=dict(headers))
                response = connection.getresponse()
            with response:
                # One byte more than allowed, which shows that there was more.
                body = response.read(self._max_body + 1)
                complete = response.isclosed()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            # A time-out is no sign of a closed connection, and a garbled answer is an answer.
            if kept and not self._interrupted and isinstance(error, ConnectionError | ssl.SSLError):
                raise _ConnectionClosed from error
            raise self._why_no_answer(error) from error
        except BaseException:
            self.close()  # in the middle of an answer
            raise
        if not complete or connection.sock is None:
            self.close()  # the answer is too long, or the server's last on this connection
        return Answer(
            response.status,
            body[: self._max_body],
            whole=len(body) <= self._max_body,
            retry_after=response.headers.get("Retry-After", ""),
        )

    def _why_no_answer(self, error: OSError | http.client.HTTPException) -> HttpsError:
        match error:
            case OSError() if _is_hang_up(error):
                return Unreachable(
                    f"{self._target} closed the connection without an answer "
                    f"(it may have refused the client certificate)"
                )
            case ssl.SSLError():
                return self._why_tls_failed(error)
            case TimeoutError():
                return Unreachable(
                    f"No answer from {self._target} within {self._timeout_s:g} seconds"
                )
            case http.client.HTTPException():
                return Unreachable(f"{self._target} gave an answer that is not HTTP")
            case _:
                return Unreachable(
                    f"The connection to {self._target} broke ({error.strerror or error})"
                )


@contextlib.contextmanager
def _alert_before_reset(connection: http.client.HTTPSConnection) -> Iterator[None]:
    """Prefer the server's reason to the bare fact that it hung up.

    In TLS 1.3 the server checks the client certificate after the client's handshake is done. The
    request may then fail first, while the alert that says why waits to be read.
    """
    try:
        yield
    except (ConnectionError, ssl.SSLError) as error:
        if connection.sock is not None and _alert(error) is None:
            try:
                connection.sock.recv(1)
            except OSError as waiting:
                if _alert(waiting) is not None:
                    raise
        raise


def _check_readable(path: Path) -> None:
    # The ssl module does not say which file it did not find.
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise SetUpError(f"{path} cannot be read ({error.strerror})") from error


def _alert(error: OSError) -> str | None:
    """Return the server's alert about this client, in the words of `_ALERTS`, if it is one."""
    if not isinstance(error, ssl.SSLError):
        return None
    # As `TLSV13_ALERT_CERTIFICATE_REQUIRED`. If this Python does not know the reason of a newer
    # OpenSSL, as `tlsv13 alert certificate required` in the text; once without the word "alert".
    text = f"{error.reason} {error}".replace("_", " ").lower()
    for alert in _ALERTS:
        if re.search(rf"\b(alert|tlsv1) {alert}\b", text):
            return alert
    return None


def _is_hang_up(error: OSError) -> bool:
    """Return whether the other end closed or reset the connection, in any form that takes."""
    if isinstance(error, ssl.SSLError):
        # "SYS" is how Python 3.11 reports a reset.
        return isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or error.library == "SYS"
    return isinstance(error, ConnectionError)  # http.client's RemoteDisconnected is one


def printable(text: str) -> str:
    """Return a server's text on one line, without characters that control a terminal."""
    shown = "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )
    return shown if len(shown) <= MAX_DETAIL else shown[: MAX_DETAIL - 3] + "..."
