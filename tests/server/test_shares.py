"""The shares of the server that one client, one address or a crowd of strangers can take."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Iterator

import psycopg2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.attackers import client_hello
from tests.support.harness import LOOPBACK, PATIENCE_S, Server, StartServer, wait_until
from tests.support.metrics import metric, refused
from tests.support.raw_http import GET, PLAIN, STATUS, read_answers
from tests.support.with_constants import (
    LINGER_S,
    MAX_BATCH,
    MAX_HANDSHAKE_BYTES,
    MAX_HANDSHAKES,
    MAX_MUTE,
    MAX_REQUESTS_EACH,
    MAX_UNANSWERED,
    READ_WAIT_S,
    STALLED_S,
)
from tornado_status.config.settings import Settings
from tornado_status.ingress.check_in_acceptor import site
from tornado_status.ingress.waiting_room import WaitingRoom
from tornado_status.model.check_in_rate_limit import BURST_S
from tornado_status.model.records import CheckIn
from tornado_status.observe.management import MAX_CONNECTIONS
from tornado_status.store import turns
from tornado_status.store.turns import Pending

ENDLESS = {"handshake_timeout_s": 3600, "idle_timeout_s": 3600, "header_timeout_s": 3600}
BLOCKED = "SELECT 1 FROM pg_locks WHERE NOT granted"


@contextlib.contextmanager
def crowd(port: int, count: int, begin: bytes) -> Iterator[list[socket.socket]]:
    """Connections of strangers, each of which sends a beginning and no more."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            connection = socket.create_connection((LOOPBACK, port), PATIENCE_S)
            found.append(stack.enter_context(connection))
            connection.sendall(begin)
        yield found


def says_204(connection: ssl.SSLSocket) -> bool:
    """Whether a check-in is answered; False if the connection is closed."""
    try:
        connection.sendall(PLAIN)
        return connection.recv(4096).startswith(b"HTTP/1.1 204")
    except OSError:
        return False


@contextlib.contextmanager
def commits_blocked(server: Server) -> Iterator[None]:
    """While the head is locked no check-in is committed."""
    blocker = psycopg2.connect(server.database_url)
    try:
        with blocker.cursor() as cursor:
            cursor.execute("SELECT seq FROM head FOR UPDATE")
        yield
    finally:
        blocker.close()


# ------------------------------------------------------------------------------------ handshakes


@pytest.mark.parametrize("begin", [b"\x16", client_hello()[:200]], ids=["a byte", "half a hello"])
def test_mute_strangers_take_no_place(start_server: StartServer, begin: bytes) -> None:
    """More than any limit of handshakes, none of which ends by itself: a client gets in."""
    constants = {MAX_HANDSHAKES: 5, MAX_MUTE: 8}
    server = start_server(server=ENDLESS, constants=constants)
    with crowd(server.port, 40, begin):
        assert server.request("POST", "/api/client").status == 204
        wait_until(lambda: refused(server, "timeout") >= 32, "the oldest to be dropped")
        assert server.request("POST", "/api/client").status == 204
        assert refused(server, "timeout") == 32


def test_stalled_strangers_give_way(start_server: StartServer) -> None:
    """They send a whole ClientHello and no more: those that are late end for those that wait."""
    constants = {MAX_HANDSHAKES: 5, STALLED_S: 0.5}
    server = start_server(server=ENDLESS, constants=constants)
    with crowd(server.port, 12, client_hello()):
        assert server.request("POST", "/api/client").status == 204
        assert refused(server, "timeout") >= 8


def test_without_that_they_would_not(start_server: StartServer) -> None:
    """The same crowd with `STALLED_S` out of reach: a client waits in vain."""
    constants = {MAX_HANDSHAKES: 5, STALLED_S: 3600}
    server = start_server(server=ENDLESS, constants=constants)
    with crowd(server.port, 12, client_hello()):
        connection = server.connect()
        connection.timeout = 2
        with pytest.raises(TimeoutError):
            connection.connect()


def long_hello(records: int) -> bytes:
    """The beginning of a ClientHello of 128 KB, in records of 16 KB."""
    begin = b"\x01" + (131_000).to_bytes(3, "big")
    first = begin.ljust(16_384, b"\0")
    return b"".join(
        b"\x16\x03\x01\x40\x00" + (bytes(16_384) if number else first) for number in range(records)
    )


@pytest.mark.parametrize("limited", [True, False])
def test_a_handshake_has_a_size(start_server: StartServer, limited: bool) -> None:
    """OpenSSL would keep 128 KB of each in memory, until the time-out."""
    constants = {} if limited else {MAX_HANDSHAKE_BYTES: 2**20}
    server = start_server(server=ENDLESS, constants=constants)
    with crowd(server.port, 5, long_hello(1)), crowd(server.port, 5, long_hello(3)) as long:
        if limited:
            for connection in long:
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(1) == b""
            assert refused(server, "excessive-message-size") == 5
        else:
            long[-1].settimeout(2)
            with pytest.raises(TimeoutError):
                long[-1].recv(1)
        assert server.request("POST", "/api/client").status == 204
    assert refused(server, "excessive-message-size") == (5 if limited else 0)


# ----------------------------------------------------------------------------------- connections


def test_the_connection_that_is_idle_longest_gives_way(start_server: StartServer) -> None:
    """When all are taken a new client gets in, and the others notice nothing."""
    server = start_server(
        server={**ENDLESS, "max_connections": 3, "max_connections_per_address": 0}
    )
    with server.connect_raw() as idle, server.connect_raw() as ordinary:
        assert says_204(idle)
        ordinary.sendall(GET)
        read_answers(ordinary, 1)
        with server.connect_raw() as active:
            for _ in range(25):  # the server's clock for this has a resolution of a second
                assert says_204(active)
                time.sleep(0.1)
            with server.connect_raw("operator") as first, server.connect_raw("operator") as second:
                for connection in (first, second, active):
                    assert says_204(connection)
                assert refused(server, "crowded-out") == 2
                for gone in (idle, ordinary):
                    assert not says_204(gone)


def test_a_connection_with_work_never_gives_way(start_server: StartServer) -> None:
    """One check-in is being committed: the idle one goes, and then a new client waits."""
    limits = {**ENDLESS, "max_connections": 2, "max_connections_per_address": 0}
    server = start_server(server=limits, database={"commit_timeout_s": 50})
    with server.connect_raw() as busy, server.connect_raw() as idle:
        with commits_blocked(server):
            busy.sendall(PLAIN)
            wait_until(lambda: server.rows(BLOCKED), "the commit to be blocked")
            other = server.connect_raw("operator")
            assert idle.recv(1) == b""
            other.sendall(PLAIN)  # now both are busy
            late = socket.create_connection((LOOPBACK, server.port), PATIENCE_S)
            late.sendall(client_hello())
            late.settimeout(2)
            with pytest.raises(TimeoutError):
                late.recv(1)
        for connection in (busy, other):
            assert STATUS.findall(read_answers(connection, 1)) == [b"204"]
        late.settimeout(PATIENCE_S)
        assert late.recv(1)
        late.close()
        other.close()


def test_mute_strangers_give_way_before_anybody_else(start_server: StartServer) -> None:
    """They fill up the connections; the clients that are there stay, new ones get in."""
    limits = {**ENDLESS, "max_connections": 20, "max_connections_per_address": 0}
    server = start_server(server=limits)
    with server.connect_raw() as before:
        assert says_204(before)
        with crowd(server.port, 60, b"\x16"):
            assert server.request("POST", "/api/client").status == 204
            wait_until(lambda: refused(server, "timeout") >= 40, "the oldest to be dropped")
            assert server.request("POST", "/api/client").status == 204
            assert says_204(before)
    assert refused(server, "crowded-out") == 0


def test_refused_connections_give_way_before_idle_ones(
    start_server: StartServer,
) -> None:
    """Clients whose certificate is refused say nothing; a client that is there stays."""
    limits = {**ENDLESS, "max_connections": 6, "max_connections_per_address": 0}
    server = start_server(server=limits)
    with server.connect_raw() as before, contextlib.ExitStack() as stack:
        assert says_204(before)
        refusals = [stack.enter_context(server.connect_raw("bad_client")) for _ in range(15)]
        assert says_204(stack.enter_context(server.connect_raw("operator")))
        wait_until(lambda: metric(server, "connections") <= 6, "the oldest to be closed")
        assert says_204(before)
        assert refusals[0].recv(1) == b""
    assert refused(server, "crowded-out") == 0


def test_failed_connections_give_way_before_idle_ones(start_server: StartServer) -> None:
    """They linger for their client to read why."""
    limits = {**ENDLESS, "max_connections": 6, "max_connections_per_address": 0}
    server = start_server(server=limits, constants={LINGER_S: 3600})
    with server.connect_raw() as before:
        assert says_204(before)
        with crowd(server.port, 15, b"GET / HTTP/1.1\r\n\r\n"):
            assert server.request("POST", "/api/client").status == 204
            assert says_204(before)
    assert refused(server, "crowded-out") == 0


def test_addresses_take_turns_to_begin_a_handshake(start_server: StartServer) -> None:
    """Behind a crowd that waits at one address, another address has the second turn."""
    constants = {MAX_HANDSHAKES: 2, STALLED_S: 1}
    server = start_server(server=ENDLESS, constants=constants)
    with crowd(server.port, 12, client_hello()):
        wait_until(lambda: metric(server, "handshakes") == 12, "all to be accepted")
        with socket.socket() as other:
            other.settimeout(PATIENCE_S)
            other.bind(("127.0.1.1", 0))
            other.connect((LOOPBACK, server.port))
            context = server.client_context("operator")
            with context.wrap_socket(other, server_hostname="localhost") as secure:
                assert says_204(secure)
        assert refused(server, "timeout") <= 4


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(("add", "take", "drop")))))
def test_a_waiting_room_is_fair_and_keeps_the_order_of_each(steps: list[tuple[str, str]]) -> None:
    """However connections come and go."""
    room: WaitingRoom[tuple[str, int]] = WaitingRoom()
    waiting: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    for number, (address, step) in enumerate(steps):
        if step == "add":
            room.add(address, (address, number))
            waiting[address].append(number)
        elif step == "take" and len(room):
            address, first = room.take()
            assert waiting[address].pop(0) == first
        elif len(room):
            address, last = room.drop()
            assert len(waiting[address]) == max(map(len, waiting.values()))
            assert waiting[address].pop() == last
        assert len(room) == sum(map(len, waiting.values()))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("2001:db8::1", "2001:db8:0:0:ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_a_64_of_ipv6_counts_as_one_address(one: str, other: str, same: bool) -> None:
    """A host is given as many addresses as it wants."""
    assert (site(one) == site(other)) == same


# ------------------------------------------------------------------------------- management port


@pytest.mark.parametrize("begin", [b"", b"GET /healthz HT"], ids=["idle", "slow"])
def test_the_management_port_answers_beside_a_crowd(
    start_server: StartServer, begin: bytes
) -> None:
    """However many connections do nothing, or begin a head and do not end it."""
    server = start_server(server=ENDLESS)
    with crowd(server.management_port, 3 * MAX_CONNECTIONS, begin):
        for _ in range(3):
            assert server.management("/healthz").status == 200


def test_a_probe_that_comes_again_keeps_its_connection(start_server: StartServer) -> None:
    """Of those that wait the one that has done so longest goes."""
    server = start_server()
    healthy = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    address = LOOPBACK, server.management_port
    with socket.create_connection(address, PATIENCE_S) as probe:
        for _ in range(2 * MAX_CONNECTIONS):
            with crowd(server.management_port, 1, healthy) as [other]:
                assert other.recv(4096).startswith(b"HTTP/1.1 200")
                probe.sendall(healthy)
                assert probe.recv(4096).startswith(b"HTTP/1.1 200")


# ------------------------------------------------------------------------------------ identities


def test_an_identity_has_so_many_connections(start_server: StartServer) -> None:
    """The next one is told so; other identities are served, and one gone makes room."""
    server = start_server(server={**ENDLESS, "max_connections_per_identity": 2})
    with server.connect_raw() as first, server.connect_raw() as second:
        for connection in (first, second):
            assert says_204(connection)
        answer = server.request("POST", "/api/client")
        assert answer.status == 429
        assert answer.detail == "More connections of this identity than allowed"
        assert int(answer.headers["Retry-After"]) > 0
        with server.connect_raw() as silent:
            assert silent.recv(1) == b""  # without a request it does not stay
        assert refused(server, "too-many-connections-of-identity") == 2
        event = server.wait_event("connection limit of an identity reached")
        assert event["email"] == "valid_user@example.com"
        assert server.request("POST", "/api/client", cert="operator").status == 204
        assert says_204(first)
        second.close()
        wait_until(
            lambda: server.request("POST", "/api/client").status == 204, "room for another one"
        )


def test_a_refused_certificate_holds_no_connection(start_server: StartServer) -> None:
    """No identity counts it, so it may be silent for as long as its one request takes."""
    server = start_server(server=ENDLESS)
    with server.connect_raw("bad_client") as connection:
        assert connection.recv(4096) == b""
    with server.connect_raw("bad_client") as connection:
        connection.sendall(PLAIN[:-2])  # its head never ends
        assert connection.recv(4096) == b""
    assert server.request("POST", "/api/client", cert="bad_client").status == 400


@pytest.mark.parametrize("most, status", [(2, 503), (100, 200)], ids=["two", "control"])
def test_an_identity_has_so_many_requests_at_once(
    start_server: StartServer, most: int, status: int
) -> None:
    """Any requests of ordinary HTTP: the next one waits, and others are served meanwhile."""
    server = start_server(constants={MAX_REQUESTS_EACH: most, READ_WAIT_S: 0.5})
    ordinary = PLAIN[:-2] + b"X-Any: 1\r\n\r\n"
    with (
        server.connect_raw() as one,
        server.connect_raw() as two,
        commits_blocked(server),
    ):
        for connection in (one, two):
            connection.sendall(ordinary)
        wait_until(lambda: server.rows(BLOCKED), "the commit")
        wait_until(
            lambda: server.request("GET", "/api/openapi.json").status == status, "both to be served"
        )
        assert server.request("GET", "/api/openapi.json", cert="operator").status == 200
    assert server.request("GET", "/api/openapi.json").status == 200


def test_an_identity_writes_so_many_rows(start_server: StartServer) -> None:
    """Pipelining over many connections gains nothing, and delays no other client; by default."""
    default = Settings().server
    limits = {
        "check_ins_per_second": default.check_ins_per_second,
        "max_connections_per_identity": default.max_connections_per_identity,
    }
    server = start_server(server=limits)
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        greedy = [stack.enter_context(server.connect_raw()) for _ in range(20)]
        for connection in greedy:
            connection.sendall(PLAIN * 100)
        statuses = []
        for connection in greedy:
            answers = read_answers(connection, 1)
            while b" 429 " not in answers:
                answers += connection.recv(65536)
            statuses += STATUS.findall(answers)
        assert set(statuses) == {b"204", b"429"}
        assert server.request("POST", "/api/client", cert="operator").status == 204
        rows = server.rows("SELECT count(*) FROM check_in WHERE email = 'valid_user@example.com'")
        rate = default.check_ins_per_second
        assert rows[0][0] <= rate * (BURST_S + time.monotonic() - begun) + 1


def test_requests_behind_the_last_answer_cost_nothing(server: Server) -> None:
    """The answer that there is nothing ends the connection; what came behind is not even parsed."""
    requests = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
    for _ in range(3):
        with server.connect_raw() as greedy, contextlib.suppress(OSError):  # cut off
            greedy.sendall(requests)
            while greedy.recv(65536):
                pass
    wait_until(lambda: metric(server, "connections") == 0, "the connections to be closed")
    assert server.request("GET", "/api/openapi.yaml").status in (200, 404)  # behind all that
    found = server.management("/metrics").body.decode()
    counted = re.findall(r'http_requests_total\{code="\d+",method="GET"\} (\S+)', found)
    assert sum(map(float, counted)) == 4


@pytest.mark.parametrize("limit", [64, 100_000], ids=["limited", "without the limit"])
def test_an_identity_has_so_many_unanswered_check_ins(
    start_server: StartServer, limit: int
) -> None:
    """The others wait in the sockets, over however many connections; all are answered then."""
    constants = {MAX_UNANSWERED: limit, MAX_BATCH: 8}
    server = start_server(database={"commit_timeout_s": 50}, constants=constants)
    with contextlib.ExitStack() as stack:
        greedy = [stack.enter_context(server.connect_raw()) for _ in range(4)]
        with commits_blocked(server):
            for connection in greedy:
                connection.sendall(PLAIN * 150)
            if limit > 64:
                wait_until(lambda: metric(server, "commit_queue_length") > 500, "all to be queued")
            else:
                wait_until(lambda: metric(server, "commit_queue_length") > 32, "many to be queued")
                for _ in range(20):
                    assert metric(server, "commit_queue_length") <= 64
        for connection in greedy:
            assert STATUS.findall(read_answers(connection, 150)) == [b"204"] * 150
    assert server.rows("SELECT count(*) FROM check_in") == [(600,)]


def test_commits_take_turns_by_identity(start_server: StartServer) -> None:
    """A check-in that comes behind sixty of another identity is in the next commit."""
    server = start_server(database={"commit_timeout_s": 50}, constants={MAX_BATCH: 4})
    with server.connect_raw() as greedy, server.connect_raw("operator") as honest:
        with commits_blocked(server):
            greedy.sendall(PLAIN * 60)
            wait_until(lambda: metric(server, "commit_queue_length") > 50, "many to be queued")
            honest.sendall(PLAIN)
            wait_until(lambda: metric(server, "commit_queue_length") > 56, "the other one, too")
        assert STATUS.findall(read_answers(honest, 1)) == [b"204"]
        assert STATUS.findall(read_answers(greedy, 60)) == [b"204"] * 60
    [(seq,)] = server.rows("SELECT seq FROM check_in WHERE email = 'operator@example.com'")
    assert seq <= 8


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 6)), max_size=60))
def test_turns_are_fair_and_keep_the_order_of_each(steps: list[tuple[str, int]]) -> None:
    """However check-ins come and batches are taken."""
    queue: deque[Pending] = deque()
    numbers, taken = itertools.count(), []
    waiting: Counter[str] = Counter()
    for email, count in steps:
        queue.append((CheckIn(email, "10.0.0.1", next(numbers), "", ""), lambda _: None, 0.0))
        waiting[email] += 1
        batch = [check_in for check_in, _, _ in turns.take(queue, count)]
        found = Counter(check_in.email for check_in in batch)
        assert len(batch) == min(count, waiting.total())
        for one, other in itertools.permutations(waiting, 2):
            if found[one] < waiting[one]:
                assert found[other] <= found[one] + 1
        waiting -= found
        taken += batch
        assert len(queue) == waiting.total()
    taken += [check_in for check_in, _, _ in turns.take(queue, len(queue))]
    for email in "abcde":
        ports = [check_in.client_port for check_in in taken if check_in.email == email]
        assert ports == sorted(ports)
