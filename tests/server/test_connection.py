"""The check-in connection: what it serves itself, what it hands over, and its bounds."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psycopg2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.faults.samples import peak_memory_kb
from tests.support.harness import PATIENCE_S, Server, StartServer, rows, running_server, wait_until
from tests.support.hostile_requests import CHECK_IN, CORPUS, DEVIATIONS, HOST, RULES
from tests.support.raw_http import GET, PLAIN, STATUS, read_answers
from tests.support.with_constants import MAX_PENDING
from tornado_status.ingress.fast_path import MAX_REMEMBERED, PlainHeads

AT_ONCE = 16  # connections of the corpus
PROBE = b"GET /api/client HTTP/1.1\r\n" + HOST + b"X-Request-ID: probe\r\n\r\n"


@pytest.fixture(scope="module")
def shared(
    postgres: str, certs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server for the tests that only send bytes."""
    rows(postgres, "CREATE DATABASE connection")
    url = postgres.replace("/postgres?", "/connection?")
    folder = tmp_path_factory.mktemp("shared")
    with running_server(folder, certs, url) as server:
        yield server


def read_to_end(connection: ssl.SSLSocket, quiet_s: float = 0.5) -> tuple[bytes, bool]:
    """Read until the server closes, or says nothing for a while; True where it closed."""
    connection.settimeout(quiet_s)
    answers = b""
    while True:
        try:
            data = connection.recv(65536)
        except TimeoutError:
            return answers, False
        except (ConnectionResetError, ssl.SSLError):
            return answers, True
        if not data:
            return answers, True
        answers += data


def make_ordinary(connection: ssl.SSLSocket) -> None:
    """Ask for something else than a check-in, and read the answer."""
    connection.sendall(GET)
    answers = read_answers(connection, 1)
    head, _, body = answers.partition(b"\r\n\r\n")
    length = int(re.findall(rb"Content-Length: (\d+)", head)[0])
    while len(body) < length:
        body += connection.recv(65536)


Verdict = tuple[list[bytes], bool]  # the statuses, and whether it was closed


def verdict(server: Server, request: bytes, *, ordinary: bool) -> Verdict:
    """Send a request; return the statuses answered and whether the connection was closed.

    With `ordinary` the connection asks for something else before, so that Tornado has it.
    """
    with server.connect_raw() as connection:
        if ordinary:
            make_ordinary(connection)
        connection.sendall(request)
        answers, closed = read_to_end(connection)
        return STATUS.findall(answers), closed


@pytest.fixture(scope="module")
def verdicts(shared: Server) -> Iterator[dict[str, tuple[Future[Verdict], Future[Verdict]]]]:
    """Each request's verdict on both ways. Most of the time is silence: several wait at once."""

    def judge(name: str, ordinary: bool) -> Future[Verdict]:
        return pool.submit(verdict, shared, CORPUS[name], ordinary=ordinary)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: (judge(name, False), judge(name, True)) for name in CORPUS}


@pytest.mark.parametrize("name", CORPUS)
def test_both_ways_judge_alike(
    verdicts: dict[str, tuple[Future[Verdict], Future[Verdict]]], name: str
) -> None:
    """The check-in connection and Tornado's own: same answers, same end, no 5xx."""
    quick, ordinary = (future.result() for future in verdicts[name])
    assert quick == ordinary
    assert not [status for status in quick[0] if status >= b"500"]


def split(answers: bytes, *, head: bool = False) -> list[tuple[str, str]]:
    """Cut at the answers' own framing; return status and X-Request-ID (or "") of each.

    `head` says that the first is to a HEAD. Anything that is left over is an error.
    """
    found: list[tuple[str, str]] = []
    while answers:
        lines, end, answers = answers.partition(b"\r\n\r\n")
        status = STATUS.match(lines)
        assert status, lines
        assert end
        fields = dict(line.lower().split(": ", 1) for line in lines.decode().split("\r\n")[1:])
        has_body = status[1] not in (b"100", b"204") and not (head and not found)
        length = int(fields.get("content-length", "0")) if has_body else 0
        assert len(answers) >= length
        answers = answers[length:]
        found.append((status[1].decode(), fields.get("x-request-id", "")))
    return found


def outcome(server: Server, name: str, *, ordinary: bool) -> str:
    """Send a request of the corpus and, at once behind it, a probe; return what the first got.

    As in `Rule`. Asserts that no answer is another's.
    """
    with server.connect_raw() as connection:
        if ordinary:
            make_ordinary(connection)
        connection.sendall(CORPUS[name] + PROBE)
        answers, closed = read_to_end(connection)
    found = split(answers, head=name == "head")
    ids = [request_id for _, request_id in found]
    # A smuggled one is answered where it is a request by its own right, and in its own place.
    assert "smuggled" not in ids or RULES[name].outcomes & {"204 200"}
    statuses = [status for status, _ in found]
    if closed:
        # The server ignores what follows an error.
        assert "probe" not in ids
        return " ".join([*statuses, "close"])
    assert ids.count("probe") == (1 if ids else 0)
    assert found[-1:] in ([], [("200", "probe")])
    return " ".join(statuses[:-1])


@pytest.fixture(scope="module")
def outcomes(shared: Server) -> Iterator[dict[str, list[Future[str]]]]:
    """Each request's outcome on both ways, as `verdicts`."""
    shared.request("POST", "/api/client")  # so that a GET is a 200
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            name: [pool.submit(outcome, shared, name, ordinary=way) for way in (False, True)]
            for name in CORPUS
        }


@pytest.mark.parametrize("name", CORPUS)
def test_every_verdict_is_one_that_the_rfc_allows(
    outcomes: dict[str, list[Future[str]]], name: str
) -> None:
    """Of RFC 9112, on both ways, but for what is known; and no answer is another request's."""
    for future in outcomes[name]:
        found = future.result()
        if name in DEVIATIONS:
            assert found == DEVIATIONS[name]
        else:
            assert found in RULES[name].outcomes, RULES[name]


def test_every_request_of_the_corpus_has_its_rule() -> None:
    """And every known deviation is one: else it belongs out of the list."""
    assert set(RULES) == set(CORPUS)
    for name, found in DEVIATIONS.items():
        assert found not in RULES[name].outcomes


def test_the_corpus_can_tell_a_difference(shared: Server) -> None:
    """It holds requests that are answered, refused, and refused with the connection closed."""
    seen = {
        (tuple(verdict(shared, CORPUS[name], ordinary=False)[0]), name)
        for name in ("bare", "smuggled", "delete", "two pipelined")
    }
    assert len({statuses for statuses, _ in seen}) == 4


def test_pipelined_check_ins_are_each_recorded_and_answered_in_order(
    start_server: StartServer,
) -> None:
    """A hundred in one write, mixed with a read at the end: as many 204, then the record."""
    server = start_server()
    with server.connect_raw() as connection:
        connection.sendall(PLAIN * 100 + GET)
        answers = read_answers(connection, 101)
    statuses = STATUS.findall(answers)
    assert statuses == [b"204"] * 100 + [b"200"]
    assert b'"seq":100,' in answers
    assert server.rows("SELECT count(*), max(seq) FROM check_in") == [(100, 100)]


def test_what_is_no_check_in_waits_for_those_before_it(start_server: StartServer) -> None:
    """An answer never overtakes another, also where the later one needs no commit."""
    server = start_server()
    with server.connect_raw() as connection:
        connection.sendall(PLAIN * 3 + b"DELETE /api/client HTTP/1.1\r\n" + HOST + b"\r\n" + PLAIN)
        answers = read_answers(connection, 5)
    assert STATUS.findall(answers) == [b"204", b"204", b"204", b"405", b"204"]


@pytest.mark.parametrize("size", [1, 7, 40])
def test_a_head_may_come_in_pieces(shared: Server, size: int) -> None:
    """However TCP cuts it."""
    with shared.connect_raw() as connection:
        for start in range(0, len(PLAIN), size):
            connection.sendall(PLAIN[start : start + size])
        connection.sendall(PLAIN)
        assert STATUS.findall(read_answers(connection, 2)) == [b"204", b"204"]


def test_a_connection_once_handed_over_stays_ordinary(shared: Server) -> None:
    """Check-ins go on there, with Tornado's headers."""
    with shared.connect_raw() as connection:
        connection.sendall(PLAIN)
        assert b"Cache-Control" not in read_answers(connection, 1)
        connection.sendall(GET)
        read_answers(connection, 1)
        connection.sendall(PLAIN)
        assert b"Cache-Control: no-store" in read_answers(connection, 1)


def test_a_record_larger_than_a_read_is_read_to_its_end(shared: Server) -> None:
    """The loop cannot see what OpenSSL has deciphered and the server has not read yet."""
    with shared.connect_raw() as connection:
        connection.sendall(PLAIN * 3)
        assert STATUS.findall(read_answers(connection, 3)) == [b"204"] * 3
        count = 16384 // len(PLAIN)
        connection.sendall(PLAIN * count)  # one record, the largest there is
        assert STATUS.findall(read_answers(connection, count)) == [b"204"] * count
        connection.sendall(PLAIN)
        assert STATUS.findall(read_answers(connection, 1)) == [b"204"]


@pytest.mark.parametrize("size", [700, 1400, 5000])
def test_records_back_to_back_keep_their_order(shared: Server, size: int) -> None:
    """Heads cut anywhere, sent while answers are under way, come together as they were sent."""
    with shared.connect_raw() as connection:
        for _ in range(20):
            requests = PLAIN * 60
            for start in range(0, len(requests), size):
                connection.sendall(requests[start : start + size])
            assert STATUS.findall(read_answers(connection, 60)) == [b"204"] * 60


def test_the_hand_over_takes_along_what_was_sent_behind(shared: Server) -> None:
    """Whether it was read already, is inside OpenSSL, or still in the kernel."""
    for count in (1, 20, 100, 300):
        with shared.connect_raw() as connection:
            connection.sendall(PLAIN * 2 + GET + PLAIN * count + GET)
            answers = read_answers(connection, count + 4)
        expected = [b"204"] * 2 + [b"200"] + [b"204"] * count + [b"200"]
        assert STATUS.findall(answers) == expected


def test_a_client_that_hangs_up_is_forgotten(shared: Server) -> None:
    """With or without a word, before and after a check-in: its descriptor is closed."""
    descriptors = Path(f"/proc/{shared.process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for sent in (b"", PLAIN, PLAIN[:20], PLAIN * 5):
        for goodbye in (True, False):
            with shared.connect_raw() as connection:
                connection.sendall(sent)
                connection.settimeout(0.1)
                if goodbye:
                    with contextlib.suppress(OSError):  # the server need not answer it
                        connection.unwrap()
    wait_until(lambda: len(list(descriptors.iterdir())) <= before, "the descriptors to be closed")


def test_who_never_reads_answers_costs_a_bounded_amount(start_server: StartServer) -> None:
    """Pipelining without end and without reading: the server stops reading, others go on."""
    server = start_server()
    with server.connect_raw() as connection:
        raw = socket.socket(fileno=connection.fileno())
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.detach()
        connection.settimeout(1)
        sent = 0
        with pytest.raises((TimeoutError, ssl.SSLWantWriteError)):
            while sent < 200_000_000:
                sent += connection.send(PLAIN * 200)
        recorded = server.rows("SELECT count(*) FROM check_in")[0][0]
        # The kernel's buffers hold what is on the way; the process holds 4 KiB of it.
        assert recorded < sent / len(PLAIN)
        assert server.request("POST", "/api/client").status == 204
        assert peak_memory_kb(server.process.pid) < 300_000


def test_mute_peers_do_not_delay_a_real_one(start_server: StartServer) -> None:
    """A hundred connections that never speak hold no thread, and are cut off in the end."""
    server = start_server(server={"handshake_timeout_s": 2})
    mute = [
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) for _ in range(100)
    ]
    try:
        assert server.request("POST", "/api/client").status == 204
        metrics = server.management("/metrics").body.decode()
        assert 'connections_refused_total{reason="timeout"}' not in metrics  # still waiting
        for sock in mute:
            assert sock.recv(1) == b""
    finally:
        for sock in mute:
            sock.close()
    metrics = server.management("/metrics").body.decode()
    assert 'connections_refused_total{reason="timeout"} 100.0' in metrics


def test_an_idle_connection_is_closed(start_server: StartServer) -> None:
    """After `idle_timeout_s` without a request, on both ways."""
    server = start_server(server={"idle_timeout_s": 1})
    for first in (PLAIN, GET):
        with server.connect_raw() as connection:
            connection.sendall(first)
            read_answers(connection, 1)
            connection.settimeout(PATIENCE_S)
            while connection.recv(4096):
                pass


def test_a_crowd_beyond_the_database_gets_503_and_then_service_is_full_again(
    start_server: StartServer,
) -> None:
    """The queue is bounded; the surplus is told when to come back, and nothing is lost."""
    server = start_server(database={"commit_timeout_s": 50}, constants={MAX_PENDING: 5})
    connections = [server.connect_raw() for _ in range(10)]
    blocker = psycopg2.connect(server.database_url)
    try:
        with blocker.cursor() as cursor:
            cursor.execute("SELECT seq FROM head FOR UPDATE")
        connections[0].sendall(PLAIN)
        blocked = "SELECT 1 FROM pg_locks WHERE NOT granted"
        wait_until(lambda: server.rows(blocked), "the first commit to be blocked")
        connections[0].sendall(PLAIN * 3)
        for connection in connections[1:]:
            connection.sendall(PLAIN * 4)
        # Behind the one that is blocked five fit in the queue. A request that waits for no other
        # is refused at once, a pipelined one in its turn.
        length = b"tornado_status_commit_queue_length 5.0"
        wait_until(lambda: length in server.management("/metrics").body, "a full queue")
        refused = read_answers(connections[-1], 4)
        blocker.rollback()
        answers = b"".join(read_answers(connection, 4) for connection in connections[:-1])
        answers += refused
    finally:
        blocker.close()
        for connection in connections:
            connection.close()
    statuses = STATUS.findall(answers)
    assert len(statuses) == 40
    assert set(statuses) == {b"204", b"503"}
    assert answers.count(b"Retry-After: ") == statuses.count(b"503")
    recorded = server.rows("SELECT count(*), max(seq) FROM check_in")
    assert recorded == [(statuses.count(b"204"),) * 2]
    with server.connect_raw() as connection:
        connection.sendall(PLAIN)
        assert STATUS.findall(read_answers(connection, 1)) == [b"204"]


# -------------------------------------------------------------------------------- heads, in pure


@given(st.binary(max_size=300))
def test_any_bytes_are_plain_or_not(data: bytes) -> None:
    """Never an error; and what is plain is a check-in as we know them."""
    if PlainHeads().is_plain(data):
        assert data.startswith((b"POST /api/client ", b"PUT /api/client ", b"PATCH /api/client "))
        assert data.endswith(b"\r\n\r\n")


@given(st.lists(st.sampled_from(list(CORPUS.values())), min_size=1, max_size=3), st.data())
def test_pieces_of_the_corpus_are_plain_only_as_a_whole(
    parts: list[bytes], data: st.DataObject
) -> None:
    """Cut anywhere, joined anyhow: nothing but an exact plain head passes."""
    joined = b"".join(parts)
    cut = joined[: data.draw(st.integers(0, len(joined)))]
    if PlainHeads().is_plain(cut):
        assert cut.count(b"\r\n\r\n") == 1
        assert b"Transfer-Encoding" not in cut


def test_remembered_heads_are_bounded() -> None:
    """However many different ones a client invents."""
    heads = PlainHeads()
    for number in range(3 * MAX_REMEMBERED):
        assert heads.is_plain(CHECK_IN + b"User-Agent: %d\r\n\r\n" % number)
        assert len(heads.known) <= MAX_REMEMBERED


def test_a_large_first_record_is_read_to_its_end(start_server: StartServer) -> None:
    """Many check-ins in one record right behind the handshake: none waits for the next record."""
    server = start_server()
    head = CHECK_IN + b"User-Agent: " + b"a" * 200 + b"\r\n\r\n"
    count = 16384 // len(head)
    for _ in range(5):
        with server.connect_raw() as connection:
            connection.sendall(head * count)
            assert STATUS.findall(read_answers(connection, count)) == [b"204"] * count


@pytest.mark.parametrize(
    ("framing", "status"),
    [
        (b"Content-Length: 8000000\r\n\r\n" + b"x" * 8_000_000, b"413"),
        (b"Transfer-Encoding: chunked\r\n\r\n" + b"7A1200\r\n" + b"x" * 8_000_000, b"400"),
    ],
    ids=["of a length", "in chunks"],
)
def test_an_error_reaches_a_client_that_sends_its_body_to_the_end(
    shared: Server, framing: bytes, status: bytes
) -> None:
    """The server does not read the body, and closes without a reset."""
    for _ in range(3):
        with shared.connect_raw() as connection:
            connection.sendall(CHECK_IN + framing)
            answers, closed = read_to_end(connection, PATIENCE_S)
        assert STATUS.findall(answers) == [status]
        assert closed


@pytest.mark.parametrize(
    "lines",
    [
        b"Connection: keep-alive\r\nConnection: close\r\n",
        b"Connection: close\r\nConnection: keep-alive\r\n",
        b"Connection: keep-alive, Close\r\n",
    ],
)
def test_one_close_among_the_options_closes(shared: Server, lines: bytes) -> None:
    """RFC 9112, 9.6: whatever else the client lists; the answer says so."""
    with shared.connect_raw() as connection:
        connection.sendall(CHECK_IN + lines + b"\r\n" + PLAIN)
        answers, closed = read_to_end(connection)
    assert STATUS.findall(answers) == [b"204"]
    assert b"\r\nConnection: close\r\n" in answers
    assert closed


def test_there_is_no_100_continue_for_http_1_0(shared: Server) -> None:
    """RFC 9110, 10.1.1: such a client would take it for the answer."""
    expect = b"Content-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    for version, statuses in ((b"HTTP/1.1", [b"100", b"204"]), (b"HTTP/1.0", [b"204"])):
        with shared.connect_raw() as connection:
            connection.sendall(CHECK_IN.replace(b"HTTP/1.1", version) + expect)
            connection.sendall(b"body")
            answers = connection.recv(4096)
            if statuses[0] == b"100":
                answers += connection.recv(4096)
        assert STATUS.findall(answers) == statuses
