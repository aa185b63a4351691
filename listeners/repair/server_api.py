"""What was missed, over HTTPS: the log, everybody's record, and who announces. Standard library.

ServerError            the server did not give what was asked for; the message is a sentence
├── Refused            it says no: asking again changes nothing until something else does
├── Gone               it does not keep the events asked for (410)
└── Unreachable        no answer, no trusted server, "not now", or an answer that contradicts itself

One connection, kept, in a thread of its own: it blocks on nobody's behalf but its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import queue
import re
import socket
import ssl
import threading
import urllib.parse
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from listeners.repair import api_responses
from tornado_status.errors import ConfigError
from tornado_status.model.records import EventPage, UserPage

T = TypeVar("T")

TIMEOUT_S = 10.0  # for a connection, a handshake, the next part of an answer
ANSWER_TIMEOUT_S = 60.0  # for a whole answer, however slowly it drips
MAX_BODY = 2 * 1024 * 1024  # four times the largest page that is asked for
MAX_DETAIL = 300  # characters of the server's text that are shown

# About this client's certificate (RFC 8446, section 6.2), in OpenSSL's words.
_ALERT = re.compile(
    r"\b(?:alert|tlsv1) (certificate required|unknown ca|certificate expired|certificate revoked"
    r"|unsupported certificate|bad certificate|certificate unknown|access denied|decrypt error"
    r"|handshake failure|protocol version|insufficient security|unrecognized name)\b"
)
_NOT_NOW = frozenset({408, 425, 429})


class ServerError(Exception):
    """The server did not give what was asked for. The message is a sentence."""


class Refused(ServerError):
    """By a TLS alert, or by a 4xx status."""


class Gone(ServerError):
    """The events are pruned, or not reached."""


class Unreachable(ServerError):
    """Later may be better; `retry_after_s` is what the server asked for, if it did."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Server:
    """Asks one server, one thing at a time. Close it.

    `certificate` and `private_key` are a reader's, `ca` what the server's certificate must chain
    to, all PEM files; they are read at each new connection, so they can be renewed. Raises
    `ConfigError` for a URL or a file that cannot be right.
    """

    def __init__(self, url: str, certificate: Path, private_key: Path, ca: Path) -> None:
        self._host, self._port, self._prefix = _parse_url(url)
        self._certificate = certificate
        self._private_key = private_key
        self._ca = ca
        self._load_context()
        self._connection: http.client.HTTPSConnection | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.where = f"{self._host} port {self._port}"

    async def announcers(self) -> tuple[uuid.UUID, list[str]]:
        """Return the stream, and the certificates of those who announce (PEM)."""
        return await self._ask("/api/announcers", api_responses.announcers)

    async def events(self, after: int, limit: int) -> EventPage:
        """Return a page of the log. Raises `Gone` where it is not there."""
        path = f"/api/events?after={after}&limit={limit}"
        return await self._ask(path, lambda body: api_responses.events(body, after))

    async def users(self, path: str | None, limit: int) -> UserPage:
        """Return a page of records: the one at `path`, or the first."""
        return await self._ask(path or f"/api/users?limit={limit}", api_responses.users)

    def close(self) -> None:
        """Close the connection; a request under way fails."""
        self._closed = True
        self._jobs.put(None)
        self._interrupt()

    # ------------------------------------------------------------------------- on the event loop

    async def _ask(self, path: str, parse: Callable[[bytes], T]) -> T:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type] # a result where no error is

        def job() -> None:
            result, error = None, None
            try:
                result = parse(self._get(path))
            except api_responses.AnswerError as wrong:
                error = Unreachable(f"{self.where} gave a wrong answer: {wrong}")
            except ConfigError as wrong:  # a file that is being renewed right now
                error = Unreachable(str(wrong))
            except Exception as problem:  # it is raised again on the loop's side
                error = problem  # type: ignore[assignment] # of whatever kind
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, result, error)

        if self._thread is None:
            # A daemon, because nothing can interrupt a name lookup: the process ends without it.
            self._thread = threading.Thread(target=self._work, name="repair", daemon=True)
            self._thread.start()
        self._jobs.put(job)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await answer
        except TimeoutError:
            self._interrupt()
            raise Unreachable(
                f"No whole answer from {self.where} within {ANSWER_TIMEOUT_S:g} seconds"
            ) from None

    def _interrupt(self) -> None:
        connection = self._connection
        if connection is not None and (sock := connection.sock) is not None:
            with contextlib.suppress(OSError):
                # Not SSLSocket's own, which takes away the TLS state that the thread works with.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    # ------------------------------------------------------------------------------ in the thread

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
        self._disconnect()

    def _get(self, path: str) -> bytes:
        kept = self._connection is not None
        try:
            return self._exchange(path)
        except (ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
            self._disconnect()
            if not kept or self._closed:
                raise self._why_no_answer(error) from error
        except OSError as error:
            self._disconnect()
            raise self._why_no_answer(error) from error
        except BaseException:
            self._disconnect()
            raise
        # A kept connection was closed meanwhile: nothing is wrong yet.
        try:
            return self._exchange(path)
        except (OSError, http.client.HTTPException) as error:
            self._disconnect()
            raise self._why_no_answer(error) from error
        except BaseException:
            self._disconnect()
            raise

    def _exchange(self, path: str) -> bytes:
        if self._connection is None:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=TIMEOUT_S, context=self._load_context()
            )
            self._connection = connection
            try:
                connection.connect()
            except ValueError as error:  # a host name that is none
                raise Unreachable(f"{self._host} is not a host name") from error
        connection = self._connection
        try:
            connection.request("GET", self._prefix + path, headers={"Accept": "application/json"})
            response = connection.getresponse()
        except (ConnectionError, ssl.SSLError) as error:
            # In TLS 1.3 the alert about our certificate may wait behind a failed write.
            if connection.sock is not None and _alert(error) is None:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    connection.sock.recv(1)
            raise
        with response:
            body = response.read(MAX_BODY + 1)
        if len(body) > MAX_BODY or connection.sock is None or response.will_close:
            self._disconnect()
        if len(body) > MAX_BODY:
            raise Unreachable(f"{self.where} gave an answer of more than {MAX_BODY} bytes")
        if response.status == http.HTTPStatus.OK:
            return body
        raise _judge(response, body, self.where)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _load_context(self) -> ssl.SSLContext:
        # Without create_default_context's VERIFY_X509_STRICT of Python 3.13: certificates made
        # with the openssl command must do.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3  # 1.2 shows the certificate to a tapper
        for path in (self._ca, self._certificate, self._private_key):
            try:
                with path.open("rb"):
                    pass
            except OSError as error:
                raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
        try:
            context.load_verify_locations(self._ca)
        except OSError as error:
            raise ConfigError(f"--ca: {self._ca} holds no CA certificate in PEM form") from error
        try:
            context.load_cert_chain(self._certificate, self._private_key, self._no_password)
        except OSError as error:
            raise ConfigError(
                f"--cert, --key: {self._certificate} and {self._private_key} are not a certificate "
                f"and its key in PEM form"
            ) from error
        return context

    def _no_password(self) -> NoReturn:
        # Instead of OpenSSL's own question on the terminal.
        raise ConfigError(f"--key: {self._private_key} is encrypted: give one without a passphrase")

    def _why_no_answer(self, error: OSError | http.client.HTTPException) -> ServerError:
        alert = _alert(error)
        if alert is not None:
            return Refused(f"{self.where} refused the client certificate (TLS alert: {alert})")
        match error:
            case ConnectionRefusedError():
                return Unreachable(f"Nothing listens on {self.where} (connection refused)")
            case ssl.SSLCertVerificationError():
                reason = _printable(error.verify_message)
                return Unreachable(
                    f"The certificate of {self.where} is not trusted by {self._ca} ({reason})"
                )
            case ssl.SSLEOFError() | ssl.SSLZeroReturnError() | ConnectionError():
                return Unreachable(f"{self.where} closed the connection without an answer")
            case ssl.SSLError():
                reason = _printable(error.reason or str(error))
                return Unreachable(f"{self.where} does not speak TLS as expected ({reason})")
            case TimeoutError():
                return Unreachable(f"No answer from {self.where} within {TIMEOUT_S:g} seconds")
            case socket.gaierror():
                return Unreachable(f"The host name {self._host} was not found ({error.strerror})")
            case http.client.HTTPException():
                return Unreachable(f"{self.where} gave an answer that is not HTTP")
            case _:
                return Unreachable(f"{self.where} cannot be reached ({error.strerror or error})")


def _parse_url(url: str) -> tuple[str, int, str]:
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    plain = url.isascii() and url.isprintable() and " " not in url
    if not plain or not host or parts.scheme != "https" or parts.query or parts.fragment:
        raise ConfigError(f"--url: expected https://HOST[:PORT], got {url!a}")
    return host, port or 443, parts.path.rstrip("/")


def _judge(response: http.client.HTTPResponse, body: bytes, where: str) -> ServerError:
    status = response.status
    detail = _detail(body)
    sentence = f"{where} answered {status}{f': {detail}' if detail else ''}"
    if status == http.HTTPStatus.GONE:
        return Gone(sentence)
    if status in _NOT_NOW or not 400 <= status < 500:
        value = response.headers.get("Retry-After", "").strip()
        seconds = float(value) if value.isascii() and value.isdecimal() else None
        return Unreachable(sentence, seconds)
    return Refused(sentence)


def _detail(body: bytes) -> str | None:
    """Return the sentence of a problem+json body (RFC 9457), if there is one."""
    try:
        problem: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    detail = problem.get("detail") if isinstance(problem, dict) else None
    return _printable(detail) if isinstance(detail, str) and detail else None


def _alert(error: BaseException) -> str | None:
    if not isinstance(error, ssl.SSLError):
        return None
    found = _ALERT.search(f"{error.reason} {error}".replace("_", " ").lower())
    return found[1] if found else None


def _printable(text: str) -> str:
    """Return a stranger's text on one line, without anything that a terminal would obey."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return shown if len(shown) <= MAX_DETAIL else shown[: MAX_DETAIL - 3] + "..."
