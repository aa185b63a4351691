"""The benchmark: it counts what happened, and refuses who does not do the job."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from benchmarks import gate, identities, load, processes, report, results
from benchmarks.__main__ import main
from benchmarks.database import STATUS_SCHEMA
from benchmarks.errors import Refused, Unavailable
from benchmarks.identities import Identities
from benchmarks.load import Load, Mode, run
from benchmarks.peers.base import find_program
from benchmarks.results import Results, Row, summarise
from tests.support import (
    BROADCAST,
    GROUP,
    LOOPBACK,
    PATIENCE_S,
    ROOT,
    free_port,
    require,
    rows,
    wait_until,
)
from tornado_status.store.commit import PREPARE_RECORD

pytestmark = pytest.mark.once

CLIENTS = 4
OK = b"HTTP/1.1 204 No Content\r\n\r\n"
BAD_NAME = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nbad"

Answer = Callable[[str, tuple[str, int]], bytes]


@pytest.fixture(scope="session")
def load_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("a C compiler", shutil.which("cc") is not None, "Debian: gcc libc6-dev")
    header = Path("/usr/include/openssl/ssl.h")
    require("OpenSSL's headers", header.exists(), "Debian: libssl-dev")
    return load.compile_load(tmp_path_factory.mktemp("load"))


@pytest.fixture(scope="session")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    return identities.make(tmp_path_factory.mktemp("identities"), CLIENTS)


class TlsServer(socketserver.ThreadingTCPServer):
    """Answers each request with what `answer(common name, address)` returns; b"" hangs up."""

    daemon_threads = False  # so that server_close waits for them
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, clients: Identities, answer: Answer) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        self.answer = answer
        self.connections = 0
        self.requests = 0
        self.open = 0
        self.lock = threading.Lock()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.context.load_cert_chain(clients.server_certificate, clients.server_key)
        self.context.load_verify_locations(clients.ca)

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Handler(socketserver.BaseRequestHandler):
    server: TlsServer

    def handle(self) -> None:
        self.request.settimeout(PATIENCE_S)
        # Refused certificates and clients that hang up are none of this server's business.
        with contextlib.suppress(OSError):
            secure = self.server.context.wrap_socket(self.request, server_side=True)
            with secure:
                self._converse(secure)

    def _converse(self, secure: ssl.SSLSocket) -> None:
        with self.server.lock:
            self.server.connections += 1
            self.server.open += 1
        try:
            certificate = secure.getpeercert() or {}
            subject: Any = certificate["subject"]
            while secure.recv(4096):  # a request of this client is one small record
                with self.server.lock:
                    self.server.requests += 1
                answer = self.server.answer(subject[0][0][1], self.client_address)
                if not answer:
                    return
                for byte in range(0, len(answer), 20):  # in pieces: to be put together again
                    secure.sendall(answer[byte : byte + 20])
        finally:
            with self.server.lock:
                self.server.open -= 1


@contextlib.contextmanager
def serving(clients: Identities, answer: Answer) -> Iterator[TlsServer]:
    with TlsServer(clients, answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def always(answer: bytes) -> Answer:
    return lambda name, address: answer


StartLoad = Callable[..., Load]


@pytest.fixture
def start_load(load_program: Path, clients: Identities) -> StartLoad:
    def start(server: TlsServer, mode: Mode, **options: Any) -> Load:
        options = {"connections": CLIENTS, "seconds": PATIENCE_S, **options}
        return Load(load_program, mode, server.port, clients.listed, **options)

    return start


# -------------------------------------------------------------------------------- the generator


def test_standing_connections_count_each_answered_request(
    clients: Identities, start_load: StartLoad
) -> None:
    """A hundred requests over four connections, besides the first one of each."""
    with serving(clients, always(OK)) as server:
        counted = run(start_load(server, "keep-alive", requests=100))
    assert (counted.count, counted.errors, counted.reconnects) == (100, 0, 0)
    assert (server.connections, server.requests) == (CLIENTS, CLIENTS + 100)


def test_fresh_connections_carry_one_request_each(
    clients: Identities, start_load: StartLoad
) -> None:
    """Each identity in turn, nothing resumed."""
    with serving(clients, always(OK)) as server:
        counted = run(start_load(server, "handshake", requests=30))
    assert (counted.count, counted.errors, counted.resumed) == (30, 0, 0)
    assert (server.connections, server.requests) == (30, 30)


def test_resumed_connections_use_tickets_from_the_second_on(
    clients: Identities, start_load: StartLoad
) -> None:
    """The first connection of each identity has no ticket yet."""
    with serving(clients, always(OK)) as server:
        counted = run(start_load(server, "resumed", requests=30, connections=1))
    assert (counted.count, counted.errors) == (30, 0)
    assert counted.resumed == 30 - CLIENTS


def test_an_answer_is_read_to_the_end_of_its_body(
    clients: Identities, start_load: StartLoad
) -> None:
    """Otherwise the rest of it would be taken for the next answer."""
    body = b"HTTP/1.1 200 OK\r\nX: y\r\ncontent-length: 9000\r\n\r\n" + bytes(9000)
    with serving(clients, always(body)) as server:
        counted = run(start_load(server, "keep-alive", requests=40, expect=200))
    assert (counted.count, counted.errors) == (40, 0)


def test_another_status_is_an_error_and_no_answer(
    clients: Identities, start_load: StartLoad
) -> None:
    """A server that refuses quickly must not look fast."""
    with serving(clients, always(BAD_NAME)) as server:
        counted = run(start_load(server, "handshake", requests=8))
    assert (counted.count, counted.errors) == (0, 8)
    assert counted.errors_by_kind["status"] == 8
    assert counted.first_error == "status: the answer was 400 Bad Request"


def test_a_connection_that_closes_without_an_answer_is_an_error(
    clients: Identities, start_load: StartLoad
) -> None:
    with serving(clients, always(b"")) as server:
        counted = run(start_load(server, "handshake", requests=4))
    assert (counted.count, counted.errors_by_kind["closed"]) == (0, 4)


def test_idle_connections_stay_until_they_are_released(
    clients: Identities, start_load: StartLoad
) -> None:
    """Each has checked in once, more of them than there are identities."""
    with serving(clients, always(OK)) as server:
        with start_load(server, "idle", connections=12) as holding:
            holding.wait_event("holding")
            assert (server.open, server.requests) == (12, 12)
            holding.release()
            assert holding.result().errors == 0
        wait_until(lambda: server.open == 0, "the connections to be closed")


@pytest.mark.parametrize(
    ("latencies", "expected"),
    [
        (range(1000, 0, -1), {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999, "max": 1000}),
        ([7], {"p50": 7, "p90": 7, "p99": 7, "p99.9": 7, "max": 7}),
        ([1, 2, 3], {"p50": 2, "p90": 3, "p99": 3, "p99.9": 3, "max": 3}),
        ([], {"p50": 0, "p90": 0, "p99": 0, "p99.9": 0, "max": 0}),
    ],
)
def test_percentiles_are_the_nearest_rank(
    load_program: Path, latencies: list[int], expected: dict[str, int]
) -> None:
    text = "\n".join(map(str, latencies))
    done = subprocess.run(
        [load_program, "percentiles"], input=text, capture_output=True, text=True, check=True
    )
    printed = json.loads(done.stdout)
    assert (printed["count"], printed["latency_us"]) == (len(latencies), expected)


# ------------------------------------------------------------------------------------- the gate


class Peer:
    """A small server that does the whole job, unless told to leave out a part of it."""

    def __init__(self, database_url: str, leaves_out: str) -> None:
        self._url = database_url
        self._leaves_out = leaves_out
        self.announce_port = free_port(socket.SOCK_DGRAM)

    def answer(self, name: str, address: tuple[str, int]) -> bytes:
        if "@" not in name and self._leaves_out != "refusal":
            return BAD_NAME
        if self._leaves_out != "commit":
            self._commit(name, address)
        message = {"email": name, "client_ip": address[0], "client_port": address[1]}
        for target in (GROUP, BROADCAST):
            if target != self._leaves_out:
                self._send(json.dumps(message).encode(), target)
        return OK

    def _commit(self, name: str, address: tuple[str, int]) -> None:
        with contextlib.closing(psycopg2.connect(self._url)) as connection:
            with connection, connection.cursor() as cursor:
                if self._leaves_out == "flush":
                    cursor.execute("SET synchronous_commit = off")
                cursor.execute(
                    "INSERT INTO user_status VALUES (%s, now(), %s, %s) ON CONFLICT (email)"
                    " DO UPDATE SET last_seen = excluded.last_seen,"
                    " client_port = excluded.client_port",
                    [name, *address],
                )

    def _send(self, payload: bytes, target: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            loopback = socket.inet_aton(LOOPBACK)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.sendto(payload, (target, self.announce_port))


def go_through_gate(peer: Peer, url: str, clients: Identities, load_program: Path) -> None:
    rows(url, STATUS_SCHEMA)
    with serving(clients, peer.answer) as server:
        gate.check(
            gate.Candidate(
                port=server.port,
                announce_port=peer.announce_port,
                identities=clients,
                query=lambda sql, *parameters: rows(url, sql, *parameters),
                load_program=load_program,
            )
        )


def test_the_gate_lets_through_who_does_the_job(
    database_url: str, clients: Identities, load_program: Path
) -> None:
    go_through_gate(Peer(database_url, ""), database_url, clients, load_program)


@pytest.mark.parametrize(
    ("leaves_out", "reason"),
    [
        ("commit", "204 without a committed row"),
        ("flush", "204 before the commit is on the disk"),
        ("refusal", "a CN that is no e-mail address is answered 204"),
        (GROUP, "no announcement of the check-in by multicast"),
        (BROADCAST, "no announcement of the check-in by broadcast"),
    ],
)
def test_the_gate_refuses_who_leaves_out_a_part_of_the_job(
    database_url: str,
    clients: Identities,
    load_program: Path,
    monkeypatch: pytest.MonkeyPatch,
    leaves_out: str,
    reason: str,
) -> None:
    """Whoever answers before the work is done would be the fastest."""
    monkeypatch.setattr(gate, "DATAGRAM_TIMEOUT_S", 1.0)  # it will not come
    with pytest.raises(Refused, match=reason):
        go_through_gate(Peer(database_url, leaves_out), database_url, clients, load_program)


# ---------------------------------------------------------------------------------- what is used


def test_the_cpu_time_of_ended_children_still_counts() -> None:
    """PostgreSQL's backends and a server's workers come and go."""
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    parent = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {burn!r}], check=True)\n"
        "print('ended', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ended\n"
        assert processes.tree([process.pid]) == [process.pid]
        assert processes.cpu_s([process.pid]) >= 0.28  # the kernel counts in hundredths
        assert processes.pss_kib([process.pid]) > 1000
        assert process.stdin is not None
        process.stdin.close()


# ------------------------------------------------------------------------------------ the report


def fixed_results() -> Results:
    made = Results(
        date="2026-01-02T03:04+00:00",
        machine={"CPU": "A & B <C>", "kernel": "Linux 6"},
        settings={"rounds": 3, "seconds": 5.0, "idle_connections": 2000},
        rows=[
            Row("django", "Slow & <old>", "status row", True),
            Row("tornado_status", "tornado_status", "everything", True),
            Row("nginx", "ceiling", "nothing", False),
        ],
        left_out={"Go": "go is not installed (Debian: golang-go)"},
    )
    for name, rates in {"django": [900, 1100, 1000], "tornado_status": [20000] * 3}.items():
        for rate in rates:
            made.add("keep-alive", name, keep_alive(rate))
    made.add("keep-alive", "nginx", keep_alive(88000))
    made.add("idle", "tornado_status", {"kib_per_connection": 35.25})
    made.add("users", "1000000", keep_alive(50000))
    made.note("a note")
    return made


def keep_alive(rate: float) -> dict[str, float]:
    latencies = {"p50_ms": 0.6834, "p99_ms": 12.34}
    return {"rate": rate, "server_cpu_ms": 0.03, "database_cpu_ms": 0.009, **latencies}


def test_a_summary_is_the_median_with_its_range() -> None:
    summary = summarise([3.0, 1.0, 2.5])
    assert (summary.median, summary.low, summary.high) == (2.5, 1.0, 3.0)
    assert summary.spread == pytest.approx(0.4)


def test_the_table_has_a_cell_for_each_row_and_measured_workload() -> None:
    """What was not measured is a dash, ratios refer to the first row, notes stand below."""
    text = report.markdown(fixed_results())
    lines = text.splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:5]]
    titles, _, django, ours, nginx = table
    assert titles == ["server", "keep-alive: check-ins/s", "p50 / p99 ms", "CPU ms", "idle: KiB"]
    x, dash = report.TIMES, report.NOTHING
    ceiling = ["ceiling", f"88,000 ±0% (88.0{x})", "0.683 / 12.3", "0.030", dash]
    same = ["0.683 / 12.3", "0.030 + 0.009"]
    assert django == ["Slow & <old>", f"1,000 ±10% (1.0{x})", *same, dash]
    assert ours == ["tornado_status", f"20,000 ±0% (20.0{x})", *same, "35.2"]
    assert nginx == ceiling
    assert "| 1,000,000 " in text
    assert "- Left out: Go: go is not installed (Debian: golang-go)" in lines
    assert "- Note: a note" in lines


def test_the_plot_is_well_formed_and_shows_every_row() -> None:
    plot = report.svg(fixed_results())
    root = ElementTree.fromstring(plot)  # noqa: S314 - our own
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Slow & <old>", "tornado_status", "ceiling", "20,000"} <= set(texts)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for bar in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert 0 <= float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width
        assert 0 <= float(bar.attrib["y"]) + float(bar.attrib["height"]) <= height


def test_results_survive_their_file(tmp_path: Path) -> None:
    """A table can be made again from results.json, to the letter."""
    path = tmp_path / "results.json"
    path.write_text(fixed_results().to_json())
    assert report.markdown(results.load(path)) == report.markdown(fixed_results())


def test_a_row_that_is_left_out_takes_its_numbers_along() -> None:
    made = fixed_results()
    made.leave_out(made.rows[0], "refused by the gate: 204 without a committed row")
    text = report.markdown(made)
    assert "Left out: Slow & <old>: refused by the gate" in text
    assert f"20,000 ±0% (1.0{report.TIMES})" in text  # the first row is another now


# ------------------------------------------------------------------------------ the command line


def test_a_missing_program_is_named_with_its_package() -> None:
    with pytest.raises(Unavailable, match=r"no-such-program is not installed \(Debian: its-name\)"):
        find_program("no-such-program", "its-name")


def test_an_unknown_peer_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--only", "apache"])
    assert exit_.value.code == 2
    assert "invalid choice: 'apache'" in capsys.readouterr().err


def test_the_go_server_commits_with_this_servers_own_statement() -> None:
    """It is a copy, so that Go builds alone; it leaves out only what closed enrolment needs."""
    copy = (ROOT / "benchmarks/peers/go_net_http/record.sql").read_text()
    statement = "\n".join(line for line in copy.splitlines() if not line.startswith("--"))
    for_closed_enrolment = (
        ",\n       CASE WHEN $8 THEN ARRAY(SELECT n FROM accepted ORDER BY n) END"
    )
    assert for_closed_enrolment in PREPARE_RECORD
    ours = PREPARE_RECORD.replace(for_closed_enrolment, "")
    assert statement.split() == ours.split()
