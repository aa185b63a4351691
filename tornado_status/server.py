"""The composition root: builds every part, starts them in order, stops them in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import structlog

from tornado_status.alerts import Alerts, load_senders
from tornado_status.announce import Announcer, Publication
from tornado_status.api import (
    Access,
    AccessLog,
    InFlight,
    Streams,
    load_board,
    make_application,
    problem_answer,
)
from tornado_status.config import Settings, TracingSettings, without_effect
from tornado_status.errors import ConfigError, HeadTooSlow, StatusError
from tornado_status.ingress import CheckInPort, Trust, bind
from tornado_status.model import presence
from tornado_status.model.check_in_rate_limit import CheckInRateLimit
from tornado_status.model.records import Event
from tornado_status.observe.expiry_warnings import ExpiryWarnings
from tornado_status.observe.health import Check
from tornado_status.observe.management import ManagementServer
from tornado_status.observe.metrics import MetricSources, make_registry
from tornado_status.observe.readiness import look, look_at_terms
from tornado_status.pki.credentials import Credentials, credential_files, load_credentials
from tornado_status.pki.reload import FileWatcher
from tornado_status.runtime.daemon_executor import DaemonExecutor
from tornado_status.runtime.shutdown import ShutdownDeadline, ShutdownSignals
from tornado_status.runtime.systemd import SystemdNotifier
from tornado_status.welcome import say_serving

if TYPE_CHECKING:
    from tornado_status.observe.tracing import Tracing

# By when a stop is past each of its steps, in shares of server.drain_timeout_s: what one leaves is
# the next one's. The end is for what a broker is still told.
ANSWERED, GOODBYES, REQUESTS, CLOSED = 0.6, 0.65, 0.7, 0.75
TRACED, LEASES, STORE = 0.8, 0.85, 0.95


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then finish what was begun and return.

    Raises `ConfigError` where the settings cannot be put into effect.
    """
    loop = asyncio.get_running_loop()
    loop.set_default_executor(DaemonExecutor())
    deadline = ShutdownDeadline(settings.server.drain_timeout_s)
    ending = ShutdownSignals(deadline.seconds, deadline.begin)
    stop = asyncio.create_task(ending.told.wait(), name="stop signal")
    notifier = SystemdNotifier.from_environment(os.environ)
    try:
        async with AsyncExitStack() as stack:
            running = asyncio.create_task(
                _run(settings, stack, notifier, deadline, ending), name="server"
            )
            await asyncio.wait({running, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                structlog.get_logger().info("stopping")
                notifier.stopping()
                running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
    finally:
        stop.cancel()
        notifier.close()
    if deadline.left_behind:
        ending.leave()


async def _run(
    settings: Settings,
    stack: AsyncExitStack,
    notifier: SystemdNotifier,
    deadline: ShutdownDeadline,
    ending: ShutdownSignals,
) -> None:
    """Start everything onto `stack`, say so, then run until cancelled."""
    loop = asyncio.get_running_loop()
    parts: list[asyncio.Task[None]] = []

    def in_background(part: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(part, name=name)
        parts.append(task)
        stack.push_async_callback(deadline.bound, name, lambda: _cancelled(task))

    for key in without_effect(settings):
        structlog.get_logger().warning("setting has no effect with the others", key=key)
    keys = load_credentials(settings, None)
    sockets = bind(settings.server)
    for sock in sockets:
        stack.callback(sock.close)
    port_number = sockets[0].getsockname()[1]

    if keys.signing is None:
        structlog.get_logger().warning("announcements are not signed: anybody can forge them")
    announcer = Announcer(settings.announce)
    announcer.open()
    stack.push_async_callback(deadline.bound, "announcer", lambda: announcer.close(deadline.left()))

    tracing = _load_tracing(settings.tracing)

    def on_commit(events: Sequence[Event], head: int) -> None:
        announcer.announce(store.log_id, head, events)

    # Imported here: psycopg2 and SQLAlchemy are of no use to --help and to a wrong config.
    from tornado_status.store import Store

    store = Store(
        settings.database,
        enrolment_closed=settings.access.enrolment == "closed",
        on_commit=on_commit if tracing is None else tracing.timed(on_commit),
        when=settings.presence,
        history=settings.history,
        on_batch=None if tracing is None else tracing.batch,
    )
    alerts = Alerts(load_senders(settings.alerts), store.alerts)
    in_flight = InFlight()
    streams = Streams(store.feed, settings.live)
    trust = Trust(keys.anchors, settings.tls.on_expired_crl)
    rate = settings.server.check_ins_per_second
    limit = CheckInRateLimit(rate) if rate else None
    access_log = AccessLog(store.counted)
    access = Access(settings.access.readers, settings.access.admins)
    board = load_board(
        presence.late_after_s(settings.presence.interval_s), settings.presence.offline_after_s
    )

    def answer_of(error: StatusError) -> bytes:
        store.counted.refused(error)
        return problem_answer(error)

    def late() -> bytes:
        return problem_answer(HeadTooSlow())

    port = CheckInPort(
        settings,
        keys.context,
        trust,
        store,
        limit,
        answer_of,
        late,
        lambda peers: make_application(
            store, access, in_flight, peers, limit, access_log, streams, board, tracing
        ),
    )
    publication = Publication(store.publish_announcers)
    in_force = keys

    def checks() -> list[Check]:
        return look(
            settings,
            in_force,
            watcher.problem,
            store.problem,
            store.warnings(),
            announcer.failing(),
        )

    vitals = MetricSources(
        checks=checks,
        terms=lambda: in_force.terms,
        head=lambda: store.head,
        pending=lambda: store.pending,
        connections=lambda: port.connections,
        handshakes=lambda: port.handshakes,
        users=lambda: store.census.users,
        swept_ago_s=lambda: store.sweeper.swept_ago_s,
        gone_offline=lambda: store.sweeper.gone_offline,
        pruned=lambda: store.sweeper.pruned,
        check_ins=store.counted,
        handshake_durations=port.durations,
        refused=port.refused,
        requests=access_log.requests,
        streams=lambda: streams.count,
        streams_ended=streams.ended,
        alerts=alerts.counts,
        spans={} if tracing is None else tracing.spans,
        datagrams_sent=announcer.sent,
        datagrams_refused=announcer.errors,
    )
    management = ManagementServer(
        settings.management,
        checks,
        make_registry(vitals),
        keys.management_context,
        settings.server.header_timeout_s,
        late,
    )
    reminder = ExpiryWarnings(lambda: look_at_terms(settings, in_force))

    def put_in_force(keys: Credentials) -> None:
        nonlocal in_force
        in_force = keys
        port.use(keys.context)
        trust.replace(keys.anchors)
        announcer.signer = keys.signing.signer if keys.signing is not None else None
        publication.use(keys.signing)
        management.use(keys.management_context)

    async def reload() -> None:
        with notifier.reloading():
            put_in_force(await asyncio.to_thread(load_credentials, settings, trust.anchors))
        structlog.get_logger().info("certificates and keys reloaded")
        reminder.again()

    put_in_force(keys)
    reminder.look()
    in_background(reminder.run(), "reminder")
    watcher = FileWatcher(credential_files(settings), reload)
    loop.add_signal_handler(signal.SIGHUP, watcher.tell)
    in_background(watcher.run(), "file watcher")

    def status() -> str:
        return store.problem or "recording check-ins"

    in_background(
        notifier.run(
            # Not whether the database is there: a restart would not bring it back. What a part
            # fails with ends the server, see below: here is whether that has happened.
            healthy=lambda: not any(_failed(part) for part in parts),
            status=status,
        ),
        "notifier",
    )

    if settings.management.port:
        management.listen()
        stack.push_async_callback(deadline.bound, "management port", management.close)

    ending.kill = store.kill
    stack.push_async_callback(deadline.bound, "store", lambda: store.stop(deadline.left(STORE)))
    await store.start()
    if tracing is not None:
        tracing.start()  # not before: PostgreSQL is forked off, and this has a thread
    streams.start()
    stack.push_async_callback(deadline.bound, "alerts", lambda: alerts.stop(deadline.left(LEASES)))

    async def drain() -> None:
        port.drain()
        await store.drain(deadline.left(ANSWERED))
        await streams.close(deadline.left(GOODBYES))
        if not await in_flight.wait_none(deadline.left(REQUESTS)):
            structlog.get_logger().warning("drain timed out", unanswered=in_flight.count)
        # Each closes by itself once its last answer is on its way.
        if not await port.wait_closed(deadline.left(CLOSED)):
            structlog.get_logger().warning("drain timed out, closing connections")
        await port.close()
        if tracing is not None:
            await tracing.close(deadline.left(TRACED))

    stack.push_async_callback(deadline.bound, "drain", drain)
    port.listen(sockets)
    await store.wait_connected()
    announcer.start(lambda: None if store.problem else (store.log_id, store.head))
    await alerts.adopt()
    say_serving(settings, port_number)
    notifier.ready(status())
    alerts.start()
    in_background(publication.run(), "publication")
    await asyncio.gather(
        *(part.wait_failed() for part in (store, streams, announcer)),
        *(asyncio.shield(part) for part in parts),
    )


def _load_tracing(settings: TracingSettings) -> Tracing | None:
    """Return None where traces are off. Raises `ConfigError` where the extra is not installed."""
    if settings.endpoint is None:
        return None
    try:
        from tornado_status.observe.tracing import Tracing
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tracing.endpoint: needs the package {error.name}: pip install 'tornado-status[otel]'"
        ) from error
    return Tracing(settings, settings.endpoint)


def _failed(part: asyncio.Task[None]) -> bool:
    return part.done() and not part.cancelled() and part.exception() is not None


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
