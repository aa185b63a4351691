"""Peers that the server talks to, or that talk to its management port and to its listeners."""

from __future__ import annotations

import contextlib
import itertools
import socket
import uuid

import pytest

from tests.support.announcing import OTHER, Announcing
from tests.support.attackers import attacking
from tests.support.harness import GROUP, LOOPBACK, Server, StartServer, wait_until
from tests.support.hostile_broker import ENOUGH, KERNEL, HostileBroker, huge_message
from tests.support.hostile_clients import memory, stay_idle
from tests.support.hostile_receiver import (
    HostileReceiver,
    endless_body,
    endless_chunk_size,
    endless_chunks,
    endless_headers,
    endless_promises,
    no_answer,
)
from tests.support.listening import Listening, log_of, reading, verifying
from tests.support.population import StartPopulation, as_shipped
from tests.support.webhook_receiver import Receiver, alert
from tests.support.with_constants import MAX_ANSWER, MAX_MESSAGE_BYTES

pytestmark = pytest.mark.once

MEMORY_ALLOWED = 32_000_000  # bytes
UNLIMITED = 1 << 60
ANSWERS = (
    no_answer,
    endless_headers,
    endless_body,
    endless_chunks,
    endless_chunk_size,
    endless_promises,
)
WRONG = "tests.support.faults.wrong_server"
limited_or_not = pytest.mark.parametrize("limited", [True, False], ids=["limited", "unlimited"])


@pytest.mark.parametrize("wrong", [None, "keep_idle_peers"])
def test_idle_peers_of_the_management_port(
    start_server: StartServer, start_population: StartPopulation, wrong: str | None
) -> None:
    """The population asks for readiness there."""
    module = ("tornado_status",) if wrong is None else (WRONG, wrong)
    server = start_server(module=module, **as_shipped())
    honest = start_population(server)
    with attacking(stay_idle, server.management_port, 200):
        complaints = honest.complaints()
        if wrong is None:
            assert server.management("/healthz").status == 200
    assert any("not ready" in each for each in complaints) == (wrong is not None), complaints


@limited_or_not
def test_receivers_of_alerts(
    start_server: StartServer, start_population: StartPopulation, limited: bool
) -> None:
    """Their answers have no end. Another receiver gets all that the population causes."""
    constants = {} if limited else {MAX_ANSWER: UNLIMITED}
    with contextlib.ExitStack() as stack:
        hostile = [stack.enter_context(HostileReceiver(answer)) for answer in ANSWERS]
        receiver = stack.enter_context(Receiver())
        alerts = [
            alert(each.url, name=f"hostile{number}", events=["new", "offline"], timeout_s=2)
            for number, each in enumerate(hostile)
        ]
        alerts.append(alert(receiver.url, events=["new", "offline"]))
        server = start_server(alerts=alerts, constants=constants, **as_shipped())
        before = memory(server)
        honest = start_population(server)
        if not limited:
            wait_until(lambda: memory(server) - before > 2 * MEMORY_ALLOWED, "too much memory")
            return
        assert honest.complaints() == []
        rows = server.rows("SELECT event, email FROM check_in WHERE event IN ('new', 'offline')")
        log = {(event, email.partition("@")[0]) for event, email in rows}
        wait_until(lambda: log <= set(receiver.said), "all messages")
        assert all(each.requests for each in hostile)
        assert memory(server) - before < 2 * MEMORY_ALLOWED


@limited_or_not
def test_a_broker_that_announces_99_gigabytes(
    start_server: StartServer, start_population: StartPopulation, limited: bool
) -> None:
    """It begins again each time that the server connects."""
    constants = {} if limited else {MAX_MESSAGE_BYTES: UNLIMITED}
    with HostileBroker(huge_message) as broker:
        target = {"kind": "nats", "address": broker.url}
        more = {"announce": {"targets": [target]}, "constants": constants}
        server = start_server(**as_shipped(), **more)
        before = memory(server)
        if not limited:
            wait_until(lambda: max(broker.sent, default=0) >= ENOUGH, "all of it to be taken")
            return
        honest = start_population(server)
        wait_until(lambda: len(broker.sent) > 1, "another attempt")
        assert honest.complaints() == []
        assert memory(server) - before < MEMORY_ALLOWED
        assert max(broker.sent) < KERNEL


def forge(port: int, payloads: list[bytes], sources: int) -> None:
    """Send these to the group, as fast as it goes, in turn from so many ports."""
    with contextlib.ExitStack() as stack:
        senders = []
        for _ in range(sources):
            sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            loopback = socket.inet_aton(LOOPBACK)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
            sender.bind((LOOPBACK, 0))
            senders.append(sender)
        for payload, sender in zip(itertools.cycle(payloads), itertools.cycle(senders)):
            sender.sendto(payload, (GROUP, port))


def forged(server: Server) -> list[bytes]:
    """Return announcements that only the signature tells from true ones."""
    [[log_id]] = server.rows("SELECT log_id FROM head")
    wrong = OTHER.sign(b"something else")
    port, key = server.announce_port, server.certs / "announcer.key"
    with Announcing(port, key, uuid.UUID(log_id)) as signed:
        return [
            signed.payload(seq, head=9000, ahead_s=30)[: -len(wrong) - 2] + wrong + b'"}'
            for seq in range(2, 1000)
        ]


@pytest.mark.parametrize("repairs", [True, False])
def test_a_stranger_that_forges_datagrams(
    start_server: StartServer, start_population: StartPopulation, repairs: bool
) -> None:
    """From 500 ports. The kernel drops true ones among them; a listener repairs these gaps."""
    server = start_server(**as_shipped())
    port = server.announce_port
    options = reading(server) if repairs else verifying(server.certs, port)
    with Listening(*options) as listener:
        assert server.request("POST", "/api/client", cert="operator").status == 204
        listener.wait_for_seq(1)
        honest = start_population(server)
        with attacking(forge, port, forged(server), 500):
            complaints = honest.complaints()
        [(head,)] = server.rows("SELECT seq FROM head")
        wait_until(lambda: hears_more(server, listener, head), "an event after the attack")
        log, shown = (
            [each for each in events if each.get("seq", 0) <= head]
            for events in (log_of(server), listener.shown)
        )
    assert complaints == []
    assert (shown == log) == repairs


def hears_more(server: Server, listener: Listening, head: int) -> bool:
    assert server.request("POST", "/api/client", cert="operator").status == 204
    return bool(listener.shown[-1].get("seq", 0) > head)
