"""The composition root: builds every part, starts them in order, stops them in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog
from tornado.httpserver import HTTPServer

from tornado_status.admin import AdminServer, Vitals
from tornado_status.announce import Announcer, Publication, Signing, load_signing
from tornado_status.api import Access, InFlight, make_application, problem_answer
from tornado_status.checkin import Event
from tornado_status.config import EMBEDDED, Server, Settings, without_effect
from tornado_status.ingress import (
    READ_CHUNK,
    Acceptor,
    Anchors,
    Answers,
    CheckInService,
    FileWatcher,
    Judge,
    PeerStream,
    Trust,
    bind,
    load_anchors,
    quick_stream_class,
    self_test,
    server_context,
)
from tornado_status.limits import CheckInLimit

# A request's head; what browsers and proxies send is far below. One less than two reads: at exactly
# two Tornado would wait for more, with the rest inside OpenSSL, where the loop cannot see it.
MAX_HEAD = 2 * READ_CHUNK - 1
MAX_BODY = 4096  # read and ignored


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then finish what was begun and return.

    Raises `ConfigError` where the settings cannot be put into effect.
    """
    loop = asyncio.get_running_loop()
    told_to_stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, told_to_stop.set)
    stop = asyncio.create_task(told_to_stop.wait(), name="stop signal")
    try:
        async with AsyncExitStack() as stack:
            running = asyncio.create_task(_run(settings, stack), name="server")
            await asyncio.wait({running, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                structlog.get_logger().info("stopping")
                running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
    finally:
        stop.cancel()


async def _run(settings: Settings, stack: AsyncExitStack) -> None:
    """Start everything onto `stack`, say so, then run until cancelled."""
    for key in without_effect(settings):
        structlog.get_logger().warning("setting has no effect in this version", key=key)
    keys = _load_keys(settings, None)
    sockets = bind(settings.server)
    for sock in sockets:
        stack.callback(sock.close)
    port = sockets[0].getsockname()[1]

    if keys.signing is None:
        structlog.get_logger().warning("announcements are not signed: anybody can forge them")
    announcer = Announcer(settings.announce)
    announcer.open()
    stack.push_async_callback(announcer.close, settings.server.drain_timeout_s)

    def on_commit(events: Sequence[Event], head: int) -> None:
        announcer.announce(store.stream, head, events)

    # Imported here: psycopg2 and SQLAlchemy are of no use to --help and to a wrong config.
    from tornado_status.store import Store

    store = Store(
        settings.database,
        enrolment_closed=settings.access.enrolment == "closed",
        on_commit=on_commit,
    )
    in_flight = InFlight()
    trust = Trust(keys.anchors, settings.tls.crl_expired)
    judge = Judge(trust)
    rate = settings.server.check_ins_per_second
    limit = CheckInLimit(rate) if rate else None
    http = HTTPServer(
        make_application(store, Access(settings.access.readers), in_flight, judge, limit),
        ssl_options=keys.context,
        chunk_size=READ_CHUNK,
        max_header_size=MAX_HEAD,
        max_body_size=MAX_BODY,
        idle_connection_timeout=settings.server.idle_timeout_s,
        body_timeout=settings.server.body_timeout_s,
    )
    check_ins = CheckInService(
        store,
        Answers(problem_answer),
        http.handle_stream,
        settings.server.idle_timeout_s,
        trust,
        limit,
    )
    acceptor = Acceptor(
        http, settings.server, judge, check_ins.serve, _stream_class(settings.server)
    )
    publication = Publication(store.publish_announcers)

    def put_in_force(keys: _Keys) -> None:
        http.ssl_options = keys.context  # read at each accept
        trust.replace(keys.anchors)
        announcer.signer = keys.signing.signer if keys.signing is not None else None
        publication.use(keys.signing)

    async def reload() -> None:
        put_in_force(await asyncio.to_thread(_load_keys, settings, trust.anchors))
        structlog.get_logger().info("certificates and keys reloaded")
        for warning in trust.warnings():
            structlog.get_logger().warning(warning)

    put_in_force(keys)
    for warning in trust.warnings():
        structlog.get_logger().warning(warning)
    watcher = FileWatcher(_key_files(settings), reload)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, watcher.tell)
    watching = asyncio.create_task(watcher.run(), name="file watcher")
    stack.push_async_callback(_cancelled, watching)

    if settings.admin.port:
        admin = AdminServer(
            settings.admin,
            Vitals(
                warnings=lambda: [*trust.warnings(), *announcer.warnings()],
                problems=lambda: [store.problem] if store.problem else [],
                head=lambda: store.head,
                pending=lambda: store.pending,
                refused=acceptor.refused.items,
                datagrams_sent=announcer.sent.items,
                datagrams_refused=announcer.errors.items,
            ),
        )
        admin.listen()
        stack.push_async_callback(admin.close)

    drain_timeout_s = settings.server.drain_timeout_s
    stack.push_async_callback(store.stop)
    await store.start()

    async def drain() -> None:
        acceptor.stop_accepting()
        check_ins.drain()
        await store.drain(drain_timeout_s)
        if not await in_flight.wait_none(drain_timeout_s):
            structlog.get_logger().warning("drain timed out", unanswered=in_flight.count)
        check_ins.close()
        acceptor.close()
        await http.close_all_connections()

    stack.push_async_callback(drain)
    acceptor.listen(sockets)
    await store.wait_connected()
    announcer.start(lambda: None if store.problem else (store.stream, store.head))
    _say_serving(settings, port)
    publishing = asyncio.create_task(publication.run(), name="publication")
    stack.push_async_callback(_cancelled, publishing)
    await store.wait_failed()


@dataclass(frozen=True, slots=True)
class _Keys:
    """What is read from the files with certificates and keys, all of it or nothing."""

    context: ssl.SSLContext
    anchors: Anchors
    signing: Signing | None


def _load_keys(settings: Settings, before: Anchors | None) -> _Keys:
    context = server_context(settings.tls)
    self_test(context)
    anchors = load_anchors(settings.tls, before)
    return _Keys(context, anchors, load_signing(settings.announce, settings.tls.client_ca))


def _key_files(settings: Settings) -> list[Path]:
    tls, announce = settings.tls, settings.announce
    files = [tls.certificate, tls.private_key, tls.client_ca, tls.crl, announce.next_certificate]
    if announce.signing_key is not None:
        files += [announce.signing_key, announce.signing_key.with_suffix(".crt")]
    return [file for file in files if file is not None]


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _stream_class(settings: Server) -> type[PeerStream]:
    if not settings.quick_reads:
        return PeerStream
    quick = quick_stream_class()
    if quick is None:
        structlog.get_logger().warning("this Tornado is unknown: server.quick_reads off")
        return PeerStream
    return quick


def _say_serving(settings: Settings, port: int) -> None:
    host = settings.server.host
    host = "localhost" if host in ("", "0.0.0.0", "::", "127.0.0.1", "::1") else host  # noqa: S104
    url = f"https://{host}:{port}"
    targets = " and ".join(str(target) for target in settings.announce.targets) or "nobody"
    structlog.get_logger().info(
        "serving",
        url=url,
        announcing=targets,
        database=EMBEDDED if settings.database.url == EMBEDDED else "postgresql",
    )
    if settings.logging.format == "console":
        command = _try_next(settings, url)
        print(f"Serving on {url}, announcing to {targets}. Try: {command}", flush=True)


def _try_next(settings: Settings, url: str) -> str:
    """Return a command that checks in, as it would be typed in the current directory."""
    here = Path.cwd()
    python = Path(sys.executable)
    shown = python.relative_to(here) if python.is_relative_to(here) else python
    command = f"{shown} -m clients"
    if url != "https://localhost:8443":
        command += f" --url {url}/api/client"
    certs = settings.tls.client_ca.parent
    if certs != here / "certs":
        command += f" --cert {certs}/client.crt --key {certs}/client.key"
        command += f" --ca {settings.tls.client_ca}"
    return command
