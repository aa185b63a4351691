"""The composition root: builds every part, starts them in order, stops them in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from tornado.web import Application

from tornado_status.alerts import Alerts, load_senders
from tornado_status.announce import Announcer, GroupKeyKeeper, Publication, reader_hash
from tornado_status.api import (
    Access,
    AccessLog,
    RequestsInFlight,
    Subscriptions,
    load_board,
    make_application,
    problem_answer,
)
from tornado_status.config.settings import Settings, TracingSettings, without_effect
from tornado_status.errors import ConfigError, HeadTooSlow, StatusError
from tornado_status.ingress import CheckInPort, Trust, bind
from tornado_status.model.check_in_rate_limit import CheckInRateLimit
from tornado_status.model.records import CommittedBatch
from tornado_status.observe import metrics
from tornado_status.observe.expiry_warnings import ExpiryWarnings
from tornado_status.observe.health import Check
from tornado_status.observe.management import ManagementServer
from tornado_status.observe.metrics import make_registry
from tornado_status.observe.readiness import (
    check_metrics,
    expiry_checks,
    expiry_metrics,
    readiness_checks,
)
from tornado_status.pki.credentials import Credentials, credential_files, load_credentials
from tornado_status.pki.crl import CRLMark
from tornado_status.pki.crl_register import CRLRegister
from tornado_status.pki.reload import FileWatcher
from tornado_status.runtime import background_output
from tornado_status.runtime.daemon_executor import DaemonExecutor
from tornado_status.runtime.read_watch import ReadWatch
from tornado_status.runtime.shutdown import ShutdownDeadline, ShutdownSignals
from tornado_status.runtime.systemd import SystemdNotifier
from tornado_status.startup_banner import announce_serving

if TYPE_CHECKING:
    from tornado_status.ingress.authentication import ConnectionAuthenticator
    from tornado_status.ingress.behind_proxy.request_authentication import RequestAuthenticator
    from tornado_status.observe.tracing import Tracing
    from tornado_status.store import Store
    from tornado_status.wire.sealed_datagram import Sealer

# When each step of the stop must be over, as a share of server.drain_timeout_s. A step that needs
# less leaves its time to the next one. The rest is for the last messages to a broker.
ANSWERED, GOODBYES, REQUESTS, CLOSED = 0.6, 0.65, 0.7, 0.75
TRACED, LEASES, STORE = 0.8, 0.85, 0.95


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then finish the work under way and return.

    Raises `ConfigError` if the settings cannot be put into effect.
    """
    asyncio.get_running_loop().set_default_executor(DaemonExecutor())
    deadline = ShutdownDeadline(settings.server.drain_timeout_s)
    signals = ShutdownSignals(deadline.seconds, deadline.begin)
    signaled = asyncio.create_task(signals.received.wait(), name="stop signal")
    notifier = SystemdNotifier.from_environment(os.environ)
    try:
        server = Server(settings, deadline, notifier)
        signals.kill = server.kill
        await _run_until(signaled, server, notifier)
    finally:
        signaled.cancel()
        notifier.close()
    if deadline.left_behind:
        signals.leave()


async def _run_until(
    signaled: asyncio.Task[Any], server: Server, notifier: SystemdNotifier
) -> None:
    running = asyncio.create_task(server.run(), name="server")
    try:
        await asyncio.wait({running, signaled}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            structlog.get_logger().info("stopping")
            notifier.stopping()
            running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    finally:
        await server.stop()


class Server:
    """All parts of one server process.

    Each step of `start` registers how `stop` ends it, so that a start that fails or is cancelled
    is undone as far as it came. `deadline` bounds the stop.
    """

    def __init__(
        self, settings: Settings, deadline: ShutdownDeadline, notifier: SystemdNotifier
    ) -> None:
        self._settings = settings
        self._deadline = deadline
        self._notifier = notifier
        self._log = structlog.get_logger()
        self._stops = AsyncExitStack()
        self._background: list[asyncio.Task[None]] = []

        self._credentials = load_credentials(settings, None)
        self._trust = Trust(self._credentials.anchors, settings.tls.on_expired_crl)
        self._announcer = Announcer(settings.announce)
        self._tracing = _load_tracing(settings.tracing)
        self._group_keys = GroupKeyKeeper(
            lambda readers: self._store.keep_group_keys(readers), self._use_sealer
        )
        self._store = self._make_store()
        self._publication = Publication(self._store.publish_announcers)
        self._crl_register = CRLRegister(self._store.record_crls)
        senders = load_senders(settings.alerts, self._credentials.webhook_contexts)
        self._alerts = Alerts(senders, self._store.alerts)
        self._subscriptions = Subscriptions(self._store.feed, settings.live)
        self._in_flight = RequestsInFlight()
        self._access_log = AccessLog(self._store.counters)
        self._port = self._make_port()
        self._watcher = FileWatcher(credential_files(settings), self._reload)
        self._expiry_warnings = ExpiryWarnings(self._expiry_checks)
        self._management = self._make_management()

    async def start(self) -> None:
        """Start every part in order, and return once the server serves.

        Raises `ConfigError` if a port, an interface, a file or the database cannot be used.
        """
        self._stops.callback(ReadWatch().close)
        self._warn_of_settings()
        self._bind()
        self._open_announcer()
        self._watch_credentials()
        self._report_to_systemd()
        self._listen_for_management()
        await self._start_store()
        self._start_readers()
        self._accept_connections()
        await self._store.wait_connected()
        self._record_crls()
        self._keep_group_keys()
        self._announcer.start(self._log_position)
        await self._alerts.register()
        announce_serving(self._settings, self._sockets[0].getsockname()[1])
        self._notifier.ready(self._status())
        self._alerts.start()
        self._in_background(self._publication.run(), "publication")

    async def run(self) -> None:
        """Start, then run until cancelled. Raises the error of the first part that fails."""
        await self.start()
        await asyncio.gather(
            *(part.wait_failed() for part in (self._store, self._subscriptions, self._announcer)),
            *(asyncio.shield(task) for task in self._background),
        )

    async def stop(self) -> None:
        """Stop all that was started, in reverse order, each part within its share of the time."""
        await self._stops.aclose()

    def kill(self) -> None:
        """End at once what must not outlive this process: an embedded PostgreSQL."""
        self._store.kill()

    # ------------------------------------------------------------------ the steps of the start

    def _warn_of_settings(self) -> None:
        for key in without_effect(self._settings):
            self._log.warning("setting has no effect with the others", key=key)
        if self._credentials.signing is None:
            self._log.warning("announcements are not signed, they can be forged")

    def _bind(self) -> None:
        self._sockets = bind(self._settings.server)
        for sock in self._sockets:
            self._stops.callback(sock.close)

    def _open_announcer(self) -> None:
        self._announcer.open()
        self._at_stop("announcer", lambda: self._announcer.close(self._deadline.left()))

    def _watch_credentials(self) -> None:
        self._put_in_force(self._credentials)
        self._expiry_warnings.check()
        self._in_background(self._expiry_warnings.run(), "expiry warnings")
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._watcher.reload_now)
        self._in_background(self._watcher.run(), "file watcher")

    def _report_to_systemd(self) -> None:
        # Healthy does not mean that the database is there: a restart would not bring it back.
        self._in_background(
            self._notifier.run(healthy=self._is_healthy, status=self._status), "notifier"
        )

    def _listen_for_management(self) -> None:
        if self._settings.management.port:
            self._management.listen()
            self._at_stop("management port", self._management.close)

    async def _start_store(self) -> None:
        self._at_stop("store", lambda: self._store.stop(self._deadline.left(STORE)))
        await self._store.start()
        if self._tracing is not None:
            self._tracing.start()

    def _start_readers(self) -> None:
        self._subscriptions.start()
        self._at_stop("alerts", lambda: self._alerts.stop(self._deadline.left(LEASES)))

    def _accept_connections(self) -> None:
        self._at_stop("drain", self._drain)
        self._port.listen(self._sockets)

    def _record_crls(self) -> None:
        # The store has compared them with those of other servers: see `CRLRegister.check`.
        if self._settings.tls.crl is not None:
            self._in_background(self._crl_register.run(), "CRL register")

    def _keep_group_keys(self) -> None:
        if self._settings.announce.has_sealed:
            self._in_background(self._group_keys.run(), "group keys")

    async def _drain(self) -> None:
        """Answer what was read, say goodbye to live streams, then close every connection."""
        left = self._deadline.left
        self._port.drain()
        await self._store.drain(left(ANSWERED))
        await self._subscriptions.close(left(GOODBYES))
        if not await self._in_flight.wait_none(left(REQUESTS)):
            self._log.warning("drain timed out", unanswered=self._in_flight.count)
        # A connection closes by itself once its last answer is on its way.
        if not await self._port.wait_closed(left(CLOSED)):
            self._log.warning("drain timed out, closing connections")
        await self._port.close()
        if self._tracing is not None:
            await self._tracing.close(left(TRACED))

    def _in_background(self, part: Coroutine[Any, Any, None], name: str) -> None:
        """Run `part` until the stop. If it fails, `run` raises its error."""
        task = asyncio.create_task(part, name=name)
        self._background.append(task)
        self._at_stop(name, lambda: _cancel(task))

    def _at_stop(self, name: str, stop: Callable[[], Awaitable[None]]) -> None:
        self._stops.push_async_callback(self._deadline.bound, name, stop)

    # ------------------------------------------------------------------ how the parts are made

    def _make_store(self) -> Store:
        # Imported here: --help and a wrong setting need neither psycopg2 nor SQLAlchemy.
        from tornado_status.store import Store

        settings, tracing, announce = self._settings, self._tracing, self._announcer.announce
        return Store(
            settings.database,
            enrolment_closed=settings.access.enrolment == "closed",
            subscribers=[announce if tracing is None else tracing.timed(announce)],
            when=settings.presence,
            history=settings.history,
            on_batch=None if tracing is None else tracing.batch,
            check_crls=self._check_crls,
            sealing=self._group_keys if settings.announce.has_sealed else None,
        )

    def _make_port(self) -> CheckInPort:
        per_second = self._settings.server.check_ins_per_second
        self._rate_limit = CheckInRateLimit(per_second) if per_second else None
        return CheckInPort(
            self._settings,
            self._credentials.context,
            self._trust,
            self._store.submit,
            self._rate_limit,
            self._refusal,
            _head_timeout,
            self._make_application,
        )

    def _make_application(
        self, authenticator: ConnectionAuthenticator | RequestAuthenticator
    ) -> Application:
        settings = self._settings
        return make_application(
            self._store,
            Access(settings.access.readers, settings.access.admins),
            self._in_flight,
            authenticator,
            self._rate_limit,
            self._access_log,
            self._subscriptions,
            settings.presence.times,
            load_board(),
            self._tracing,
        )

    def _make_management(self) -> ManagementServer:
        return ManagementServer(
            self._settings.management,
            self._checks,
            self._register_metrics(),
            self._credentials.management_context,
            self._settings.server.header_timeout_s,
            _head_timeout,
        )

    def _register_metrics(self) -> CollectorRegistry:
        parts = [
            lambda: check_metrics(self._checks()),
            lambda: expiry_metrics(self._credentials.validities),
            self._store.metrics,
            self._port.metrics,
            self._access_log.metrics,
            self._subscriptions.metrics,
            self._announcer.metrics,
            self._alerts.metrics,
            _log_metrics,
        ]
        if self._tracing is not None:
            parts.append(self._tracing.metrics)
        return make_registry(parts)

    # ------------------------------------------------------------------ what the parts ask for

    def _log_position(self) -> CommittedBatch | None:
        """Return the batch without events for heartbeats; None while the database is away."""
        return None if self._store.problem else self._store.position

    def _use_sealer(self, sealer: Sealer) -> None:
        self._announcer.sealer = sealer

    def _check_crls(self, marks: Sequence[CRLMark]) -> None:
        """Raises `ConfigError` if a CRL is older than one that was in force."""
        if self._settings.tls.crl is not None:
            self._crl_register.check(marks)

    def _refusal(self, error: StatusError) -> bytes:
        """Count a check-in that failed, and return its whole response."""
        self._store.counters.refused(error)
        return problem_answer(error)

    def _checks(self) -> list[Check]:
        return readiness_checks(
            self._settings,
            self._credentials,
            self._watcher.problem,
            self._store.problem,
            self._store.warnings(),
            self._store.presence_warnings(),
            self._announcer.failing(),
        )

    def _expiry_checks(self) -> list[Check]:
        return expiry_checks(self._settings, self._credentials)

    def _status(self) -> str:
        return self._store.problem or "recording check-ins"

    def _is_healthy(self) -> bool:
        """Return whether all background parts run. A failed one is about to end the server."""
        return not any(_failed(task) for task in self._background)

    async def _reload(self) -> None:
        """Read the files with certificates and keys anew. Raises `ConfigError`."""
        with self._notifier.reloading():
            self._put_in_force(
                await asyncio.to_thread(
                    load_credentials,
                    self._settings,
                    self._trust.anchors,
                    self._crl_register.marks,
                )
            )
        self._log.info("certificates and keys reloaded")
        self._expiry_warnings.restart()

    def _put_in_force(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._port.use(credentials.context)
        self._trust.replace(credentials.anchors)
        signing = credentials.signing
        self._announcer.signer = signing.signer if signing is not None else None
        self._publication.use(signing)
        self._crl_register.use(credentials.anchors)
        access = self._settings.access
        self._group_keys.restrict_to(
            reader_hash(access.readers, access.admins, credentials.anchors)
        )
        self._management.use(credentials.management_context)
        self._alerts.use(credentials.webhook_contexts)


def _load_tracing(settings: TracingSettings) -> Tracing | None:
    """Return None if traces are off. Raises `ConfigError` if the extra is not installed."""
    if settings.endpoint is None:
        return None
    try:
        from tornado_status.observe.tracing import Tracing
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tracing.endpoint: needs the package {error.name}: pip install 'tornado-status[otel]'"
        ) from error
    return Tracing(settings, settings.endpoint)


def _log_metrics() -> list[Metric]:
    lines = background_output.dropped()
    return [metrics.counter("log_lines_dropped", "Log lines that were not written", lines)]


def _head_timeout() -> bytes:
    return problem_answer(HeadTooSlow())


def _failed(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
