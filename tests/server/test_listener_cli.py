"""The listener against the real server: true and complete, whatever is lost or forged."""

from __future__ import annotations

import asyncio
import datetime
import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from certs_gen.cli import main as certs_gen
from listeners.listener import Listener, ListenerSettings
from listeners.repair import repair, server_api
from tests.support.announcing import LOG_ID, OTHER, Announcing, Relay
from tests.support.harness import (
    BROADCAST,
    LOOPBACK,
    PATIENCE_S,
    Server,
    StartServer,
    free_port,
    rows,
    targets,
    wait_until,
)
from tests.support.lineage import begin_log
from tests.support.listening import Listening, check_in, log_of, reading, verifying
from tornado_status.model.records import Event
from tornado_status.wire.datagram import encode_binary

MEMBERS = ["seq", "event", "email", "last_seen", "client_ip", "client_port"]


@pytest.fixture
def port() -> int:
    return free_port(socket.SOCK_DGRAM)


@pytest.fixture
def announcing(certs: Path, port: int) -> Iterator[Announcing]:
    with Announcing(port, certs / "announcer.key") as announcer:
        yield announcer


# --------------------------------------------------------------------------- with a server


def test_updates_are_verified_and_shown_as_ever(server: Server) -> None:
    """A reader's certificate is all it takes: the keys come from the server."""
    with (
        Listening(*reading(server)) as listener,
        Listening(*reading(server), "--count", 1, form="text") as for_people,
    ):
        check_in(server, 20)
        shown = listener.wait_for_seq(20)
        assert for_people.ended() == 0
        final = listener.stop()
    assert shown == log_of(server)
    assert all(list(update) == MEMBERS for update in shown)
    source = f"('127.0.0.1', {server.settings['announce']['source_port']})"
    rule, packet, *_, last = for_people.out.lines
    assert (rule, packet, last) == ("-" * 40, f"Source Packet: {source}", "-" * 40)
    assert len(for_people.out.lines) == 7
    assert ": 20 updates shown, " in final
    assert " 0 refused, " in final
    assert final.endswith(" 0 missed, lag 0.")


def test_the_defaults_need_no_option_beside_the_shipped_certificates(
    start_server: StartServer, certs: Path, tmp_path: Path
) -> None:
    """The listener finds the files where certs_gen left them."""
    server = start_server()
    (tmp_path / "certs").symlink_to(certs)
    (tmp_path / "unread").mkdir()
    for name in ("ca.crt", "announcer.crt"):
        (tmp_path / "unread" / "certs").mkdir(exist_ok=True)
        (tmp_path / "unread" / "certs" / name).symlink_to(certs / name)
    port = ("--port", server.announce_port)
    with (
        Listening(*port, "--url", server.url, cwd=tmp_path) as reader,
        Listening(*port, cwd=tmp_path / "unread") as other,
    ):
        check_in(server, 1)
        assert reader.wait_for(1) == other.wait_for(1)
        assert not [line for line in reader.said.lines if "Warning" in line]
        other.says("without a reader's certificate (--cert, --key) gaps are reported, not repaired")


def test_nothing_to_verify_with_is_one_sentence(tmp_path: Path) -> None:
    """Rather than showing what any sender can forge."""
    listener = Listening("--port", free_port(socket.SOCK_DGRAM), cwd=tmp_path)
    assert listener.ended() == 2
    [sentence] = listener.said.lines
    assert sentence.startswith("status-listener: nothing to verify announcements with: ")
    assert "--insecure" in sentence


def test_who_may_not_read_is_told(server: Server) -> None:
    """A client's certificate opens no log; with the announcer's it can still verify."""
    certs = server.certs
    client = ["--cert", certs / "client.crt", "--key", certs / "client.key"]
    listener = Listening(*reading(server), *client)
    assert listener.ended() == 2
    assert "answered 403: Only readers may see this: give a reader's" in listener.said.lines[0]
    with Listening(*reading(server), *client, "--announcer", certs / "announcer.crt") as other:
        other.says("gaps are reported, not repaired")
        check_in(server, 1)
        assert len(other.wait_for(1)) == 1


@pytest.mark.parametrize("loss", [0.3, 1.0])
def test_what_is_lost_on_the_way_is_repaired(
    start_server: StartServer, port: int, loss: float
) -> None:
    """The log comes out whole, once and in order, however bad the network is."""
    with Relay(port, loss) as relay:
        server = start_server(
            announce={
                "heartbeat_s": 1,
                "repeat": 0,  # so that nothing is healed, and all that is lost must be repaired
                "targets": [{"kind": "unicast", "address": LOOPBACK, "port": relay.port}],
            }
        )
        # If nothing comes through, the listener's own request to the server finds it.
        begin = ["--from", "start"] if loss == 1.0 else []
        if loss == 1.0:
            check_in(server, 400)
        with Listening(*reading(server, *begin, port=port), "--group", "") as listener:
            if loss < 1.0:
                check_in(server, 400)
            shown = listener.wait_for_seq(400)
            final = listener.stop()
        assert shown == log_of(server)
    assert "400 updates shown" in final
    assert " 0 repaired" not in final, final


def test_it_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    """With --state an update is shown once, over any number of runs."""
    state = tmp_path / "state.json"
    shown: list[dict[str, Any]] = []
    for run in range(3):
        with Listening(*reading(server, "--state", state)) as listener:
            check_in(server, 10)
            shown += listener.wait_for_seq(20 * run + 10)
            listener.stop()
        assert json.loads(state.read_text())["seq"] == 20 * run + 10
        check_in(server, 10)
    assert shown == log_of(server)[:50]


def test_where_to_begin_can_be_chosen(server: Server) -> None:
    """With what comes, with all that is kept, or with a number."""
    check_in(server, 5)
    for begin, expected in (("start", [1, 2, 3]), ("4", [4, 5]), ("5", [5])):
        more = ["--from", begin, "--count", len(expected)]
        listener = Listening(*reading(server, *more))
        assert listener.ended() == 0
        assert [update["seq"] for update in listener.shown] == expected
    with (
        Listening(*reading(server)) as listener,
        Listening(*reading(server, "--from", "snapshot")) as whole,
    ):
        assert whole.wait_for(1)[0]["event"] == "snapshot"
        check_in(server, 1)
        assert [update["seq"] for update in listener.wait_for(1)] == [6]
        assert [(u["event"], u["seq"]) for u in whole.wait_for(2)] == [
            ("snapshot", 5),
            ("check-in", 6),
        ]
        assert whole.stop().endswith(" 0 missed, lag 0.")


def test_what_the_server_no_longer_keeps_is_a_gap_and_a_snapshot(
    server: Server, tmp_path: Path
) -> None:
    """Afterwards the state of all users is known, and updates follow."""
    state = tmp_path / "state.json"
    with Listening(*reading(server, "--state", state)) as listener:
        check_in(server, 2)
        listener.wait_for_seq(2)
        listener.stop()
    check_in(server, 8)
    assert server.request("POST", "/api/client", cert="operator").status == 204
    server.rows("DELETE FROM check_in WHERE seq <= 9")
    with Listening(*reading(server, "--state", state)) as listener:
        listener.says("updates are missing, a snapshot follows")
        gap, *records = listener.wait_for(3)
        assert gap == {"event": "gap", "from": 3, "to": 11}
        assert [(r["seq"], r["event"], r["email"]) for r in records] == [
            (11, "snapshot", "operator@example.com"),
            (10, "snapshot", "valid_user@example.com"),
        ]
        assert all(list(record) == [*MEMBERS, "state"] for record in records)
        # With a history of one entry, and with one whose first is long forgotten.
        assert {record["state"] for record in records} <= {"online", "late"}
        check_in(server, 1)
        assert [update["event"] for update in listener.wait_for_seq(12)[3:]] == ["check-in"]
        assert " 9 missed, lag 0." in listener.stop()
    assert json.loads(state.read_text())["seq"] == 12


def test_who_goes_and_comes_back_is_shown_live_and_repaired(start_server: StartServer) -> None:
    """An event without a client's address is verified, counted and fetched like any other."""
    server = start_server(presence={"interval_s": 1, "offline_after_s": 2})
    with Listening(*reading(server)) as listener:
        check_in(server, 1)
        new, offline = listener.wait_for(2)
        check_in(server, 1)
        shown = listener.wait_for(3)
    assert [update["event"] for update in shown[:3]] == ["new", "offline", "back"]
    assert list(offline) == ["seq", "event", "email", "last_seen", "at"]
    assert offline["last_seen"] == new["last_seen"] < offline["at"]
    later = Listening(*reading(server, "--from", "start", "--count", 3))
    assert later.ended() == 0
    assert later.shown == shown[:3]


def test_a_new_key_and_a_restarted_server_are_followed(
    start_server: StartServer, certs: Path, port: int, tmp_path: Path
) -> None:
    """The listener learns the new key from the server, by itself."""
    certs = shutil.copytree(certs, tmp_path / "certs")
    assert certs_gen(["announcer", "--name", "rotated", "--out", str(certs)]) == 0
    same: dict[str, Any] = {"targets": targets(port), "heartbeat_s": 1}
    first = start_server(announce=same)
    with Listening(*reading(first, port=port)) as listener:
        check_in(first, 5)
        listener.wait_for_seq(5)
        first.stop()
        second = start_server(
            server={"port": first.port},
            announce={**same, "signing_key": str(certs / "rotated.key")},
        )
        check_in(second, 5)
        listener.wait_for_seq(10)
        check_in(second, 5)
        assert listener.wait_for_seq(15) == log_of(second)
        listener.stop()


def test_two_files_follow_a_rotation_without_a_server(
    certs: Path, port: int, tmp_path: Path
) -> None:
    """The old certificate and the new one, named both; a key of neither is refused."""
    certs = shutil.copytree(certs, tmp_path / "certs")
    assert certs_gen(["announcer", "--name", "renewed", "--out", str(certs)]) == 0
    assert certs_gen(["announcer", "--name", "unknown", "--out", str(certs)]) == 0
    both = ["--announcer", certs / "renewed.crt"]
    with (
        Listening(*verifying(certs, port, *both)) as listener,
        Announcing(port, certs / "announcer.key") as old,
        Announcing(port, certs / "renewed.key") as new,
        Announcing(port, certs / "unknown.key") as other,
    ):
        old.announce(1)
        listener.wait_for_seq(1)
        other.announce(2)
        new.announce(2)
        listener.wait_for_seq(2)
        assert "1 refused (unknown-kid 1)" in listener.stop()
        assert len(listener.out.lines) == 2


def test_a_new_log_is_followed_once_the_server_confirms_it(
    start_server: StartServer, certs: Path, port: int
) -> None:
    """And not on the word of a datagram, even of one that is signed."""
    same: dict[str, Any] = {"targets": targets(port)}
    first = start_server(announce=same)
    with Listening(*reading(first, port=port)) as listener:
        check_in(first, 3)
        listener.wait_for_seq(3)
        with Announcing(port, certs / "announcer.key") as other:
            other.announce(99)
        first.stop()
        [(new,)] = first.rows("UPDATE head SET log_id = gen_random_uuid() RETURNING log_id")
        second = start_server(server={"port": first.port}, announce=same)
        check_in(second, 1)
        shown = listener.wait_for(5)
        check_in(second, 1)
        shown = listener.wait_for_seq(5)
        listener.stop()
    assert shown[3] == {"event": "gap", "from": 1, "to": 4, "log": new}
    assert [(entry["seq"], entry["event"]) for entry in shown[4:]] == [
        (4, "snapshot"),
        (5, "check-in"),
    ]


def test_a_server_that_comes_later_is_waited_for(start_server: StartServer, port: int) -> None:
    """The listener may be started first."""
    same: dict[str, Any] = {"targets": targets(port), "heartbeat_s": 1}
    first = start_server(announce=same)
    first.stop()
    with Listening(*reading(first, port=port)) as listener:
        listener.says("Nothing listens on localhost port")
        second = start_server(server={"port": first.port}, announce=same)

        def shows() -> bool:
            check_in(second, 1)
            return bool(listener.out.lines)

        wait_until(shows, "an update")
        shown = listener.wait_for_seq(len(log_of(second)))
        assert shown == log_of(second, shown[0]["seq"] - 1)


def test_another_server_of_the_log_repairs_while_one_is_down(
    start_server: StartServer, port: int
) -> None:
    """With two --url the listener needs one of them."""
    with Relay(port, 0.3) as relay:
        announce = {
            "heartbeat_s": 1,
            "repeat": 0,
            "targets": [{"kind": "unicast", "address": LOOPBACK, "port": relay.port}],
        }
        first, second = start_server(announce=announce), start_server(announce=announce)
        both = ["--url", second.url, "--group", ""]
        with Listening(*reading(first, port=port), *both) as listener:
            check_in(first, 20)
            listener.wait_for_seq(20)
            first.stop()
            check_in(second, 400)
            assert listener.wait_for_seq(420) == log_of(second)
            assert " 0 repaired" not in listener.stop()
        # Nor does the one that is down delay the next start.
        whole = Listening(*reading(first, "--from", "start", "--count", 420), *both)
        assert whole.ended() == 0


def test_a_server_that_does_not_know_the_new_log_is_not_the_only_one_asked(
    start_server: StartServer, postgres: str, database_url: str, port: int
) -> None:
    """With two --url: one may be cut off with the old primary, and answers for as long as it is."""
    same: dict[str, Any] = {"targets": targets(port), "heartbeat_s": 1}
    before = start_server(announce=same)
    check_in(before, 3)
    before.stop()
    old = database_url.partition("?")[0].rpartition("/")[2]
    rows(postgres, f"CREATE DATABASE {old}_promoted TEMPLATE {old}")
    promoted = database_url.replace(f"/{old}?", f"/{old}_promoted?")
    cut_off = start_server(announce=same)
    server = start_server(announce=same, database={"url": promoted})
    begin_log(server)
    with Listening(*reading(cut_off, port=port), "--url", server.url) as listener:
        check_in(server, 1)
        listener.wait_for_seq(4)
        listener.stop()


def test_a_listener_hears_an_announcer_of_its_files_while_no_server_answers(
    start_server: StartServer, announcing: Announcing, certs: Path, tmp_path: Path
) -> None:
    """As without a reader's certificate, until a server says which log is right."""
    port = free_port()
    reader = ("--cert", certs / "operator.crt", "--key", certs / "operator.key")
    options = verifying(certs, announcing.port, *reader, "--url", f"https://localhost:{port}")
    state = tmp_path / "state.json"
    state.write_text(json.dumps({"log": str(LOG_ID), "seq": 1}))
    with Listening(*options) as listener, Listening(*options, "--state", state) as resumed:
        listener.says("until a server answers (--url) gaps are reported, not repaired")
        announcing.announce(1)
        announcing.announce(3)
        assert listener.wait_for(3)[1] == {"event": "gap", "from": 2, "to": 2}
        server = start_server(server={"port": port}, announce={"targets": []})
        [(log_id,)] = server.rows("SELECT log_id FROM head")
        assert listener.wait_for(4)[3] == {"event": "gap", "from": 1, "to": 0, "log": log_id}
        # A position that was asked for is not given up for a server that is away.
        assert resumed.wait_for(1)[0] == {"event": "gap", "from": 1, "to": 0, "log": log_id}


# ------------------------------------------------------------------------ without a server


def test_gaps_are_told_where_nothing_can_be_repaired(announcing: Announcing, certs: Path) -> None:
    """Each missing number is in exactly one gap."""
    with Listening(*verifying(certs, announcing.port)) as listener:
        for seqs in ((1, 2), (5,), (4,), (9,)):
            announcing.announce(*seqs)
        shown = listener.wait_for(7)
        announcing.announce(head=11)
        shown = listener.wait_for(8)
        assert listener.stop().endswith(" 6 missed, lag 0.")
    assert [
        entry.get("seq") or (entry["event"], entry["from"], entry["to"]) for entry in shown
    ] == [
        *(1, 2, ("gap", 3, 3), 4, 5, ("gap", 6, 8), 9, ("gap", 10, 11)),
    ]


def test_many_gaps_are_told_as_soon_as_one(announcing: Announcing, certs: Path) -> None:
    """A second each would be more than a test waits for, and a listener that is behind for ever."""
    gaps = int(2 * PATIENCE_S)
    with Listening(*verifying(certs, announcing.port)) as listener:
        for number in range(gaps):
            announcing.announce(2 * number + 1)
        listener.wait_for_seq(2 * gaps - 1)
        assert listener.stop().endswith(f" {gaps - 1} missed, lag 0.")


def test_a_wrong_clock_is_no_lag_of_0(announcing: Announcing, certs: Path) -> None:
    """Refused datagrams may hold any number; a datagram of this time ends the doubt."""
    with Listening(*verifying(certs, announcing.port)) as listener:
        announcing.announce(1)
        listener.wait_for_seq(1)
        announcing.send(announcing.payload(2, ahead_s=-100))
        listener.says("it was sent 100 s before the time on this clock")
        listener.process.send_signal(signal.SIGUSR1)
        listener.says("0 missed, lag unknown (is this machine's clock right?).")
        announcing.announce(2)
        listener.wait_for_seq(2)
        assert "0 missed, lag 0." in listener.stop()


def test_what_is_refused_is_counted_by_its_reason(announcing: Announcing, certs: Path) -> None:
    """And told once; what is good among it is shown, once."""
    with Listening(*verifying(certs, announcing.port)) as listener:
        good = announcing.announce(1)
        listener.wait_for_seq(1)
        heartbeat = announcing.payload(head=1)
        for _ in range(5):
            announcing.send(good)  # a replay
            announcing.send(good[:-88] + OTHER.sign(b"something else") + b'"}')
            announcing.send(good[:100])
            announcing.send(announcing.payload(2, ahead_s=-100))
            announcing.send(announcing.payload(3, ahead_s=100))
            announcing.send(encode_binary(Event(9, "new", "a@b.example", NOON, "::1", 1)))
        announcing.send(announcing.payload(head=1))
        announcing.send(heartbeat)
        announcing.log_id = uuid.UUID(int=7)
        announcing.send(announcing.payload(4, ahead_s=-30))
        announcing.log_id = LOG_ID
        announcing.announce(2)
        listener.wait_for_seq(2)
        final = listener.stop()
    assert [entry["seq"] for entry in listener.shown] == [1, 2]
    assert (
        "2 updates shown, 5 duplicates, 27 refused (binary 5, log 1, old-heartbeat 1, signature 5, "
        "skew 10, unsigned 5), 0 of" in final
    )
    warnings = [line for line in listener.said.lines if line.startswith("Warning: dropped")]
    assert len(warnings) == 5
    listener.says("datagrams of the binary format are not signed")


def test_the_format_before_is_refused_once_a_minute_by_its_own_name(
    announcing: Announcing, certs: Path
) -> None:
    """Also with a signature that is right, of a known key; its server is named."""
    with Listening(*verifying(certs, announcing.port)) as listener:
        assert announcing.signer is not None
        older = announcing.payload(1)[:-96].replace(b'{"v":2,', b'{"v":1,')
        signed = older + b',"sig":"' + announcing.signer.sign(older) + b'"}'
        for payload in (signed, signed, older + b"}"):
            announcing.send(payload)
        announcing.announce(2)
        listener.wait_for_seq(2)
        final = listener.stop()
    assert "1 updates shown, 0 duplicates, 3 refused (version-1 3), 0 of" in final
    warnings = [line for line in listener.said.lines if line.startswith("Warning: dropped")]
    assert warnings == [
        "Warning: dropped a datagram from 127.0.0.1: it has the older format v1: update its server"
    ]


@pytest.mark.parametrize("repeat", [8, 0])
def test_a_lost_datagram_is_healed_by_the_next(
    start_server: StartServer, port: int, repeat: int
) -> None:
    """No server is asked. Nothing is missing, unless the announcer repeats nothing."""
    with Relay(port, 0.3) as relay:
        target = {"kind": "unicast", "address": LOOPBACK, "port": relay.port}
        server = start_server(announce={"heartbeat_s": 0.2, "repeat": repeat, "targets": [target]})
        with Listening(
            *verifying(server.certs, port, "--group", "", "--from", "start")
        ) as listener:
            check_in(server, 200, connections=1)
            shown = listener.wait_for_seq(200)
            final = listener.stop()
    if repeat:
        assert shown == log_of(server)
        assert " 0 healed" not in final
        assert " 0 repaired, 0 missed, " in final
    else:
        assert any(entry["event"] == "gap" for entry in shown)
        assert " 0 healed, 0 repaired, " in final


NOON = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.UTC)


def test_a_newer_signed_log_is_followed_with_a_gap(announcing: Announcing, certs: Path) -> None:
    """Only an announcer can begin one; a pinned listener keeps to its own."""
    pinned_to = ["--log", LOG_ID]
    with (
        Listening(*verifying(certs, announcing.port)) as listener,
        Listening(*verifying(certs, announcing.port), *pinned_to) as pinned,
    ):
        old = announcing.announce(1)
        listener.wait_for_seq(1)
        announcing.log_id = uuid.UUID(int=7)
        announcing.announce(7)
        listener.wait_for_seq(7)
        announcing.log_id = LOG_ID
        announcing.announce(2)
        pinned.wait_for_seq(2)
        assert "log 1" in pinned.stop()
        assert "log 1" in listener.stop()
    assert old
    assert [entry.get("seq") for entry in pinned.shown] == [1, 2]
    assert listener.shown[1] == {
        "event": "gap",
        "from": 1,
        "to": 6,
        "log": "00000000-0000-0000-0000-000000000007",
    }
    assert [entry.get("seq") for entry in listener.shown] == [1, None, 7]


def test_insecure_shows_what_is_not_verified_and_marks_it(
    announcing: Announcing, certs: Path
) -> None:
    """Verified updates look as they always do."""
    port = announcing.port
    with Listening(*verifying(certs, port), "--insecure") as listener, Announcing(port) as stranger:
        announcing.announce(1)
        listener.wait_for(1)
        stranger.announce(2)
        stranger.announce(2)
        listener.wait_for(2)
        stranger.send(encode_binary(Event(9, "new", "a@b.example", NOON, "::1", 1)))
        listener.wait_for(3)
        announcing.announce(2)
        shown = listener.wait_for(4)
        listener.stop()
    assert [(entry.get("seq"), entry.get("verified")) for entry in shown] == [
        (1, None),
        (2, False),
        (None, False),
        (2, None),
    ]


def test_it_goes_on_without_a_server_too(
    announcing: Announcing, certs: Path, tmp_path: Path
) -> None:
    """Events during its absence are a gap; those shown before are not shown again."""
    state = tmp_path / "state.json"
    options = verifying(certs, announcing.port, "--state", state)
    with Listening(*options) as listener:
        announcing.announce(1, 2)
        listener.wait_for_seq(2)
        listener.stop()
    with Listening(*options) as listener:
        announcing.announce(1, 2)
        announcing.announce(5)
        listener.wait_for_seq(5)
        listener.stop()
    assert listener.shown[0] == {"event": "gap", "from": 3, "to": 4}
    assert listener.shown[1]["seq"] == 5


def test_the_position_is_saved_while_a_request_hangs(
    announcing: Announcing, certs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server takes the connection and says nothing for longer than the test waits."""
    monkeypatch.setattr(server_api, "TIMEOUT_S", 10 * PATIENCE_S)
    monkeypatch.setattr(server_api, "ANSWER_TIMEOUT_S", 10 * PATIENCE_S)
    monkeypatch.setattr(repair, "FIRST_ANSWER_S", 0.1)
    state = tmp_path / "state.json"

    async def listen(url: str) -> None:
        settings = ListenerSettings(
            port=announcing.port,
            ca=certs / "ca.crt",
            announcers=[certs / "announcer.crt"],
            urls=[url],
            certificate=certs / "operator.crt",
            private_key=certs / "operator.key",
            state=state,
        )

        def position() -> int:
            seq: int = json.loads(state.read_text())["seq"] if state.exists() else 0
            return seq

        async with asyncio.timeout(PATIENCE_S), Listener(settings) as listener:
            for seq in (1, 2, 3):
                announcing.announce(seq)
                await anext(listener)
            waiting = asyncio.ensure_future(anext(listener))
            while position() < 3:  # noqa: ASYNC110 - a file gives no event
                await asyncio.sleep(0.05)
            waiting.cancel()

    with socket.create_server((LOOPBACK, 0)) as mute:
        asyncio.run(listen(f"https://localhost:{mute.getsockname()[1]}"))


def test_one_command_gets_all_updates(announcing: Announcing, certs: Path, tmp_path: Path) -> None:
    """--exec starts it once; its end is the listener's."""
    target = tmp_path / "updates.jsonl"
    program = f"import sys, pathlib; pathlib.Path({str(target)!r}).write_text(sys.stdin.read())"
    command = shlex.join([sys.executable, "-c", program])
    with Listening(
        *verifying(certs, announcing.port), "--exec", command, "--count", 2, form="text"
    ) as listener:
        announcing.announce(1, 2)
        assert listener.ended() == 0
    assert [json.loads(line)["seq"] for line in target.read_text().splitlines()] == [1, 2]
    assert listener.out.lines == []

    failing = shlex.join([sys.executable, "-c", "import sys; sys.stdin.readline(); sys.exit(3)"])
    with Listening(*verifying(certs, announcing.port), "--exec", failing) as listener:
        announcing.announce(1)

        def ended() -> bool:
            announcing.announce(*[len(sent) + 2])
            sent.append(1)
            return listener.process.poll() is not None

        sent: list[int] = []
        wait_until(ended, "the end of a listener whose command ended")
        assert listener.ended() == 1
    listener.says("the command of --exec ended with status 3")


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="the system has no SIGUSR1")
def test_counts_are_told_on_demand(announcing: Announcing, certs: Path) -> None:
    """SIGUSR1 asks how it is going, and ends nothing."""
    with Listening(*verifying(certs, announcing.port)) as listener:
        announcing.announce(1)
        listener.wait_for_seq(1)
        listener.process.send_signal(signal.SIGUSR1)
        assert listener.says("Heard 1 datagrams").endswith(" 0 missed, lag 0.")
        announcing.announce(2)
        listener.wait_for_seq(2)


def test_broadcast_is_heard_beside_the_group(certs: Path, port: int) -> None:
    """The same datagram by both ways is one update."""
    with (
        Listening(*verifying(certs, port)) as listener,
        Announcing(port, certs / "announcer.key") as announcing,
    ):
        announcing.socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        payload = announcing.announce(1)
        announcing.socket.sendto(payload, (BROADCAST, port))
        announcing.announce(2)
        listener.wait_for_seq(2)
        assert "Heard 3 datagrams: 2 updates shown, 1 duplicates, 0 refused" in listener.stop()


def test_who_asks_for_the_binary_format_needs_no_proof(
    start_server: StartServer, tmp_path: Path
) -> None:
    """It is shown as it comes, without a certificate, from any directory; JSON is left out."""
    port = free_port(socket.SOCK_DGRAM)
    server = start_server(announce={"targets": targets(port, "json", "binary")})
    options = f"--encoding binary --format json --port {port} --count 1 --timeout {PATIENCE_S}"
    with subprocess.Popen(
        [sys.executable, "-m", "listeners", *options.split()],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert process.stderr.readline().startswith("Listening on")
        assert server.request("POST", "/api/client").status == 204
        [line] = process.stdout.read().splitlines()
        assert process.wait(PATIENCE_S) == 0
    update = json.loads(line)
    assert list(update) == ["email", "last_seen", "client_ip", "client_port"]
    assert update["email"] == "valid_user@example.com"
