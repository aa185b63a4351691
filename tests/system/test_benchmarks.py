"""The benchmark: it counts what happened, and refuses a server that does not do the job."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
import shutil
import socket
import socketserver
import ssl
import statistics
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from benchmarks import (
    __main__,
    against,
    comparison,
    gate,
    identities,
    instruments,
    listener_load,
    load,
    loss,
    plot,
    processes,
    results,
    scaling,
    scaling_tables,
    store_driver,
    tables,
    wire,
    workloads,
)
from benchmarks.__main__ import ComparisonPlan, main
from benchmarks.contender import Site
from benchmarks.gate import GateRefused
from benchmarks.identities import Identities
from benchmarks.instruments import SHARES, wait_of
from benchmarks.load import Load, Mode, percentiles_ms, run
from benchmarks.peers.registry import THIS_SERVER
from benchmarks.programs import Unavailable, find_program
from benchmarks.results import Results, Row
from benchmarks.rig import Bench, Rig, rig
from tests.support.harness import (
    BROADCAST,
    GROUP,
    LOOPBACK,
    PATIENCE_S,
    ROOT,
    free_port,
    require,
    wait_until,
)

pytestmark = pytest.mark.once

CLIENTS = 4
RESULTS = ROOT / "benchmarks/results"
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
        self.context.load_cert_chain(clients.certificate("server"), clients.key("server"))
        self.context.load_verify_locations(clients.certificate("ca"))

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
        return Load(load_program, mode, server.port, clients.bundle, **options)

    return start


# -------------------------------------------------------------------------------- the generator


def test_standing_connections_count_each_answered_request(
    clients: Identities, start_load: StartLoad
) -> None:
    """A hundred requests over four connections, besides the first one of each."""
    with serving(clients, always(OK)) as server:
        counted = run(start_load(server, "keep-alive", requests=100))
    assert (counted.count, counted.errors) == (100, 0)
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


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (OK + OK, "more than one answer to one request"),
        (b"HTTP/1.0 204 No Content\r\n\r\n", "expected HTTP/1.1"),
        (b"HTTP/1.1 204 No Content\r\nX: " + bytes(5000), "a head without an end"),
    ],
)
def test_what_is_no_answer_is_an_error(
    clients: Identities, start_load: StartLoad, answer: bytes, what: str
) -> None:
    """Otherwise the rest of one could be taken for the next answer."""
    with serving(clients, always(answer)) as server:
        counted = run(start_load(server, "handshake", requests=4))
    assert (counted.count, counted.errors) == (0, 4)
    assert counted.first_error == f"protocol: {what}"


def test_another_status_is_an_error_and_no_answer(
    clients: Identities, start_load: StartLoad
) -> None:
    """A server that refuses quickly must not look fast."""
    with serving(clients, always(BAD_NAME)) as server:
        counted = run(start_load(server, "handshake", requests=8))
    assert (counted.count, counted.errors) == (0, 8)
    assert counted.first_error == "status: the answer was 400 Bad Request"


def test_a_connection_that_closes_without_an_answer_is_an_error(
    clients: Identities, start_load: StartLoad
) -> None:
    with serving(clients, always(b"")) as server:
        counted = run(start_load(server, "handshake", requests=4))
    assert (counted.count, counted.errors) == (0, 4)
    assert counted.first_error.startswith("closed: ")


def test_idle_connections_stay_until_they_are_released(
    clients: Identities, start_load: StartLoad
) -> None:
    """Each has checked in once, more of them than there are identities."""
    with serving(clients, always(OK)) as server:
        with start_load(server, "idle", connections=12) as holding:
            holding.wait("holding")
            assert (server.open, server.requests) == (12, 12)
            holding.release()
            assert holding.result().errors == 0
        wait_until(lambda: server.open == 0, "the connections to be closed")


def test_paced_requests_begin_when_they_are_due_whoever_is_late(
    clients: Identities, start_load: StartLoad
) -> None:
    """A server that stalls is charged with those who would have come meanwhile."""

    def slow(name: str, address: tuple[str, int]) -> bytes:
        time.sleep(0.1)
        return OK

    with serving(clients, slow) as server:
        options = {"connections": 1, "requests": 10}
        waiting = run(start_load(server, "keep-alive", **options))
        paced = run(start_load(server, "keep-alive", rate=1000, **options))
    assert (waiting.count, paced.count, paced.errors) == (10, 10, 0)
    # Ten were due within moments, and each had to wait for those before it.
    assert max(paced.latencies_us) > 700_000
    assert statistics.median(paced.latencies_us) > statistics.median(waiting.latencies_us) * 2


def test_a_paced_run_offers_no_more_than_it_was_told(
    clients: Identities, start_load: StartLoad
) -> None:
    with serving(clients, always(OK)) as server:
        paced = run(start_load(server, "keep-alive", seconds=1.0, warmup_s=0.0, rate=50))
    assert paced.errors == 0
    assert 10 <= paced.count <= 120  # at random moments, fifty in a second


def test_only_standing_connections_can_be_paced(load_program: Path, clients: Identities) -> None:
    with pytest.raises(ValueError, match="a rate goes with keep-alive"):
        Load(load_program, "handshake", 1, clients.bundle, connections=1, rate=5)


@pytest.mark.parametrize(
    ("latencies", "expected"),
    [
        (range(1000, 0, -1), [0.5, 0.9, 0.99, 0.999, 1.0]),
        ([7], [0.007] * 5),
        ([1, 2, 3], [0.002, 0.003, 0.003, 0.003, 0.003]),
        ([], [0] * 5),
    ],
)
def test_percentiles_are_the_nearest_rank(latencies: list[int], expected: list[float]) -> None:
    found = percentiles_ms(latencies)
    assert list(found) == ["p50_ms", "p90_ms", "p99_ms", "p99.9_ms", "max_ms"]
    assert list(found.values()) == expected


# ------------------------------------------------------------------------------------- the gate


class SmallServer:
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


@pytest.fixture
def go_through_gate(
    surroundings: Rig, clients: Identities, tmp_path: Path
) -> Iterator[Callable[[str], None]]:
    postgres, name = surroundings.postgres, "gate"
    postgres.create(name)
    postgres.make_status_table(name)

    def go(leaves_out: str) -> None:
        candidate = SmallServer(postgres.url(name), leaves_out)
        ports = (candidate.announce_port, 0, ())
        with serving(clients, candidate.answer) as server:
            gate.check(Site(server.port, *ports, postgres, name, clients, tmp_path))

    yield go
    postgres.drop(name)


def test_the_gate_lets_a_server_through_that_does_the_job(
    go_through_gate: Callable[[str], None],
) -> None:
    go_through_gate("")


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
def test_the_gate_refuses_a_server_that_leaves_out_a_part_of_the_job(
    go_through_gate: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    leaves_out: str,
    reason: str,
) -> None:
    """A server that answers before the work is done would be the fastest."""
    monkeypatch.setattr(gate, "DATAGRAM_TIMEOUT_S", 1.0)  # it will not come
    with pytest.raises(GateRefused, match=reason):
        go_through_gate(leaves_out)


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
        assert list(processes.tree([process.pid])) == [process.pid]
        assert processes.cpu_s([process.pid]) >= 0.28  # the kernel counts in hundredths
        assert processes.pss_kib([process.pid]) > 1000
        assert process.stdin is not None
        process.stdin.close()


# --------------------------------------------------------------------------------------- scaling


@pytest.fixture(scope="module")
def surroundings(load_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    build = tmp_path_factory.mktemp("rig")
    with rig(CLIENTS, seconds=0.3, idle_connections=8, build=build) as made:
        yield made


@pytest.fixture(scope="module")
def bench(surroundings: Rig) -> Iterator[Bench]:
    """This server, past the gate."""
    with surroundings.at_work(THIS_SERVER) as made:
        yield made


def test_what_a_server_counts_is_what_was_done(bench: Bench) -> None:
    """Its metrics, the log, and the datagrams that were received say the same."""
    site = bench.site
    counts = instruments.OwnCounts(site.management_ports)
    with instruments.DatagramSampler(site.announce_port) as datagrams, counts:
        done = run(
            Load(
                bench.rig.load_program,
                "keep-alive",
                site.port,
                site.identities.bundle,
                connections=CLIENTS,
                requests=100,
                seconds=PATIENCE_S,
            )
        )
    assert done.count == 100
    assert counts["check_ins"] == 100 + CLIENTS  # and the first one of each connection
    assert 1 <= counts["batches"] <= counts["check_ins"]
    assert datagrams.datagrams == counts["datagrams"]
    assert datagrams.mean_bytes > 200


def test_a_measured_rate_has_all_its_numbers(bench: Bench) -> None:
    numbers = scaling.check_ins(bench, "keep-alive", CLIENTS)
    assert numbers["batch"] >= 1
    assert numbers["updates_per_datagram"] >= 1
    assert numbers["wal_bytes"] > 100
    assert sum(numbers[f"share_{name}"] for name in SHARES) == pytest.approx(1)
    sizes = scaling.sizes(bench)
    assert sizes["log_bytes"] > 100
    assert sizes["status_bytes"] > 100
    assert workloads.idle(bench)["kib_before"] > 1000


def test_a_resumed_connection_moves_less_than_a_new_one(bench: Bench) -> None:
    """And a check-in on an open one is a request, an answer, and what acknowledges them."""
    traffic = wire.measure(bench.site.port, bench.site.identities)
    assert traffic["check-in"].bytes > len(wire.REQUEST) + len(OK)
    assert 2 <= traffic["check-in"].segments <= 6
    assert traffic["check-in"].bytes < traffic["resumed"].bytes < traffic["handshake"].bytes
    assert traffic["check-in"].on_ethernet > traffic["check-in"].bytes + 2 * wire.TCP_HEADERS


def test_stores_on_one_database_share_its_numbers_and_others_do_not(surroundings: Rig) -> None:
    """One log of all, and a log each."""
    postgres = surroundings.postgres
    names = ("one_log", "another_log")
    for name in names:
        store_driver.fill(postgres, name, 10)
    for driven in (names[:1] * 2, names):
        before = [postgres.execute(name, "SELECT seq FROM head")[0][0] for name in names]
        numbers = store_driver.drive_stores(postgres, driven, 10, 0.3, 4)
        after = [postgres.execute(name, "SELECT seq FROM head")[0][0] for name in names]
        moved = [new > old for new, old in zip(after, before, strict=True)]
        assert moved == [True, len(set(driven)) == 2]
        assert 1 <= numbers["batch"] <= 4
    for name in names:
        ((head, entries),) = postgres.execute(
            name, "SELECT seq, (SELECT count(*) FROM check_in) FROM head"
        )
        assert head == entries + 10  # the users who are there from the start
        postgres.drop(name)


def test_a_listener_hears_and_repairs_what_is_announced_to_it(bench: Bench) -> None:
    """Nothing is counted as heard that was not: what is withheld is fetched, and no more."""
    with listener_load.listening(bench) as listener:
        heard = listener.run(300, 0.3)
        assert (heard["shown"], heard["repaired"], heard["missed"]) == (300, 0, 0)
        assert heard["datagrams"] < 300
        alone = listener.run(20, 0.1, batch=1)
        assert (alone["datagrams"], alone["shown"], alone["repaired"]) == (20, 20, 0)
        partly = listener.run(20, 0.1, batch=1, withheld=slice(5, 12))
        assert (partly["datagrams"], partly["shown"]) == (13, 20)
        assert (partly["repaired"], partly["missed"]) == (7, 0)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "Heard 35 datagrams: 20 updates shown, 12 duplicates, 3 refused (signature 3), "
            "0 of the other encoding, 0 healed, 2 repaired, 1 missed, lag 4.",
            (35, 20, 3, 0, 2, 1),
        ),
        (
            "Heard 9 datagrams: 2 updates shown, 0 duplicates, 0 refused, 7 dropped in a flood, "
            "0 of the other encoding, 0 healed, 0 repaired, 0 missed, lag 0.",
            (9, 2, 0, 7, 0, 0),
        ),
    ],
)
def test_a_listeners_summary_is_read(line: str, expected: tuple[int, ...]) -> None:
    names = ("datagrams", "shown", "refused", "dropped", "repaired", "missed")
    counts = dict(zip(names, expected, strict=True))
    assert listener_load.parse_line(line) == {"event": "summary", "counts": counts}
    assert listener_load.parse_line("another line") is None


@pytest.mark.parametrize(
    ("state", "kind", "event", "expected"),
    [
        ("idle", "Client", "ClientRead", "idle"),
        ("active", None, None, "running"),
        ("active", "Lock", "transactionid", "head_lock"),
        ("active", "Lock", "tuple", "head_lock"),
        ("active", "IO", "WalSync", "flush"),
        ("active", "IO", "WALSync", "flush"),
        ("active", "LWLock", "WALWrite", "flush"),
        ("active", "IO", "DataFileRead", "other"),
    ],
)
def test_what_a_commit_waits_for_has_a_name(
    state: str, kind: str | None, event: str | None, expected: str
) -> None:
    """In PostgreSQL's words, which changed their spelling in version 17."""
    assert wait_of(state, kind, event) == expected


def scaling_results() -> Results:
    """Round numbers, to reckon with."""
    made = Results("2026-01-02T03:04+00:00", {"CPU": "A"}, {"seconds": 1.0, "rounds": 1})
    shares = dict.fromkeys((f"share_{name}" for name in SHARES), 0.2)
    store = {"rate": 20_000.0, "server_cpu_ms": 0.01, "database_cpu_ms": 0.02, "batch": 50.0}
    store |= {"commit_ms": 2.0, "commits_rate": 400.0, "wal_bytes": 400.0} | shares
    check_ins = store | {"rate": 10_000.0, "server_cpu_ms": 0.1, "p50_ms": 1.0, "p99_ms": 2.0}
    check_ins |= {"updates_per_datagram": 5.0, "datagram_bytes": 1184.0, "datagrams_rate": 2000.0}
    for row in ("100", "full", "handshake", "resumed"):
        made.add("rates", row, check_ins | ({"server_cpu_ms": 1.0} if row[0] in "hr" else {}))
    for row, database in (("1", 0.02), ("2", 0.05), ("3", 0.04)):
        made.add("servers", row, check_ins | {"database_cpu_ms": database})
    for row, rate in (("8", 9_000.0), ("64", 50_000.0)):
        made.add("in_flight", row, store | {"rate": rate})
    made.add("one_log", "2", store)
    made.add("own_logs", "2", store)
    made.add("idle", "connection", {"kib": 32.0, "kib_before": 70_000})
    made.add("disk", "row", {"log_bytes": 200.0, "status_bytes": 300.0, "entries": 100})
    for row in ("check-in", "handshake", "resumed"):
        made.add("tcp", row, {"bytes": 200.0, "segments": 3, "on_ethernet": 500.0})
    for pace, repaired, in_time in (("1000", 0, 1.0), ("5000", 0, 0.99), ("9000", 1, 1.0)):
        heard = {"rate": float(pace), "in_time": in_time, "repaired": repaired, "dropped": 0}
        heard |= {"kernel_drops": 0, "cpu_us_per_update": 30.0, "cpu_us_per_datagram": 200.0}
        heard |= {"heard_rate": 1.0, "server_us_per_update": 5.0, "database_us_per_update": 1.0}
        made.add("listening", pace, heard)
    made.add("burst", "100", heard)
    made.add("fetching", "100", heard)
    return made


def test_what_a_million_need_follows_from_what_was_measured() -> None:
    found = scaling_tables.needs(scaling_results(), 600_000, 60)
    expected = {
        "check-ins a second": 10_000,
        "cores for servers, connections kept": 1.0,  # 10,000 times 0.1 ms
        "processes of the server, each half busy": 2,
        "cores for PostgreSQL": 0.5,  # at the dearest, two servers
        "cores for servers, if each check-in made a handshake": 10,
        "the same, with tickets": 10,
        # Of 50,000, with the largest batches.
        "share of what one log took on this machine, with full commits": 0.2,
        "memory for a million open connections, GiB": 600_000 * 32 / 2**20,
        "WAL, MB a second": 4.0,
        "WAL, GB a day, to archive or to a standby": 345.6,
        "log, GB a day": 172.8,
        "log, GB, of 7 days (`history.retention`)": 7 * 172.8,
        "status of all users, GB": 0.18,
        "clients' network, Mbit/s, both ways": 40,
        "the same of handshakes, if each check-in made one": 40,
        "datagrams a second, to each target": 2000,
        "announcements, Mbit/s, to each target": 2000 * (1184 + 66) * 8 / 1e6,
        "share of a core, for each listener": 0.3,
    }
    assert {what: number for what, (number, _) in found.items()} == pytest.approx(expected)


def test_a_listener_keeps_up_only_where_nothing_had_to_be_repaired() -> None:
    made = scaling_results()
    assert scaling_tables.keeps_up(made) == 5000
    made.rounds["listening"]["5000"].append(made.rounds["listening"]["9000"][0])
    assert scaling_tables.keeps_up(made) == 1000  # not in every round


def marked(names: list[str]) -> str:
    parts = [
        f"{tables.begin(name, scaling_tables.COMMAND)}\nold\n{tables.end(name)}" for name in names
    ]
    return "before\n" + "\nbetween\n".join(parts) + "\nafter\n"


def filled(page: str, made: Results) -> str:
    return tables.fill(page, scaling_tables.blocks(made), scaling_tables.COMMAND)


def test_a_page_is_filled_where_it_is_marked_and_nowhere_else() -> None:
    made = scaling_results()
    names = list(scaling_tables.blocks(made))
    page = filled(marked(names), made)
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert page.count("\nbetween\n") == len(names) - 1
    assert "old" not in page
    assert all(text in page for text in scaling_tables.blocks(made).values())
    assert filled(page, made) == page
    for wrong in (names[1:], [*names, "another"]):
        with pytest.raises(ValueError, match="the page has the blocks"):
            filled(marked(wrong), made)


def test_the_page_on_scaling_has_the_numbers_that_were_measured() -> None:
    """`python -m benchmarks.scaling` writes results and page together."""
    page = scaling.PAGE.read_text()
    made = results.load(scaling.RESULTS / "scaling.json")
    assert filled(page, made) == page
    assert (scaling.RESULTS / "scaling.md").read_text() == scaling_tables.markdown(made)
    made.rounds["disk"]["row"] = [{"log_bytes": 1.0, "status_bytes": 1.0, "entries": 1}]
    assert filled(page, made) != page


def test_repetitions_heal_nearly_every_loss() -> None:
    """In the simulation, and in the table on the page that a longer run of it wrote."""
    lines = loss.measure(events=2000)
    page = loss.PAGE.read_text()
    _, _, rest = page.partition(tables.begin("loss", loss.COMMAND))
    written = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in rest.partition(tables.end("loss"))[0].splitlines()
        if line.startswith("|") and "---" not in line
    ]
    for head, *cells in (lines, written):
        assert head == lines[0]
        assert [line[:2] for line in cells] == [line[:2] for line in lines[1:]]
        for without, healed in itertools.pairwise(cells):
            if (without[1], healed[1]) != ("0", "8"):
                continue
            shares = [[float(cell.rstrip("%")) for cell in line[2:]] for line in (without, healed)]
            assert all(share > 3 for share in shares[0])  # per cent: each loss shows
            assert all(share < 0.2 for share in shares[1][:-1])
            assert shares[1][-1] < shares[0][-1] / 2  # bursts of ten are longer than the memory


def test_the_walls_come_in_the_order_that_the_page_says() -> None:
    """Its words must still be true of the numbers beside them."""
    made = results.load(scaling.RESULTS / "scaling.json")

    def cpu(row: str, part: str) -> float:
        return made.summary("rates", row, f"{part}_cpu_ms").median

    assert cpu("handshake", "server") > 5 * cpu("full", "server")
    assert cpu("handshake", "server") > cpu("resumed", "server")
    assert cpu("full", "server") > cpu("full", "database")
    assert cpu("100", "server") > cpu("full", "server")  # batches make it cheaper
    need = scaling_tables.needs(made, scaling_tables.MILLION, scaling_tables.EVERY_S)
    assert need["log, GB a day"] > need["status of all users, GB"]


def test_a_filled_database_is_one_in_which_all_have_checked_in(surroundings: Rig) -> None:
    """With the certificates that the driver uses: a change of certificate costs more."""
    postgres = surroundings.postgres
    store_driver.fill(postgres, "filled", 20)
    known = "SELECT email, issuer, serial, devices FROM user_status ORDER BY email"
    before = postgres.execute("filled", known)
    store_driver.drive_stores(postgres, ["filled"], 20, 0.2, 4)
    assert postgres.execute("filled", known) == before
    assert len(before) == 20
    kinds = postgres.execute("filled", "SELECT DISTINCT event FROM check_in")
    assert kinds == [("check-in",)]
    postgres.drop("filled")


def test_pages_that_were_changed_already_need_no_image(surroundings: Rig) -> None:
    """Right after a checkpoint the first change of a page writes all of it, the second does not."""
    postgres = surroundings.postgres
    store_driver.fill(postgres, "images", 1000)
    wal = {}
    for touched in (False, True):
        postgres.execute("postgres", "CHECKPOINT")
        if touched:
            store_driver.touch(postgres, "images")
        # Of this statement only: autovacuum writes to the same WAL.
        (((plan,),),) = postgres.execute(
            "images",
            "EXPLAIN (ANALYZE, WAL, FORMAT JSON)"
            " UPDATE user_status SET client_port = 1 WHERE email = %s",
            identities.email(500),
        )
        wal[touched] = plan["Plan"]["WAL Bytes"]
    postgres.drop("images")
    assert wal[False] > 4000
    assert wal[True] < 1500


def test_a_quick_run_ends_with_the_round_that_its_time_allows(
    monkeypatch: pytest.MonkeyPatch, load_program: Path
) -> None:
    """And says so. Of the users, each number is measured, and the largest after a checkpoint."""
    monkeypatch.setattr(__main__, "USERS", (10, 20))
    made = __main__.run(ComparisonPlan([], ["users"], 50, 0.2, 8, budget_s=0.0))
    assert list(made.rounds["users"]) == ["10", "20", f"20 {__main__.AFTER_CHECKPOINT}"]
    assert made.settings["rounds"] == 1
    assert made.notes == ["1 of 50 rounds: no time for more"]
    assert made.summary("users", "10", "wal_bytes").median > 0


def test_a_peer_that_cannot_be_built_is_left_out_with_the_reason(load_program: Path) -> None:
    """The others are measured, and their ratios refer to the first of them."""

    def build(site: Site) -> list[list[object]]:
        return [[find_program("no-such-program", "its-name")]]

    peer = dataclasses.replace(THIS_SERVER, name="missing", title="A peer", commands=build)
    made = __main__.run(ComparisonPlan([peer, THIS_SERVER], ["idle"], 1, 0.2, 8))
    assert made.left_out == {"A peer": "no-such-program is not installed (Debian: its-name)"}
    assert [row.name for row in made.rows] == ["tornado_status"]
    assert list(made.rounds["idle"]) == ["tornado_status"]


@pytest.mark.parametrize("less", [["--quick"], ["--only", "go"], ["--workloads", "idle"]])
def test_only_a_run_of_everything_is_written_where_it_is_committed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, less: list[str]
) -> None:
    """A first look must not stand in README.md."""
    committed = {path: path.read_bytes() for path in (ROOT / "README.md", *RESULTS.iterdir())}
    monkeypatch.setattr("benchmarks.__main__.BUILD", tmp_path)
    monkeypatch.setattr("benchmarks.__main__.run", lambda plan: fixed_results())
    assert main(less) == 0
    assert "tornado_status" in (tmp_path / "results/results.md").read_text()
    assert main([*less, "--out", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere/results.svg").exists()
    assert {path: path.read_bytes() for path in committed} == committed


def test_no_round_begins_that_would_end_too_late(
    monkeypatch: pytest.MonkeyPatch, load_program: Path
) -> None:
    """A busy machine gives fewer rounds, and they are told."""
    monkeypatch.setattr(scaling, "MEASURED", [lambda surroundings, plan: time.sleep(0.2)])
    monkeypatch.setattr(scaling, "USERS", 10)
    plan = dataclasses.replace(scaling.QUICK_PLAN, rounds=50, stores=(1,), budget_s=0.0)
    made = scaling.run(plan)
    assert made.settings["rounds"] == 1
    assert made.notes == ["1 of 50 rounds: no time for more"]


def test_cpu_time_never_falls_while_children_come_and_go() -> None:
    """A child that is reaped between two looks must be in its own number or in its parent's."""
    burn = "import time\nwhile time.process_time() < 0.05: pass"
    parent = (
        "import subprocess, sys, threading\n"
        "ended = threading.Event()\n"
        "threading.Thread(target=lambda: (sys.stdin.read(), ended.set())).start()\n"
        "print('begun', flush=True)\n"
        "while not ended.is_set():\n"
        f"    subprocess.run([sys.executable, '-S', '-c', {burn!r}], check=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        looks = []
        end = time.monotonic() + 3
        while time.monotonic() < end:
            looks.append(processes.cpu_s([process.pid]))
        assert process.stdin is not None
        process.stdin.close()
    assert looks == sorted(looks)
    assert looks[-1] > looks[0]


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
    made.add("users", "1000", keep_alive(50000))
    made.add("users", "1000000", keep_alive(40000) | {"database_cpu_ms": 0.048})
    made.note("a note")
    return made


def keep_alive(rate: float) -> dict[str, float]:
    latencies = {"p50_ms": 0.6834, "p99_ms": 12.34}
    return {"rate": rate, "server_cpu_ms": 0.03, "database_cpu_ms": 0.009, **latencies}


def squeezed(text: str) -> str:
    return re.sub(" +", " ", text)


def test_a_summary_is_the_median_with_its_range() -> None:
    made = Results()
    for rate in (3.0, 1.0, 2.5):
        made.add("keep-alive", "one", {"rate": rate})
    summary = made.summary("keep-alive", "one", "rate")
    assert (summary.median, summary.low, summary.high) == (2.5, 1.0, 3.0)
    assert summary.spread == pytest.approx(0.4)


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """A disturbance of one round affects all rows of it. The ratio of two medians would be 1."""
    made = Results()
    for first, second in ((1.0, 2.0), (10.0, 20.0), (2.0, 1.0)):
        made.add("keep-alive", "first", {"rate": first})
        made.add("keep-alive", "second", {"rate": second})
    summary = made.summary("keep-alive", "second", "rate")
    assert (summary.ratio, summary.ratios) == (2.0, (2.0, 2.0, 0.5))


@pytest.mark.parametrize(
    ("ours", "said"),
    [((0.9, 0.8), "gained"), ((1.1, 1.2), "lost"), ((0.9, 1.2), "unclear")],
)
def test_gained_or_lost_is_said_where_all_rounds_agree(ours: tuple[float, ...], said: str) -> None:
    made = Results()
    for number in ours:
        for name, cpu in (("HEAD", 1.0), (THIS_SERVER.name, number)):
            made.add("handshake", name, {"server_cpu_ms": cpu / 2, "database_cpu_ms": cpu / 2})
    line = against.verdict(made, "HEAD")
    low, high = sorted(ours)
    expected = f"handshake {sum(ours) / 2:.3f} ({low:.3f} to {high:.3f}): {said}."
    assert line == f"CPU of a check-in against HEAD: {expected}"


def test_the_server_of_a_commit_is_measured_beside_this_one(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    load_program: Path,
) -> None:
    """It runs from a copy of that commit; the last line says which of the two costs less."""
    require("git", shutil.which("git") is not None and (ROOT / ".git").exists(), "a checkout")
    monkeypatch.setattr(against, "BUILD", tmp_path)
    less = ["--workloads", "keep-alive", "--rounds", "1", "--seconds", "0.2"]
    assert main(["--against", "HEAD", *less, "--out", str(tmp_path / "out")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(
        r"CPU of a check-in against HEAD: keep-alive \d\.\d{3} \(.*\): \w+.*\.", last
    )
    made = results.load(tmp_path / "out/results.json")
    assert [row.name for row in made.rows] == ["HEAD", "tornado_status"]
    (tree,) = (tmp_path / "against").iterdir()
    assert (tree / "tornado_status/__main__.py").exists()
    assert main(["--against", "no-such-commit"]) == 1
    assert "there is no commit no-such-commit" in capsys.readouterr().err


def test_the_table_has_a_cell_for_each_row_and_measured_workload() -> None:
    """A dash was not measured, ratios refer to the first row, notes stand below."""
    text = comparison.markdown(fixed_results())
    lines = text.splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:5]]
    titles, _, django, ours, nginx = table
    assert titles == ["server", "keep-alive: CPU ms", "check-ins/s", "p50 / p99 ms", "idle: KiB"]
    x, dash = tables.TIMES, tables.NOTHING
    cpu = f"0.030 ±0% (0.77{x})"
    ceiling = ["ceiling", cpu, f"88,000 ±0% (97.8{x})", "0.683 / 12.3", dash]  # of round one
    same, latency = f"0.030 + 0.009 ±0% (1.00{x})", "0.683 / 12.3"
    assert django == ["Slow & <old>", same, f"1,000 ±10% (1.0{x})", latency, dash]
    assert ours == ["tornado_status", same, f"20,000 ±0% (20.0{x})", latency, "35.2"]
    assert nginx == ceiling
    assert f"| 1,000 | 0.0300 + 0.0090 ±0% (1.00{x}) | 50,000 ±0% (1.00{x}) |" in squeezed(text)
    assert f"| 1,000,000 | 0.0300 + 0.0480 ±0% (2.00{x}) | 40,000 ±0% (0.80{x}) |" in squeezed(text)
    assert "- Left out: Go: go is not installed (Debian: golang-go)" in lines
    assert "- Note: a note" in lines


def test_a_column_that_an_older_run_did_not_measure_is_left_out() -> None:
    """A number that one row lacks is a dash. One that all lack is no column."""
    made = fixed_results()
    assert "WAL" not in comparison.markdown(made)
    after = f"1000000 {__main__.AFTER_CHECKPOINT}"
    made.add("users", after, keep_alive(25000) | {"wal_bytes": 4000.0})
    text = squeezed(comparison.markdown(made))
    assert (
        "| users in the database | CPU ms: server + PostgreSQL | check-ins/s | WAL bytes |" in text
    )
    assert f"| 1,000,000, {__main__.AFTER_CHECKPOINT} | 0.0300 + 0.0090" in text
    assert f" | 25,000 ±0% (0.50{tables.TIMES}) |" in text
    assert text.count("| 4,000 |") == 1


def test_the_committed_table_is_that_of_the_committed_numbers() -> None:
    """The same for the plot, and for the block of README.md."""
    made = results.load(RESULTS / "results.json")
    assert (RESULTS / "results.md").read_text() == comparison.markdown(made)
    assert (RESULTS / "results.svg").read_text() == plot.svg(made)
    readme = (ROOT / "README.md").read_text()
    assert tables.fill(readme, comparison.summary(made), comparison.COMMAND) == readme
    made.rounds["keep-alive"]["tornado_status"] = [keep_alive(1.0)]
    assert tables.fill(readme, comparison.summary(made), comparison.COMMAND) != readme


def test_the_plot_is_well_formed_and_shows_every_row() -> None:
    root = ElementTree.fromstring(plot.svg(fixed_results()))  # noqa: S314 - our own
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
    assert comparison.markdown(results.load(path)) == comparison.markdown(fixed_results())


def test_a_row_that_is_left_out_takes_its_numbers_along() -> None:
    made = fixed_results()
    made.leave_out(made.rows[0], "refused by the gate: 204 without a committed row")
    text = comparison.markdown(made)
    assert "Left out: Slow & <old>: refused by the gate" in text
    assert f"20,000 ±0% (1.0{tables.TIMES})" in text  # the first row is another now


# ------------------------------------------------------------------------------ the command line


def test_a_missing_program_is_named_with_its_package() -> None:
    with pytest.raises(Unavailable, match=r"no-such-program is not installed \(Debian: its-name\)"):
        find_program("no-such-program", "its-name")


def test_an_unknown_peer_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--only", "apache"])
    assert exit_.value.code == 2
    assert "invalid choice: 'apache'" in capsys.readouterr().err
