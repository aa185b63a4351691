"""Database faults: acknowledged check-ins are kept, and the service recovers."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest

from tests.support.faults.ledger import REQUEST
from tests.support.faults.samples import peak_memory_kb
from tests.support.faults.tcp_relay import Relay
from tests.support.faults.trial import NAMES, MakePostgres, StartTrial, Trial
from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    Postgres,
    StartServer,
    require,
    rows,
    wait_until,
)
from tests.support.namespaces import check_in_from, network_of_its_own
from tests.support.with_constants import ASK_AGAIN_S, MAX_PENDING, STAGGER_S

pytestmark = pytest.mark.once

WRITER = "SELECT pid FROM pg_stat_activity WHERE application_name = 'tornado_status'"


@contextlib.contextmanager
def relayed(postgres: Postgres) -> Iterator[Relay]:
    with Relay(lambda: postgres.url) as relay:
        yield relay


# -------------------------------------------------------------------------------- the judge itself


def lose_a_batch(trial: Trial, relay: Relay) -> None:
    """Have one batch sent that never arrives."""
    trial.wait_acknowledged()
    relay.freeze(answers_pass=True)
    trial.wait_refused()
    relay.cut()
    relay.thaw()
    trial.wait_acknowledged()


def swallow_answers(trial: Trial, relay: Relay) -> None:
    """Have a batch committed whose answer is lost."""
    trial.wait_acknowledged()
    relay.swallow()
    assert relay.swallowed.wait(PATIENCE_S)
    relay.cut()
    trial.wait_acknowledged()


def nothing(trial: Trial, relay: Relay) -> None:
    trial.wait_acknowledged()


def refuse_commits(trial: Trial, relay: Relay) -> None:
    """Have the database roll back a batch: it waits in vain for another session's lock."""
    trial.wait_acknowledged()
    with contextlib.closing(psycopg2.connect(relay.url)) as other, other.cursor() as cursor:
        cursor.execute("SELECT seq FROM head FOR UPDATE")
        trial.server.wait_event("commit refused")
    trial.wait_acknowledged()


WRONG: list[tuple[str, Callable[[Trial, Relay], None], str]] = [
    ("acknowledge_early", lose_a_batch, "missing: "),
    ("announce_early", lose_a_batch, "announced and not recorded: "),
    ("retry", swallow_answers, "recorded twice: "),
    ("skip_numbers", nothing, "numbers with gaps: "),
    ("forget_the_status", nothing, "user_status is not "),
    ("announce_failed", refuse_commits, "announced and not recorded: "),
    ("acknowledge_failed", refuse_commits, "missing: "),
    ("lose_the_last", nothing, "missing: "),
    ("use_a_number_twice", nothing, "announced and not recorded: "),
    ("wrong_port", nothing, "missing: "),
    ("wrong_address", nothing, "recorded from elsewhere: "),
    ("wrong_issuer", nothing, "not that certificate: "),
    ("wrong_serial", nothing, "not that certificate: "),
    ("forget_the_previous", nothing, "not the number before it: "),
    ("forget_the_first", nothing, "first seen at another time: "),
    ("forget_devices", nothing, "not these devices: "),
    ("mix_up", nothing, "missing: "),
    ("forget_a_target", nothing, "not announced (broadcast): "),
    ("sign_nothing", nothing, "not signed (group): "),
    ("sign_wrongly", nothing, "not signed (broadcast): "),
]


@pytest.mark.parametrize(("wrong", "fault", "sentence"), WRONG, ids=[w for w, _, _ in WRONG])
def test_a_server_that_breaks_a_promise_is_found_out(
    make_postgres: MakePostgres,
    start_trial: StartTrial,
    wrong: str,
    fault: Callable[[Trial, Relay], None],
    sentence: str,
) -> None:
    """By the same judge, under the same faults, that find nothing in the real one below."""
    postgres = make_postgres()
    with relayed(postgres) as relay:
        trial = start_trial(relay.url, wrong=wrong, pipeline=2)
        fault(trial, relay)
        assert any(each.startswith(sentence) for each in trial.verdict(postgres.url))


@pytest.mark.parametrize("fresh", [True, False])
def test_a_check_in_with_an_id_of_its_own_is_missed(
    make_postgres: MakePostgres, start_trial: StartTrial, fresh: bool
) -> None:
    """By its address. On connections that stay open the counts are right, and nothing is found."""
    postgres = make_postgres()
    names = ("user1", "user2")
    trial = start_trial(
        postgres.url, wrong="answer_for_another", names=names, fresh=names if fresh else ()
    )
    trial.wait_refused()
    trial.wait_acknowledged()
    missing = [each for each in trial.verdict(postgres.url) if each.startswith("missing: ")]
    assert bool(missing) == fresh


# ------------------------------------------------------------------------------------- one by one


def test_postgresql_is_stopped_and_started(
    make_postgres: MakePostgres, start_trial: StartTrial
) -> None:
    """In good order, as for an upgrade."""
    postgres = make_postgres()
    trial = start_trial(postgres.url)
    for _ in range(2):
        trial.wait_acknowledged()
        postgres.stop()
        trial.wait_refused()
        postgres.start()
        print("MEASURED stop/start", trial.wait_acknowledged(1))
    trial.wait_acknowledged()
    assert trial.verdict(postgres.url) == []
    assert trial.server.management("/readyz").status == 200


def test_a_backend_is_killed(make_postgres: MakePostgres, start_trial: StartTrial) -> None:
    """By an administrator, ten times, in the middle of whatever it does."""
    postgres = make_postgres()
    trial = start_trial(postgres.url)
    for _ in range(10):
        trial.wait_acknowledged()
        pids = [pid for (pid,) in rows(postgres.url, WRITER)]
        for pid in pids:
            rows(postgres.url, "SELECT pg_terminate_backend(%s)", pid)
    print("MEASURED terminate", trial.wait_acknowledged(1))
    trial.wait_acknowledged()
    assert trial.verdict(postgres.url) == []


@pytest.mark.parametrize("wrong", [None, "commit_asynchronously"])
def test_postgresql_is_killed(
    make_postgres: MakePostgres, start_trial: StartTrial, wrong: str | None
) -> None:
    """With -9, long before it writes by itself what no commit waited for."""
    postgres = make_postgres(settings={"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"})
    trial = start_trial(postgres.url, wrong=wrong)
    trial.wait_acknowledged()
    postgres.kill()
    trial.wait_refused()
    postgres.start()
    trial.wait_acknowledged()
    verdict = trial.verdict(postgres.url)
    assert any(each.startswith("missing: ") for each in verdict) == (wrong is not None)
    assert wrong is not None or verdict == []


def test_the_network_freezes_and_thaws(
    make_postgres: MakePostgres, start_trial: StartTrial
) -> None:
    """A batch that was on its way arrives after the 503: recorded, and no harm."""
    postgres = make_postgres()
    with relayed(postgres) as relay:
        trial = start_trial(relay.url)
        for _ in range(2):
            trial.wait_acknowledged()
            relay.freeze()
            trial.wait_refused()
            relay.thaw()
            print("MEASURED thaw", trial.wait_acknowledged(1))
        trial.wait_acknowledged()
        assert trial.verdict(postgres.url) == []


def test_the_network_drops_every_packet(
    make_postgres: MakePostgres, start_server: StartServer
) -> None:
    """A firewall, without a word: 503 meanwhile, and back soon after it is gone."""
    require("nftables, for a firewall", shutil.which("nft") is not None, "Debian: nftables")
    with network_of_its_own() as enter:

        def nft(rule: str) -> None:
            subprocess.run([*enter, "nft", *rule.split()], check=True, timeout=PATIENCE_S)

        make_postgres(prefix=enter, settings={"listen_addresses": LOOPBACK})
        server = start_server(
            url=f"postgresql://postgres@{LOOPBACK}/postgres",
            prefix=enter,
            database={"commit_timeout_s": 1, "connect_timeout_s": 30},
        )
        assert check_in_from(enter, server) == "204"
        nft("add table inet hide")
        nft("add chain inet hide out { type filter hook output priority 0; }")
        nft("add rule inet hide out tcp dport 5432 drop")
        assert check_in_from(enter, server) == "503"
        server.wait_event("database lost, reconnecting")
        nft("delete table inet hide")
        began = time.monotonic()
        wait_until(lambda: check_in_from(enter, server) == "204", "the database to be back")
        print("MEASURED packets dropped", time.monotonic() - began)
        assert server.stop() == 0


@pytest.mark.parametrize("stagger_s", [None, 3600.0])
def test_a_host_that_drops_every_packet_is_left_for_the_next(
    make_postgres: MakePostgres, start_server: StartServer, stagger_s: float | None
) -> None:
    """Connecting to a silent host costs its stagger, not the hour of `connect_timeout_s`."""
    require("nftables, for a firewall", shutil.which("nft") is not None, "Debian: nftables")
    with network_of_its_own() as enter:

        def nft(rule: str) -> None:
            subprocess.run([*enter, "nft", *rule.split()], check=True, timeout=PATIENCE_S)

        make_postgres(prefix=enter, settings={"listen_addresses": "*"})
        server = start_server(
            url=f"postgresql://postgres@127.0.0.9,{LOOPBACK}/postgres",
            prefix=enter,
            database={"commit_timeout_s": 1, "connect_timeout_s": 3600},
            constants={STAGGER_S: stagger_s} if stagger_s else None,
        )
        assert check_in_from(enter, server) == "204"
        nft("add table inet hide")
        nft("add chain inet hide out { type filter hook output priority 0; }")
        began = time.monotonic()
        nft("add rule inet hide out ip daddr 127.0.0.9 drop")
        nft("add rule inet hide out ip saddr 127.0.0.9 drop")
        assert check_in_from(enter, server) == "503"
        if stagger_s is None:
            wait_until(lambda: check_in_from(enter, server) == "204", "the other host to be used")
            print("MEASURED silent first host", time.monotonic() - began)
            assert server.stop() == 0
        else:
            time.sleep(2)
            assert check_in_from(enter, server) == "503"
            server.stop(signal.SIGKILL)


def test_a_batch_is_lost_on_its_way(make_postgres: MakePostgres, start_trial: StartTrial) -> None:
    """Answered 503, and not recorded."""
    postgres = make_postgres()
    with relayed(postgres) as relay:
        trial = start_trial(relay.url)
        lose_a_batch(trial, relay)
        assert trial.verdict(postgres.url) == []


def test_an_answer_is_lost_on_its_way(make_postgres: MakePostgres, start_trial: StartTrial) -> None:
    """Answered 503, recorded all the same, and announced as soon as that is known."""
    postgres = make_postgres()
    with relayed(postgres) as relay:
        trial = start_trial(relay.url)
        swallow_answers(trial, relay)
        trial.server.wait_event("announcing events recorded without an answer")
        assert trial.verdict(postgres.url) == []
        heard = {update["seq"] for _, update in trial.listener.updates}
        assert heard == {seq for (seq,) in rows(postgres.url, "SELECT seq FROM check_in")}
        assert trial.load.ledger.acknowledged < len(heard)


def test_postgresql_is_stopped_in_its_tracks(
    make_postgres: MakePostgres, start_trial: StartTrial
) -> None:
    """SIGSTOP, as by a hypervisor that pauses its machine, and SIGCONT."""
    postgres = make_postgres()
    trial = start_trial(postgres.url)
    trial.wait_acknowledged()
    pids = [postgres.pid, *(pid for (pid,) in rows(postgres.url, WRITER))]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    trial.wait_refused()
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    print("MEASURED sigcont", trial.wait_acknowledged(1))
    trial.wait_acknowledged()
    assert trial.verdict(postgres.url) == []


def test_the_database_becomes_read_only(
    make_postgres: MakePostgres, start_trial: StartTrial
) -> None:
    """503, and readiness says why, until it is writable again."""
    postgres = make_postgres()
    trial = start_trial(postgres.url)
    trial.wait_acknowledged()
    rows(postgres.url, "ALTER SYSTEM SET default_transaction_read_only = on")
    rows(postgres.url, "SELECT pg_reload_conf()")
    trial.wait_refused()
    wait_until(
        lambda: "the database is read-only" in trial.server.management("/readyz").body.decode(),
        "the reason",
    )
    rows(postgres.url, "ALTER SYSTEM RESET ALL")
    rows(postgres.url, "SELECT pg_reload_conf()")
    print("MEASURED read-write", trial.wait_acknowledged(1))
    trial.wait_acknowledged()
    assert trial.verdict(postgres.url) == []


def test_the_database_is_slow(make_postgres: MakePostgres, start_trial: StartTrial) -> None:
    """Slow is not away: no client is refused while a commit keeps within its time."""
    postgres = make_postgres()
    with relayed(postgres) as relay:
        trial = start_trial(relay.url, patience_s=PATIENCE_S)
        trial.wait_acknowledged()
        relay.slow(0.1)
        trial.wait_acknowledged()
        assert trial.load.ledger.statuses[503] == 0
        assert trial.verdict(postgres.url) == []


def test_the_database_is_too_slow(make_postgres: MakePostgres, start_trial: StartTrial) -> None:
    """Another session holds the lock: PostgreSQL gives up first, so nothing hangs there."""
    postgres = make_postgres()
    trial = start_trial(postgres.url)
    trial.wait_acknowledged()
    other = psycopg2.connect(postgres.url)
    with contextlib.closing(other):
        with other.cursor() as cursor:
            cursor.execute("SELECT seq FROM head FOR UPDATE")
        trial.wait_refused()
        other.rollback()
    print("MEASURED lock", trial.wait_acknowledged(1))
    trial.wait_acknowledged()
    assert trial.verdict(postgres.url) == []
    refused = trial.server.events("commit refused")
    assert [each["sqlstate"] for each in refused] == ["57014"]  # once, though it failed often


@pytest.mark.parametrize("max_pending", [10, 1000])
def test_a_queue_before_a_frozen_database_is_bounded(
    make_postgres: MakePostgres, start_trial: StartTrial, max_pending: int
) -> None:
    """A check-in without room is refused at once; with room for all, none is."""
    postgres = make_postgres()
    with relayed(postgres) as relay:
        trial = start_trial(
            relay.url, patience_s=PATIENCE_S, pipeline=32, constants={MAX_PENDING: max_pending}
        )
        trial.wait_acknowledged(200)
        relay.freeze()
        if max_pending == 10:
            trial.wait_refused(20)
            assert queue_length(trial) <= 10
        else:
            everybody = 32 * len(NAMES)
            wait_until(lambda: trial.load.ledger.outstanding == everybody, "everybody to wait")
            assert trial.load.ledger.statuses[503] == 0
        relay.thaw()
        trial.wait_acknowledged(200)
        assert trial.verdict(postgres.url) == []


def queue_length(trial: Trial) -> float:
    metrics = trial.server.management("/metrics").body.decode()
    [line] = re.findall(r"^tornado_status_commit_queue_length (\S+)$", metrics, re.MULTILINE)
    return float(line)


def test_memory_before_a_frozen_database_is_bounded(
    make_postgres: MakePostgres, start_server: StartServer
) -> None:
    """Some clients send without end: they are not read from, and the server stays small."""
    postgres = make_postgres()
    with relayed(postgres) as relay, contextlib.ExitStack() as stack:
        server = start_server(url=relay.url, database={"commit_timeout_s": 3600})
        assert server.request("POST", "/api/client").status == 204
        before = peak_memory_kb(server.process.pid)
        relay.freeze()
        sent = 0
        for _ in range(8):
            connection = stack.enter_context(server.connect_raw())
            connection.settimeout(1)
            with contextlib.suppress(TimeoutError):
                for _ in range(1000):
                    connection.sendall(REQUEST * 500)  # 24 KB
                    sent += len(REQUEST) * 500
        assert sent < 8 * 1000 * len(REQUEST) * 500
        assert peak_memory_kb(server.process.pid) - before < 32 * 1024
        relay.thaw()
        assert server.request("POST", "/api/client", cert="operator").status == 204


def test_memory_while_the_database_is_away_is_bounded(
    make_postgres: MakePostgres, start_server: StartServer
) -> None:
    """Some clients send without end, and read none of the refusals."""
    postgres = make_postgres()
    with contextlib.ExitStack() as stack:
        server = start_server(url=postgres.url)
        assert server.request("POST", "/api/client").status == 204
        postgres.stop()
        wait_until(lambda: server.management("/readyz").status == 503, "the database to be missed")
        before = peak_memory_kb(server.process.pid)
        sent = 0
        for _ in range(8):
            connection = stack.enter_context(server.connect_raw())
            connection.settimeout(1)
            with contextlib.suppress(TimeoutError):
                for _ in range(1000):
                    connection.sendall(REQUEST * 500)  # 24 KB
                    sent += len(REQUEST) * 500
        assert sent < 8 * 1000 * len(REQUEST) * 500
        assert peak_memory_kb(server.process.pid) - before < 32 * 1024
        postgres.start()
        wait_until(
            lambda: server.request("POST", "/api/client", cert="operator").status == 204,
            "the database to be used again",
        )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with little room."""
    require("root, for a small file system", os.geteuid() == 0, "run as root")
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160m,mode=0755", "tmpfs", str(directory)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True, timeout=PATIENCE_S)
    require("the right to mount", done.returncode == 0, done.stderr.strip())
    yield directory
    subprocess.run(["umount", str(directory)], check=True, timeout=PATIENCE_S)


def test_the_disk_is_full(
    small_disk: Path, make_postgres: MakePostgres, start_trial: StartTrial
) -> None:
    """PostgreSQL can write no more, and dies of it; with room again all goes on."""
    postgres = make_postgres(small_disk / "data", settings={"wal_recycle": "off"})
    trial = start_trial(postgres.url)
    trial.wait_acknowledged()
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1024 * 1024))
            file.flush()
    with contextlib.suppress(psycopg2.Error):  # the log must grow: WAL is made 16 MB at a time
        for _ in range(10):
            rows(postgres.url, "SELECT pg_switch_wal()")
    trial.wait_refused()
    ballast.unlink()
    print("MEASURED disk", trial.wait_acknowledged(1))
    trial.wait_acknowledged()
    assert trial.verdict(postgres.url) == []


def test_several_sockets_are_tried_one_by_one(
    make_postgres: MakePostgres, start_server: StartServer, tmp_path: Path
) -> None:
    """Hosts may be directories, too; aiopg by itself would try the first one only."""
    postgres = make_postgres()
    url = postgres.url.replace("host=", f"host={tmp_path},")
    server = start_server(url=url)
    assert server.request("POST", "/api/client").status == 204


# -------------------------------------------------------------------------------------- durability


@pytest.mark.parametrize("name", ["fsync", "full_page_writes", "synchronous_commit"])
def test_a_database_that_may_forget_is_refused_or_warned_about(
    make_postgres: MakePostgres, start_server: StartServer, name: str
) -> None:
    """One line and exit 2; where the operator wants it so, the log and readiness say it."""
    postgres = make_postgres(settings={name: "off"})
    server = start_server(url=postgres.url, wait=False)
    assert server.process.wait(PATIENCE_S) == 2
    assert f"database.durability: {name} off in the database" in server.log.wait_end()
    server = start_server(url=postgres.url, database={"durability": "warn"})
    assert server.wait_event("a crash may lose acknowledged check-ins")["off"] == name
    ready = server.management("/readyz")
    assert ready.status == 200
    assert ready.json["warnings"] == [f"database: {name} is off: a crash may lose check-ins"]
    assert server.request("POST", "/api/client").status == 204


def test_a_database_that_begins_to_forget_is_not_used(
    make_postgres: MakePostgres, start_trial: StartTrial
) -> None:
    """Restarted without fsync: not ready, and says why; with it, all goes on."""
    postgres = make_postgres()
    trial = start_trial(postgres.url)
    trial.wait_acknowledged()
    postgres.stop()
    postgres.settings["fsync"] = "off"
    postgres.start()
    wait_until(
        lambda: "fsync off" in "".join(trial.server.management("/readyz").json["problems"]),
        "the reason",
    )
    postgres.stop()
    postgres.settings.clear()
    postgres.start()
    trial.wait_acknowledged()
    assert trial.verdict(postgres.url) == []


# ----------------------------------------------------------------------------------------- standby


class Pair:
    """A primary and its standby; each is reached through a relay, and so is replication."""

    def __init__(self, make: MakePostgres, *, synchronous: bool) -> None:
        settings = {"wal_level": "replica"}
        if synchronous:
            settings["synchronous_standby_names"] = "*"
        self.primary = make()
        self.primary.stop()
        self.standby = Postgres(self.primary.directory.parent / "standby")
        shutil.copytree(self.primary.directory, self.standby.directory)
        (self.standby.directory / "standby.signal").touch()
        self.primary.settings = settings
        self.primary.start()
        self.replication = Relay(lambda: self.primary.url)
        self.relays = [Relay(lambda: self.primary.url), Relay(lambda: self.standby.url)]
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Pair:
        for relay in (self.replication, *self.relays):
            self._stack.enter_context(relay)
        self._stack.callback(self.standby.stop)
        self.standby.settings["primary_conninfo"] = (
            f"host=127.0.0.1 port={self.replication.port} user=postgres"
        )
        self.standby.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        ports = ",".join(f"127.0.0.1:{relay.port}" for relay in self.relays)
        return f"postgresql://postgres@{ports}/postgres?target_session_attrs=read-write"

    def wait_streaming(self) -> None:
        wait_until(
            lambda: rows(
                self.primary.url, "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"
            ),
            "the standby to stream",
        )

    def lose_primary(self) -> None:
        """The primary's machine is gone, for good, and the standby is promoted."""
        self.primary.kill()
        self.replication.cut()
        rows(self.standby.url, "SELECT pg_promote()")


def test_nothing_is_lost_with_a_synchronous_standby(
    make_postgres: MakePostgres, start_trial: StartTrial
) -> None:
    """The primary dies under load: the server finds the promoted standby, in a new stream."""
    with Pair(make_postgres, synchronous=True) as pair:
        pair.wait_streaming()
        trial = start_trial(pair.url)
        trial.wait_acknowledged()
        began = time.monotonic()
        pair.lose_primary()
        trial.wait_acknowledged(1)
        print("MEASURED failover", time.monotonic() - began)
        trial.wait_acknowledged()
        assert trial.verdict(pair.standby.url) == []
        assert len(trial.listener.heads) == 2


@pytest.mark.parametrize("ask_again_s", [None, 3600.0])
def test_a_standby_is_promoted_while_the_primary_is_silent(
    make_postgres: MakePostgres, start_server: StartServer, ask_again_s: float | None
) -> None:
    """It answered "read-only" and is asked again, for all of `connect_timeout_s`."""
    asked = threading.Event()

    def standby() -> str:
        asked.set()
        return pair.standby.url

    with Pair(make_postgres, synchronous=True) as pair, Relay(standby) as relay:
        pair.wait_streaming()
        server = start_server(
            url=f"postgresql://postgres@{LOOPBACK}:{pair.relays[0].port},{LOOPBACK}:{relay.port}"
            "/postgres?target_session_attrs=read-write",
            database={"commit_timeout_s": 1, "connect_timeout_s": 3600},
            constants={ASK_AGAIN_S: ask_again_s} if ask_again_s else None,
        )
        assert server.request("POST", "/api/client").status == 204
        asked.clear()
        pair.relays[0].freeze()
        assert server.request("POST", "/api/client").status == 503
        assert asked.wait(PATIENCE_S)
        time.sleep(1)  # it has answered
        pair.lose_primary()
        began = time.monotonic()
        if ask_again_s is None:
            wait_until(
                lambda: server.request("POST", "/api/client").status == 204, "the promoted standby"
            )
            print("MEASURED promoted beside a silent host", time.monotonic() - began)
            assert server.stop() == 0
        else:
            time.sleep(2)
            assert server.request("POST", "/api/client").status == 503
            server.stop(signal.SIGKILL)


def test_an_asynchronous_standby_loses_what_it_had_not_received(
    make_postgres: MakePostgres, start_trial: StartTrial
) -> None:
    """The judge finds what the documentation says."""
    with Pair(make_postgres, synchronous=False) as pair:
        pair.wait_streaming()
        trial = start_trial(pair.url)
        trial.wait_acknowledged()
        pair.replication.freeze()
        trial.wait_acknowledged()
        pair.lose_primary()
        trial.wait_acknowledged()
        assert any(each.startswith("missing: ") for each in trial.verdict(pair.standby.url))


def test_without_its_synchronous_standby_nothing_is_acknowledged(
    make_postgres: MakePostgres, start_trial: StartTrial
) -> None:
    """503 until the standby is back, then on by itself."""
    with Pair(make_postgres, synchronous=True) as pair:
        pair.wait_streaming()
        trial = start_trial(pair.url)
        trial.wait_acknowledged()
        pair.replication.freeze()
        trial.wait_refused()
        pair.replication.thaw()
        print("MEASURED standby back", trial.wait_acknowledged(1))
        trial.wait_acknowledged()
        assert trial.verdict(pair.primary.url) == []


def waiting_for_the_standby(
    primary: Postgres, before: datetime.datetime | None
) -> tuple[int, datetime.datetime]:
    """Wait for a commit to wait, not the one begun `before`; return who, and since when."""
    statement = WRITER.replace("pid", "pid, query_start")
    statement += " AND wait_event = 'SyncRep' AND query_start IS DISTINCT FROM %s"
    [(pid, begun)] = wait_until(lambda: rows(primary.url, statement, before), "a commit to wait")
    return pid, begun


@pytest.mark.parametrize("wrong", [None, "ignore_warnings"])
def test_a_commit_that_the_standby_never_confirmed_is_no_commit(
    make_postgres: MakePostgres, start_trial: StartTrial, wrong: str | None
) -> None:
    """PostgreSQL reports success with a warning if the wait is cancelled: 503, not 204."""
    with Pair(make_postgres, synchronous=True) as pair:
        pair.wait_streaming()
        trial = start_trial(pair.url, wrong=wrong, patience_s=PATIENCE_S)
        trial.wait_acknowledged()
        pair.replication.freeze()
        # The first may have reached the standby before the wire froze; the third is sent before the
        # second is told.
        begun = None
        for _ in range(3):
            pid, begun = waiting_for_the_standby(pair.primary, begun)
            rows(pair.primary.url, "SELECT pg_cancel_backend(%s)", pid)
        waiting_for_the_standby(pair.primary, begun)
        if wrong is None:
            wait_until(lambda: trial.load.ledger.statuses[503], "a refusal")
        pair.lose_primary()
        trial.wait_acknowledged()
        verdict = trial.verdict(pair.standby.url)
        assert any(each.startswith("missing: ") for each in verdict) == (wrong is not None)
        assert wrong is not None or verdict == []
