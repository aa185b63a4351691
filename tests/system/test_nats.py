"""A NATS broker between server and listeners: true and complete, whatever becomes of the broker."""

from __future__ import annotations

import asyncio
import datetime
import functools
import json
import re
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nats
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.brokers import Nats
from tests.support.harness import ROOT, Server, StartServer, exchange, wait_until
from tests.support.listening import Listening
from tests.support.with_constants import MAX_QUEUED
from tornado_status.model.records import Event
from tornado_status.pki.announcer_keys import Signer
from tornado_status.wire.datagram import encode_json
from tornado_status.wire.nats_broker import parse_addresses

pytestmark = pytest.mark.once

STRANGER = Signer(Ed25519PrivateKey.from_private_bytes(b"another key, also for tests only"))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Nats]:
    with Nats(tmp_path / "nats") as running:
        yield running


def target(broker: Nats, **more: object) -> dict[str, Any]:
    return {"kind": "nats", "address": broker.url, "stream": "status", **more}


def announcing(
    start_server: StartServer,
    broker: Nats,
    constants: dict[str, object] | None = None,
    **more: Any,
) -> Server:
    announce = {"targets": [target(broker, **more)], "heartbeat_s": 1}
    return start_server(announce=announce, constants=constants)


def reading(server: Server, broker: Nats, *more: object) -> list[object]:
    """The options of a listener with a reader's certificate."""
    certs = server.certs
    return [
        *("--nats", broker.url, "--url", server.url, "--ca", certs / "ca.crt"),
        *("--cert", certs / "operator.crt", "--key", certs / "operator.key"),
        *more,
    ]


def verifying(server: Server, broker: Nats, *more: object) -> list[object]:
    """The options of a listener that knows the announcer, and cannot repair."""
    certs = server.certs
    announcer = ("--announcer", certs / "announcer.crt", "--ca", certs / "ca.crt")
    return ["--nats", broker.url, "--cert", "", *announcer, *more]


def check_in(server: Server, count: int, then: Callable[[int], None] = lambda done: None) -> None:
    """Check in `count` times over kept connections; `then` is told how many are done."""
    done = 0
    lock = threading.Lock()

    def one(number: int) -> None:
        nonlocal done
        connection = server.connect()
        try:
            for _ in range(number):
                assert exchange(connection, "POST", "/api/client").status == 204
                with lock:
                    done += 1
                    then(done)
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(one, count // 4) for _ in range(4)]:
            future.result()


def log(server: Server) -> list[int]:
    return [seq for (seq,) in server.rows("SELECT seq FROM check_in ORDER BY seq")]


def metric(server: Server, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples that have these labels."""
    found = 0.0
    for line in server.management("/metrics").body.decode().splitlines():
        if line.startswith(f"tornado_status_{name}{{") and all(
            f'{label}="{value}"' in line for label, value in labels.items()
        ):
            found += float(line.rpartition(" ")[2])
    return found


def publish(broker: Nats, *payloads: bytes) -> None:
    """Publish as any client could that may use the subject."""

    async def run() -> None:
        client = await nats.connect(broker.url)
        for payload in payloads:
            await client.publish("status", payload)
        await client.flush()
        await client.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("stream", "encoding"), [("status", "json"), (None, "json"), ("status", "sealed")]
)
def test_a_broker_killed_in_the_middle_costs_no_update_and_no_order(
    start_server: StartServer, broker: Nats, stream: str | None, encoding: str
) -> None:
    """2,000 check-ins, kill -9 and another start among them: the listener shows the log."""
    server = announcing(start_server, broker, stream=stream, encoding=encoding)
    server.wait_event("serving")
    killed = threading.Event()

    def at(done: int) -> None:
        if done == 700:
            broker.kill()
            killed.set()
        if done == 1300:
            broker.start()

    with Listening(*reading(server, broker, "--from", "start")) as listener:
        check_in(server, 2000, at)
        assert killed.is_set()
        shown = listener.wait_for(2000)
        listener.stop()
    assert [update["seq"] for update in shown] == log(server) == list(range(1, 2001))


def test_what_a_broker_missed_is_published_once_it_is_back(
    start_server: StartServer, broker: Nats
) -> None:
    """Without repair: unconfirmed datagrams are published again, and JetStream keeps them."""
    server = announcing(start_server, broker)
    with Listening(*verifying(server, broker)) as listener:
        check_in(server, 40)
        listener.wait_for_seq(40)
        broker.kill()
        check_in(server, 400)
        broker.start()
        check_in(server, 40)
        shown = listener.wait_for(480)
        summary = listener.stop()
    assert [update["seq"] for update in shown] == list(range(1, 481))
    assert "0 repaired, 0 missed" in summary


def test_a_broker_that_hangs_is_left_and_found_again(
    start_server: StartServer, broker: Nats
) -> None:
    """No connection breaks, nothing answers: check-ins go on, and nothing is lost."""
    server = announcing(start_server, broker)
    with Listening(*verifying(server, broker)) as listener:
        check_in(server, 40)
        listener.wait_for_seq(40)
        broker.signal(signal.SIGSTOP)
        try:
            check_in(server, 40)
            server.wait_event("cannot announce, trying again")
            listener.says("trying again")
        finally:
            broker.signal(signal.SIGCONT)
        check_in(server, 40)
        shown = listener.wait_for(120)
        summary = listener.stop()
    assert [update["seq"] for update in shown] == list(range(1, 121))
    assert "0 repaired, 0 missed" in summary


def test_without_a_queue_the_same_is_a_gap(start_server: StartServer, broker: Nats) -> None:
    """The test above can fail: with room for one datagram the rest is dropped, and counted."""
    server = announcing(start_server, broker, constants={MAX_QUEUED: 1})
    with Listening(*verifying(server, broker)) as listener:
        server.wait_event("stream created")
        check_in(server, 4)
        listener.wait_for(1)  # the others may have found no room already
        broker.kill()
        check_in(server, 400)
        broker.start()
        listener.says("again")
        server.wait_event("announcing again")  # readiness warns of the drops for another minute
        check_in(server, 4)
        listener.out.wait_for(lambda line: '"event":"gap"' in line, "a gap")
        listener.stop()
    assert metric(server, "datagrams_failed_total", errno="queue-full") > 0


def test_a_server_starts_and_checks_in_while_the_broker_is_away(
    start_server: StartServer, tmp_path: Path
) -> None:
    """The broker comes later: nothing that was recorded is lost on the way."""
    broker = Nats(tmp_path / "nats")
    server = announcing(start_server, broker)
    check_in(server, 40)
    [warning] = json.loads(server.management("/readyz").body)["warnings"]
    assert f"cannot reach nats://localhost:{broker.port}" in warning
    with Listening(*reading(server, broker, "--from", "start")) as listener:
        listener.says("trying again")
        listener.wait_for_seq(40)  # over HTTPS: a broker is not needed for what there is
        with broker:
            listener.says("receiving from the broker")
            server.wait_event("announcing again")
            check_in(server, 40)
            shown = listener.wait_for(80)
            listener.stop()
    assert [update["seq"] for update in shown] == list(range(1, 81))


def test_a_listener_goes_on_where_it_stopped(
    start_server: StartServer, broker: Nats, tmp_path: Path
) -> None:
    """With --state; what was announced meanwhile comes first."""
    server = announcing(start_server, broker)
    state = tmp_path / "listener.json"
    seen: list[int] = []
    for options in (reading, verifying, reading):
        arguments = options(server, broker, "--state", state)
        with Listening(*arguments) as listener:
            start = seen[-1] if seen else 0
            check_in(server, 40)
            seen += [update["seq"] for update in listener.wait_for(len(log(server)) - start)]
            listener.stop()
        check_in(server, 40)
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) == 200


def test_forged_messages_on_the_subject_are_refused(
    start_server: StartServer, broker: Nats
) -> None:
    """The right to publish there is no right to announce."""
    server = announcing(start_server, broker)
    [(stream,)] = server.rows("SELECT log_id FROM head")
    now = datetime.datetime.now(datetime.UTC)
    event = Event(1, "check-in", "mallory@example.com", now, "10.6.6.6", 666)
    forged = [
        *encode_json(uuid.UUID(str(stream)), now, 1, [event], STRANGER),
        *encode_json(uuid.UUID(str(stream)), now, 1, [event]),
        b"\x00" * 5000,
        b"",
    ]
    with Listening(*reading(server, broker)) as listener:
        publish(broker, *forged)
        check_in(server, 8)
        shown = listener.wait_for(8)
        summary = listener.stop()
    assert {update["email"] for update in shown} == {"valid_user@example.com"}
    assert "4 refused" in summary


def test_an_orderly_end_publishes_what_is_queued(start_server: StartServer, broker: Nats) -> None:
    """The broker has every acknowledged check-in when the server has gone."""
    server = announcing(start_server, broker)
    with Listening(*verifying(server, broker)) as listener:
        check_in(server, 400)
        assert server.stop(signal.SIGTERM) == 0
        assert [update["seq"] for update in listener.wait_for(400)] == list(range(1, 401))
        listener.stop()
    assert server.events("datagrams not published at shutdown") == []


def test_a_broker_with_tls_and_passwords(
    start_server: StartServer, certs: Path, tmp_path: Path
) -> None:
    """Its certificate is of the private CA; a wrong password, and no TLS, is told, never shown."""
    tls = {
        "cert_file": str(certs / "server.crt"),
        "key_file": str(certs / "server.key"),
        "ca_file": str(certs / "ca.crt"),
    }
    users = {"users": [{"user": "status", "password": "s3cret word"}]}
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("s3cret word\n")
    bad.write_text("other s3cret\n")
    with Nats(tmp_path / "nats", {"tls": tls, "authorization": users}) as broker:
        server = announcing(
            start_server, broker, user="status", password_file=str(good), ca=str(certs / "ca.crt")
        )
        login = ("--nats-user", "status", "--nats-ca", certs / "ca.crt", "--nats-password-file")
        with Listening(*verifying(server, broker, *login, good)) as listener:
            check_in(server, 4)
            listener.wait_for(4)
            broker.kill()
            broker.start()
            again = listener.says("receiving from the broker")
            listener.stop()
        # One sentence when it goes and one when it is back, and none of asyncio's.
        assert listener.said.lines[-2:-1] == [again]
        assert not any("eof_received" in line for line in [*listener.said.lines, *server.log.lines])
        with Listening(*verifying(server, broker, *login, bad)) as listener:
            said = listener.says("Authorization Violation")
            listener.stop()
        with Listening(*verifying(server, broker, *login[:2], *login[4:], good)) as listener:
            listener.says("its certificate is refused")
            listener.stop()
    assert "s3cret" not in said
    assert not any("s3cret" in line for line in [*server.log.lines, *server.out.lines])


def test_a_password_is_not_given_to_who_offers_no_tls(
    start_server: StartServer, certs: Path, tmp_path: Path
) -> None:
    """An attacker between server and broker could say that there is no TLS."""
    password = tmp_path / "password"
    password.write_text("s3cret")
    users = {"users": [{"user": "status", "password": "s3cret"}]}
    with Nats(tmp_path / "nats", {"authorization": users}) as broker:
        server = announcing(
            start_server,
            broker,
            address=broker.url.replace("nats://", "tls://"),
            user="status",
            password_file=str(password),
            ca=str(certs / "ca.crt"),
        )
        assert "offers no TLS" in server.wait_event("cannot announce, trying again")["reason"]


@pytest.mark.once
def test_jetstream_keeps_a_minute_within_bounds(start_server: StartServer, broker: Nats) -> None:
    """The stream is made where there is none; acknowledgements are what counts as sent."""
    server = announcing(start_server, broker)
    check_in(server, 4)
    wait_until(lambda: metric(server, "datagrams_sent_total") >= 1, "an acknowledgement")

    async def look() -> Any:
        client = await nats.connect(broker.url)
        try:
            return await client.jetstream().stream_info("status")
        finally:
            await client.close()

    config = asyncio.run(look()).config
    assert (config.subjects, config.max_age, config.max_bytes) == (["status"], 60, 64 * 2**20)


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nats", "http://x"], "expected nats://host:4222"),
        (["--nats", "nats://user:s3cret@x"], "expected no user or password in it"),
        (["--nats", "nats://x", "--group", "239.1.1.1"], "--group: not with --nats"),
        (["--nats", "nats://x", "--nats-subject", "a.*"], "expected a subject"),
        (["--nats", "nats://x", "--nats-user", "a"], "--nats-password-file: needed"),
        (["--nats", "nats://x", "--nats-ca", "nowhere"], "cannot use nowhere"),
        (["--nats-user", "a"], "--nats-user: only with --nats"),
    ],
)
def test_a_wrong_option_is_one_sentence(arguments: list[str], said: str) -> None:
    """And status 2; a password is not repeated."""
    listener = Listening(*arguments, "--insecure", "--cert", "", "--announcer", "")
    assert listener.ended() == 2
    [line] = listener.said.lines
    assert said in line
    assert "s3cret" not in line


def test_addresses_are_read_as_operators_write_them() -> None:
    """A port may be left out; a cluster is a list."""
    assert parse_addresses("nats://a, tls://[::1]:99") == ("nats://a:4222", "tls://[::1]:99")
    for text in ("a:4222", "", "nats://", "nats://a:x", "nats://a/b", "ws://a", "nats://a,"):
        with pytest.raises(ValueError, match="expected"):
            parse_addresses(text)


def is_back(listener: Listening, times: int) -> bool:
    """Whether the listener has found its broker again so often."""
    return sum("receiving from the broker" in line for line in listener.said.lines) == times


@pytest.mark.once
@pytest.mark.parametrize("stream", ["status", None])
def test_the_rights_of_the_page_are_enough(
    start_server: StartServer, tmp_path: Path, stream: str | None
) -> None:
    """docs/nats.md says what the broker must allow, and that is what the broker allows here."""
    page = (ROOT / "docs" / "nats.md").read_text("utf-8")
    rows = [
        [re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:4]]
        for line in map(str.strip, page.partition("| who |")[2].splitlines())
        if line.startswith(("| server", "| listener"))
    ]
    [server_row, core_row, kept_row] = rows

    def user(name: str, row: list[list[str]]) -> dict[str, object]:
        publish = [each for each in row[1] if each != "stream"]
        return {
            **{"user": name, "password": "secret"},
            "permissions": {"publish": publish or ["none"], "subscribe": row[2]},
        }

    password = tmp_path / "password"
    password.write_text("secret")
    reader = core_row if stream is None else kept_row
    users = {"users": [user("server", server_row), user("reader", reader)]}
    with Nats(tmp_path / "nats", {"authorization": users}) as broker:
        login: dict[str, Any] = {"user": "server", "password_file": str(password)}
        server = announcing(start_server, broker, stream=stream, **login)
        options = ("--nats-user", "reader", "--nats-password-file", password)
        check_in(server, 4)
        with Listening(*verifying(server, broker, *options)) as listener:
            check_in(server, 4)
            listener.wait_for(4)
            assert server.events("cannot announce, trying again") == []
            # A listener that may not ask for a stream asks once, not at each connection.
            for times in (1, 2):
                broker.kill()
                broker.start()
                wait_until(functools.partial(is_back, listener, times), "the broker to be back")
            listener.stop()
        asked = broker.log.read_text().count('Subject "$JS.API.STREAM.NAMES"')
        assert asked == (1 if stream is None else 0)
