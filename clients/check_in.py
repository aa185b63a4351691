"""A connection that checks in, and what can go wrong with it, in sentences. It prints nothing.

CheckInError           a check-in that is not known to be recorded
├── SetUpError         the URL or a file is wrong here: nothing was sent
├── Refused            the server said no: asking again changes nothing until something else does
└── Unreachable        no answer, no trusted server or "not now": asking again later may work

Every message is one sentence without control characters, whatever the server sent.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import http
import http.client
import json
import re
import socket
import ssl
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn

METHODS = ("POST", "PUT", "PATCH")

MAX_BODY = 64 * 1024  # of an answer that should have a few hundred bytes
MAX_DETAIL = 300  # characters of the server's text that are shown: one line still bears them

# Not the server's verdict on this client, but on its moment: later may be better.
_NOT_NOW = frozenset({408, 425, 429})

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


class CheckInError(Exception):
    """A check-in that is not known to be recorded. The message is a sentence."""


class SetUpError(CheckInError):
    """The URL or a file is wrong on this side."""


class Refused(CheckInError):
    """The server refused: by a TLS alert, or by an HTTP status that is then in `status`."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(CheckInError):
    """No trusted server took the check-in now.

    `retry_after_s` is the wait that the server asked for, in seconds and unbounded, if it did.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class _Stale(Exception):
    """The kept connection was closed meanwhile: nothing is wrong yet."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to check in: the parts of an https URL."""

    host: str
    port: int
    path: str


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


class Client:
    """Checks in over one connection, which is kept open and made anew when it has to be.

    Not for use by several threads at once. Close it, or use it in a `with` statement.
    """

    def __init__(
        self,
        url: str,
        *,
        certificate: Path | None,
        private_key: Path,
        ca: Path,
        timeout_s: float = 10.0,
        method: str = "POST",
    ) -> None:
        """Take the settings; the files are read at each new connection, so they can be renewed.

        `certificate` and `private_key` are PEM files, `ca` one with the certificates that the
        server's must chain to; without a `certificate` none is sent. `timeout_s` bounds each wait:
        for a connection, for the handshake, for the next part of an answer. Raises `SetUpError`.
        """
        self._target = parse_url(url)
        self._certificate = certificate
        self._private_key = private_key
        self._ca = ca
        self._timeout_s = timeout_s
        self._method = method
        self._connection: http.client.HTTPSConnection | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, if there is one. The next check-in makes another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def check_in(self) -> None:
        """Send one empty request, and return once the server has recorded it (204).

        A kept connection that turns out to be closed is replaced at once, and the request sent
        again: at worst it is recorded twice. Raises `SetUpError`, `Refused` or `Unreachable`.
        """
        if self._connection is not None:
            try:
                self._exchange(self._connection, kept=True)
                return
            except _Stale:
                pass
        self._exchange(self._connect(), kept=False)

    # ------------------------------------------------------------------------------ connecting

    def load_context(self) -> ssl.SSLContext:
        """Read the files. Raises `SetUpError` that names the one that is wrong."""
        # Without create_default_context's VERIFY_X509_STRICT of Python 3.13: certificates made
        # with the openssl command must do.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # TLS 1.2 shows the client certificate, and so the e-mail, to whoever taps the wire.
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
        # Instead of OpenSSL's own question on the terminal, which an unattended client waits in.
        raise SetUpError(f"{self._private_key} is encrypted: give a key without a passphrase")

    def _connect(self) -> http.client.HTTPSConnection:
        """Return a new connection, its handshake done as far as this side can tell."""
        target = self._target
        connection = http.client.HTTPSConnection(
            target.host, target.port, timeout=self._timeout_s, context=self.load_context()
        )
        try:
            connection.connect()
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError | ValueError):  # ValueError: a host name that is none
                raise self._why_not_connected(error) from error
            raise
        self._connection = connection
        return connection

    def _why_not_connected(self, error: OSError | ValueError) -> CheckInError:
        where = f"{self._target.host} port {self._target.port}"
        match error:
            case ConnectionRefusedError():
                return Unreachable(f"Nothing listens on {where} (connection refused)")
            case ssl.SSLCertVerificationError():
                return Unreachable(self._why_not_trusted(error))
            case OSError() if _is_hang_up(error):
                return Unreachable(f"{where} closed the connection during the TLS handshake")
            case ssl.SSLError():
                return _why_tls_failed(error, where)
            case TimeoutError():
                return Unreachable(f"No answer from {where} within {self._timeout_s:g} seconds")
            case socket.gaierror():
                return Unreachable(
                    f"The host name {self._target.host} was not found ({error.strerror})"
                )
            case OSError():
                return Unreachable(f"{where} cannot be reached ({error.strerror or error})")
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

    # ------------------------------------------------------------------------------- exchanging

    def _exchange(self, connection: http.client.HTTPSConnection, *, kept: bool) -> None:
        """Send the request and judge the answer. Raises `_Stale` only where `kept`."""
        try:
            with _alert_before_reset(connection):
                connection.request(self._method, self._target.path)
                response = connection.getresponse()
            with response:
                body = response.read(MAX_BODY)
                complete = response.isclosed()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            # A timeout is no sign of a closed connection, and a garbled answer is an answer.
            if kept and isinstance(error, ConnectionError | ssl.SSLError):
                raise _Stale from error
            raise self._why_no_answer(error) from error
        except BaseException:
            self.close()  # in the middle of an answer
            raise
        if not complete or connection.sock is None:
            self.close()  # too long an answer, or the server's last on this connection
        if response.status == http.HTTPStatus.NO_CONTENT:
            return
        failure = _judge(response, body)
        if isinstance(failure, Refused):
            self.close()  # a new connection reads the files anew: they may have been renewed
        raise failure

    def _why_no_answer(self, error: OSError | http.client.HTTPException) -> CheckInError:
        where = f"{self._target.host} port {self._target.port}"
        match error:
            case OSError() if _is_hang_up(error):
                return Unreachable(
                    f"{where} closed the connection without an answer "
                    f"(it may have refused the client certificate)"
                )
            case ssl.SSLError():
                return _why_tls_failed(error, where)
            case TimeoutError():
                return Unreachable(f"No answer from {where} within {self._timeout_s:g} seconds")
            case http.client.HTTPException():
                return Unreachable(f"{where} gave an answer that is not HTTP")
            case _:
                return Unreachable(f"The connection to {where} broke ({error.strerror or error})")


@contextlib.contextmanager
def _alert_before_reset(connection: http.client.HTTPSConnection) -> Iterator[None]:
    """Prefer the server's reason to the bare fact that it hung up.

    In TLS 1.3 a client certificate is judged when the client believes the handshake done: sending
    the request may fail first, while the alert that says why waits to be read.
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
    # Because the ssl module does not say which file it did not find.
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise SetUpError(f"{path} cannot be read ({error.strerror})") from error


def _alert(error: OSError) -> str | None:
    """Return the server's alert about this client, in the words of `_ALERTS`, if it is one."""
    if not isinstance(error, ssl.SSLError):
        return None
    # As `TLSV13_ALERT_CERTIFICATE_REQUIRED`, or `tlsv13 alert certificate required` in the text
    # where this Python does not know the reason of a newer OpenSSL; once without the word "alert".
    text = f"{error.reason} {error}".replace("_", " ").lower()
    for alert in _ALERTS:
        if re.search(rf"\b(alert|tlsv1) {alert}\b", text):
            return alert
    return None


def _is_hang_up(error: OSError) -> bool:
    """Whether the other end closed or reset the connection, in any of the forms that takes."""
    if isinstance(error, ssl.SSLError):
        # "SYS" is how Python 3.11 reports a reset.
        return isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or error.library == "SYS"
    return isinstance(error, ConnectionError)  # http.client's RemoteDisconnected is one


def _why_tls_failed(error: ssl.SSLError, where: str) -> CheckInError:
    """Tell a server's alert from a broken handshake."""
    alert = _alert(error)
    if alert is not None:
        return Refused(f"Refused (TLS alert: {alert}): {_ALERTS[alert]}")
    return Unreachable(
        f"{where} does not speak TLS as expected ({printable(error.reason or str(error))})"
    )


def _judge(response: http.client.HTTPResponse, body: bytes) -> CheckInError:
    """Return what an answer other than 204 means."""
    status = response.status
    try:
        title = f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        title = str(status)
    detail = _detail(body)
    because = f": {detail}" if detail else ""
    if status in _NOT_NOW or status >= 500:
        return Unreachable(f"Not now ({title}){because}", _retry_after(response))
    if 400 <= status < 500:
        return Refused(f"Refused ({title}){because}", status)
    return Refused(f"Not recorded ({title}): expected 204, so this may be the wrong URL", status)


def _detail(body: bytes) -> str | None:
    """Return the sentence of a problem+json body (RFC 9457), if there is one."""
    try:
        problem: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    detail = problem.get("detail") if isinstance(problem, dict) else None
    return printable(detail) if isinstance(detail, str) and detail else None


def _retry_after(response: http.client.HTTPResponse) -> float | None:
    """Return the seconds of a Retry-After (RFC 9110, section 10.2.3): a number, or a date."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return max(0.0, (moment - datetime.datetime.now(datetime.UTC)).total_seconds())


def printable(text: str) -> str:
    """Return a stranger's text on one line, without anything that a terminal would obey."""
    shown = "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )
    return shown if len(shown) <= MAX_DETAIL else shown[: MAX_DETAIL - 3] + "..."
