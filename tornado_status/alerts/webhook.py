"""One receiver over HTTP: certificates are verified, redirects not followed, all waits bounded.

Each receiver has a connection of its own, so that a slow one delays no other.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tornado.httpclient import HTTPRequest
from tornado.httputil import HTTPInputError
from tornado.iostream import UnsatisfiableReadError
from tornado.netutil import Resolver
from tornado.simple_httpclient import HTTPTimeoutError, SimpleAsyncHTTPClient, _HTTPConnection

from tornado_status.runtime.resolver import look_up

# Bytes of an answer's headers, and of its body, whose content does not matter. More is an error.
MAX_ANSWER = 64 * 1024
MAX_RETRY_AFTER_S = 3600.0  # of a receiver that asks for a longer pause


class NotDelivered(Exception):
    """The receiver did not answer 2xx. The message has its host and the reason, never the URL."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Webhook:
    """Posts to one URL, one request at a time. `context` verifies its certificate."""

    def __init__(self, url: str, context: ssl.SSLContext, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        parts = urlsplit(url)
        self.where = (
            f"{parts.hostname} port {parts.port or (443 if parts.scheme == 'https' else 80)}"
        )
        self._context = context
        self._resolver = _Resolver(timeout_s=timeout_s)
        self._client: SimpleAsyncHTTPClient | None = None

    def use(self, context: ssl.SSLContext) -> None:
        """Verify with another context, from the next request on."""
        self._context = context

    async def post(self, body: bytes, headers: Mapping[str, str]) -> int:
        """Return the status, a 2xx. Raises `NotDelivered`."""
        if self._client is None:
            self._client = _Client(
                force_instance=True,
                max_clients=1,
                resolver=self._resolver,
                max_body_size=MAX_ANSWER,
                max_header_size=MAX_ANSWER,
            )
        request = HTTPRequest(
            self._url,
            method="POST",
            headers={"Content-Type": "application/json", **headers},
            body=body,
            follow_redirects=False,
            decompress_response=False,
            connect_timeout=self._timeout_s,
            request_timeout=self._timeout_s,
            ssl_options=self._context,
            user_agent="tornado-status",
        )
        try:
            response = await self._client.fetch(request, raise_error=False)
        except HTTPTimeoutError as error:
            raise NotDelivered(f"no answer from {self.where} in {self._timeout_s:g} s") from error
        except ssl.SSLCertVerificationError as error:
            raise NotDelivered(
                f"the certificate of {self.where} is not trusted ({error.verify_message})"
            ) from error
        except Exception as error:
            # The receiver chooses the answer, so also what reading it raises.
            raise NotDelivered(f"no answer from {self.where} ({_reason(error)})") from error
        if 200 <= response.code < 300:
            return response.code
        followed = ": redirects are not followed" if 300 <= response.code < 400 else ""
        raise NotDelivered(
            f"{self.where} answered {response.code}{followed}",
            _seconds(response.headers.get("Retry-After", "")),
        )

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


class _Client(SimpleAsyncHTTPClient):
    def _connection_class(self) -> type:
        return _Connection


class _Connection(_HTTPConnection):
    def on_connection_close(self) -> None:
        """See `HTTPMessageDelegate.on_connection_close`. An error in a body is the answer's.

        Tornado raises it here: it is logged with its traceback, and the request goes on.
        """
        error = self.stream.error
        if isinstance(error, UnsatisfiableReadError):
            error = HTTPInputError("its chunks cannot be read")
        if error is None or self.final_callback is None:
            super().on_connection_close()
        else:
            self._handle_exception(type(error), error, error.__traceback__)


class _Resolver(Resolver):
    """Looks names up in daemon threads, so that a dead resolver delays no shutdown."""

    @classmethod
    def configurable_base(cls) -> type[Resolver]:
        return _Resolver

    @classmethod
    def configurable_default(cls) -> type[Resolver]:
        return _Resolver

    def initialize(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def close(self) -> None:
        pass

    async def resolve(
        self, host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[tuple[int, Any]]:
        return await look_up(host, port, timeout_s=self._timeout_s, family=family)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnsatisfiableReadError):
        return f"its headers are longer than {MAX_ANSWER // 1024} KiB"
    # Neither our messages nor those of Tornado have a URL in them.
    return " ".join(str(error).split())[:200] or type(error).__name__


def _seconds(text: str) -> float:
    text = text.strip()
    number = float(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0.0
    return min(number, MAX_RETRY_AFTER_S)
