"""One connection to a NATS broker. It never reconnects: the caller opens a new one.

The client library can reconnect by itself, but then buffers messages without saying so. Here it is
known which ones were not confirmed when a connection broke.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from tornado_status.errors import BrokerError, ConfigError
from tornado_status.wire.nats_broker import Broker

if TYPE_CHECKING:
    from tornado_status.wire.nats_client import BoundedClient

CONNECT_S = 3.0  # time-out to connect or close: across a continent it takes a fraction of it
PING_S = 10  # between pings; a broker that misses two is gone, even if TCP has not noticed
RETRY_S = 0.5  # between two attempts: a broker that is back is used within a second
MAX_REASON = 200  # characters of a broker's own text in messages
PENDING_BYTES = 8 * 1024 * 1024  # of the library's write buffer


class NatsConnection:
    """An open connection: the library's `client`, and `ended`, which is set when it breaks."""

    def __init__(self, client: BoundedClient, ended: asyncio.Event, where: str) -> None:
        self.client = client
        self.ended = ended
        self.where = where


def check_files(broker: Broker) -> None:
    """Read every file once, so that a wrong one is reported at the start.

    Raises `ConfigError`, also if the library is missing.
    """
    _library()
    try:
        _context(broker)
        _password(broker)
    except BrokerError as error:
        raise ConfigError(str(error)) from error


@contextlib.asynccontextmanager
async def connected(broker: Broker, name: str) -> AsyncIterator[NatsConnection]:
    """Connect, and close on exit. Raises `BrokerError` with the reason in one sentence."""
    nats = _library()
    from tornado_status.wire.nats_client import BoundedClient

    ended = asyncio.Event()
    last: list[Exception] = []

    async def on_error(error: Exception) -> None:
        last.append(error)
        del last[:-1]

    async def on_closed() -> None:
        ended.set()

    context = _context(broker)
    credentials: dict[str, Any] = {}
    if broker.user is not None:
        password = _password(broker)

        def reveal() -> str:
            # Called after the TLS handshake: an unverified broker must not see the password.
            if context is not None and broker.needs_tls and not context.used:
                raise ConnectionError("the broker offers no TLS, but TLS is required")
            return password

        credentials = {"user": broker.user, "password": reveal}
    client = BoundedClient()
    try:
        try:
            async with asyncio.timeout(CONNECT_S):
                await client.connect(
                    list(broker.addresses),
                    name=name,
                    tls=context,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=CONNECT_S,  # type: ignore[arg-type] # fractions are fine
                    ping_interval=PING_S,
                    max_outstanding_pings=2,
                    pending_size=PENDING_BYTES,
                    error_cb=on_error,
                    closed_cb=on_closed,
                    **credentials,
                )
            if context is not None and broker.needs_tls and not context.used:
                raise ConnectionError("the broker offers no TLS, but TLS is required")
        except (OSError, nats.errors.Error) as error:
            reason: Exception = error
            if isinstance(error, TimeoutError | nats.errors.NoServersError) and last:
                reason = last[-1]
            raise BrokerError("connect", f"cannot reach {broker}: {_sentence(reason)}") from error
        where = client.connected_url.netloc if client.connected_url is not None else str(broker)
        try:
            yield NatsConnection(client, ended, where)
        except Exception as error:
            if client.refused is None:
                raise
            raise BrokerError("broken", f"{broker}: {client.refused}") from error
    finally:
        with contextlib.suppress(OSError, nats.errors.Error):
            async with asyncio.timeout(CONNECT_S):
                await client.close()


def _library() -> Any:
    # Imported here, because it takes longer than the rest of the listener, and is optional.
    try:
        import nats
    except ImportError as error:
        raise ConfigError(
            "NATS needs the package nats-py: pip install 'tornado-status[nats]'"
        ) from error
    return nats


class _Context(ssl.SSLContext):
    """Knows whether it was used: in the library, the broker decides whether TLS is."""

    used = False

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        self.used = True
        return super().wrap_bio(*arguments, **named)


def _context(broker: Broker) -> _Context | None:
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)
    file = broker.ca
    try:
        if file is not None:
            context.load_verify_locations(file)
        else:
            context.load_default_certs()
        file = broker.certificate
        if file is not None:
            context.load_cert_chain(file, broker.private_key, password=_no_passphrase)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason: object = error.strerror if isinstance(error, OSError) else error
        if isinstance(error, ssl.SSLError):
            reason = "no certificate, or not its key"
        raise BrokerError("files", f"cannot use {file}: {reason}") from error
    return context


def _no_passphrase() -> str:
    raise ValueError("its private key needs a passphrase")


def _password(broker: Broker) -> str:
    if broker.password_file is None:
        return ""
    try:
        text = broker.password_file.read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "expected text"
        raise BrokerError("files", f"cannot read {broker.password_file}: {reason}") from error
    return text.rstrip("\r\n")


def _sentence(error: Exception) -> str:
    text = (getattr(error, "strerror", None) or str(error)).removeprefix("nats: ").strip()
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"its certificate is refused: {error.verify_message}"
    elif isinstance(error, TimeoutError) or not text:
        text = "no answer"
    return " ".join(text.split())[:MAX_REASON]
