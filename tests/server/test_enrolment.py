"""People: enrolled, removed and erased, by admins and by the command line; and who is refused."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from listeners.events import Snapshot, Update
from listeners.output import Format, render
from listeners.repair import api_responses
from tests.support.harness import (
    Heard,
    Server,
    StartServer,
    exchange,
    free_port,
    rows,
    targets,
    wait_until,
)
from tests.support.store import check_in, run, until
from tests.support.users_command import run_users, told
from tornado_status.api import Access
from tornado_status.commands.users import changes
from tornado_status.config.settings import DatabaseSettings, PresenceSettings
from tornado_status.errors import ConfigError, StoreUnavailable
from tornado_status.model.records import ERASED_EMAIL, Event
from tornado_status.store import Store
from tornado_status.store import enrolment as people_module
from tornado_status.store.enrolment import OfflineEnrolment
from tornado_status.store.log_id import connected

VALID = "valid_user@example.com"
PATH = f"/api/users/{VALID}"
ADMINS: dict[str, Any] = {"admins": ["operator@example.com"], "readers": []}
CLOSED = {**ADMINS, "enrolment": "closed"}
LOG = "SELECT seq, event, email FROM check_in ORDER BY seq"
# Everything that the database holds of users, as text.
ALL = (
    "SELECT t::text FROM check_in t UNION ALL SELECT t::text FROM user_status t"
    " UNION ALL SELECT t::text FROM unannounced t UNION ALL SELECT t::text FROM alert_message t"
)


# ---------------------------------------------------------------------------------- over the API


def test_an_admin_lets_in_and_shows_out(start_server: StartServer) -> None:
    """With closed enrolment: enrolled as new, in every list; removed, and unknown again."""
    server = start_server(access=CLOSED)
    with Heard(server.announce_port) as heard:
        assert server.request("POST", "/api/client").status == 403
        enrolled_now = server.request("PUT", "/api/users/Valid_User@EXAMPLE.com", cert="operator")
        assert enrolled_now.status == 201
        [enrolled] = heard.updates(1)
        assert list(enrolled) == ["seq", "event", "email", "at"]
        assert (enrolled["seq"], enrolled["event"], enrolled["email"]) == (1, "enrolled", VALID)
        assert server.request("PUT", PATH, cert="operator").status == 204  # and no event

        record = server.request("GET", PATH, cert="operator").json
        never = dict.fromkeys(("last_seen", "first_seen", "client_ip", "client_port"))
        assert record == {"email": VALID, "state": "never", "seq": 1, **never}
        assert server.request("GET", "/api/client").json == record
        page = server.request("GET", "/api/users", cert="operator")
        assert page.json["users"] == [record]
        [known] = api_responses.users(page.body).users
        assert (known.email, known.seq, known.last_seen, known.client_ip) == (VALID, 1, None, None)

        assert server.request("POST", "/api/client").status == 204
        [new] = heard.updates(1)
        assert (new["seq"], new["event"]) == (2, "new")
        history = server.request("GET", f"{PATH}/history", cert="operator").json["events"]
        assert [entry["event"] for entry in history] == ["new", "enrolled"]
        table = server.request("GET", "/api/events.csv", cert="operator").body.decode().splitlines()
        assert re.fullmatch(rf"1,enrolled,{VALID},[^,]+Z,,,,,", table[1])

        assert server.request("DELETE", PATH, cert="operator").status == 204
        [removed] = heard.updates(1)
        assert list(removed) == ["seq", "event", "email", "last_seen", "at"]
        assert (removed["seq"], removed["event"]) == (3, "removed")
        assert removed["last_seen"] == new["last_seen"]
    answer = server.request("DELETE", PATH, cert="operator")
    assert (answer.status, answer.detail) == (404, "This e-mail is not enrolled")
    assert server.request("GET", PATH, cert="operator").status == 404
    assert server.request("GET", "/api/users", cert="operator").json["users"] == []
    answer = server.request("POST", "/api/client")
    assert (answer.status, answer.detail) == (403, "User unknown")
    body = server.request("GET", "/api/events?after=0", cert="operator").body
    assert [event.event for event in api_responses.events(body, 0).events] == [
        "enrolled",
        "new",
        "removed",
    ]


def test_a_kept_connection_ends_with_its_user(start_server: StartServer) -> None:
    """The next check-in of a removed user is refused, on the same connection too."""
    server = start_server(access=CLOSED)
    assert server.request("PUT", PATH, cert="operator").status == 201
    connection = server.connect()
    assert exchange(connection, "POST", "/api/client").status == 204
    assert server.request("DELETE", PATH, cert="operator").status == 204
    assert exchange(connection, "POST", "/api/client").status == 403
    connection.close()


def test_who_is_removed_where_enrolment_is_open_begins_anew(start_server: StartServer) -> None:
    """As if never seen before."""
    server = start_server(access=ADMINS)
    assert server.request("POST", "/api/client").status == 204
    assert server.request("DELETE", PATH, cert="operator").status == 204
    assert server.request("POST", "/api/client").status == 204
    assert server.rows(LOG) == [(1, "new", VALID), (2, "removed", VALID), (3, "new", VALID)]
    history = server.request("GET", f"{PATH}/history").json["events"]
    assert [entry["seq"] for entry in history] == [3]


def test_only_admins_change_anything_and_refusals_are_logged(start_server: StartServer) -> None:
    """Not readers, nor users for themselves. Logged once a kind: who, and what."""
    access = {"readers": ["operator@example.com"], "admins": ["boss@example.com"]}
    server = start_server(access={**access, "enrolment": "closed"})
    for cert in ("operator", "client"):
        for method in ("PUT", "DELETE"):
            answer = server.request(method, PATH, cert=cert)
            assert (answer.status, answer.detail) == (403, "Only admins may enrol and remove users")
    assert server.request("GET", "/api/users").status == 403
    for n in range(5):
        assert server.request("GET", f"/api/users/somebody{n}@example.com/history").status == 403
    assert server.request("GET", "/api/users", cert="operator").status == 200
    assert server.rows("SELECT (SELECT count(*) FROM user_status), seq FROM head") == [(0, 0)]
    fields = ("email", "method", "path", "client_ip")
    forbidden = [tuple(line[f] for f in fields) for line in server.events("request forbidden")]
    assert forbidden == [
        ("operator@example.com", "PUT", PATH, "127.0.0.1"),
        ("operator@example.com", "DELETE", PATH, "127.0.0.1"),
        (VALID, "PUT", PATH, "127.0.0.1"),
        (VALID, "DELETE", PATH, "127.0.0.1"),
        (VALID, "GET", "/api/users", "127.0.0.1"),
        (VALID, "GET", "/api/users/somebody0@example.com/history", "127.0.0.1"),
    ]


def test_a_refused_path_cannot_fill_the_log(server: Server) -> None:
    """A long path is cut, and what is escaped in it stays so."""
    assert server.request("GET", "/api/users/%1b%5b2J%0a" + "x" * 2000).status == 403
    path = server.wait_event("request forbidden")["path"]
    assert path.startswith("/api/users/%1b%5b2J%0axxx")
    assert len(path) < 300


@pytest.mark.parametrize(
    "text",
    ["nonsense", "%00", f"{VALID}%00", "a%0a@example.com", "a@b", "a@@b.example", "'@example.com;",
     '"a"@example.com', "x" * 60 + "@example.com", "a@[127.0.0.1]", "%ff@example.com",
     ERASED_EMAIL],
)  # fmt: skip
def test_what_is_no_email_is_told_so(start_server: StartServer, text: str) -> None:
    """400 and a sentence, whatever is asked about it; nothing changes."""
    server = start_server(access=ADMINS)
    for method, path in (("PUT", ""), ("DELETE", ""), ("GET", ""), ("GET", "/history")):
        answer = server.request(method, f"/api/users/{text}{path}", cert="operator")
        assert answer.status == 400, (method, path)
    assert server.rows("SELECT seq FROM head") == [(0,)]


def test_addresses_are_taken_as_certificates_are(start_server: StartServer) -> None:
    """Apostrophes, and domains in any spelling: the canonical form is enrolled."""
    server = start_server(access=ADMINS)
    for text in ("o'Brien@example.com", "a@bücher.example", "{%s}@example.com"):
        assert server.request("PUT", f"/api/users/{quote(text)}", cert="operator").status == 201
        assert server.request("PUT", f"/api/users/{quote(text)}", cert="operator").status == 204
    assert server.rows("SELECT email FROM user_status ORDER BY seq") == [
        ("o'brien@example.com",),
        ("a@xn--bcher-kva.example",),
        ("{%s}@example.com",),
    ]


def test_admins_may_read_and_are_named_as_readers_are() -> None:
    """By address, in any spelling, or by pattern; none by default."""
    access = Access(["*@ops.example.com"], ["Boss@Example.com", "a@bücher.example"])
    for admin in ("boss@example.com", "a@xn--bcher-kva.example"):
        assert access.may_administer(admin)
        assert access.may_read_all(admin)
    assert access.may_read_all("x@ops.example.com")
    assert not access.may_administer("x@ops.example.com")
    assert not Access([]).may_read_all("boss@example.com")
    assert not Access([]).may_administer("boss@example.com")


def test_numbers_stay_whole_whoever_changes_what(database_url: str) -> None:
    """Two servers enrol, remove and record the same people at once: each number exactly once."""
    heard: list[Event] = []

    async def body(store: Store) -> None:
        other = Store(
            DatabaseSettings(url=database_url),
            enrolment_closed=False,
            subscribers=[lambda batch: heard.extend(batch.events)],
        )
        await other.start()
        await other.wait_connected()
        try:
            work: list[Coroutine[Any, Any, object]] = []
            for n in range(240):
                each = (store, other)[n % 2]
                email = f"u{n % 5}@example.com"
                if n % 4 == 0:
                    work.append(each.enrol(email))
                elif n % 4 == 1:
                    work.append(each.remove(email))
                else:
                    work.append(each.record(check_in(f"u{n % 5}")))
            for begin in range(0, len(work), 60):
                await asyncio.gather(*work[begin : begin + 60])
        finally:
            await other.stop()

    run(database_url, heard, body)
    log = rows(database_url, LOG)
    assert [seq for seq, _, _ in log] == list(range(1, len(log) + 1))
    assert sorted((e.seq, e.event, e.email) for e in heard) == log
    # The log and the record of each user agree.
    expected: dict[str, int] = {}
    for seq, event, email in log:
        assert (email in expected) or event in ("enrolled", "new"), (seq, event)
        expected[email] = seq
        if event == "removed":
            del expected[email]
    assert dict(rows(database_url, "SELECT email, seq FROM user_status")) == expected


# ------------------------------------------------------------------------------ the command line


def test_what_a_command_writes_is_announced_by_one_server(
    start_server: StartServer, tmp_path: Path
) -> None:
    """Each entry once, though two servers run; the log has it at once."""
    port = free_port(socket.SOCK_DGRAM)
    announce = {"targets": targets(port)[:1]}
    servers = [start_server(access=CLOSED, announce=announce) for _ in range(2)]
    with Heard(port) as heard:
        done = run_users(servers[0], tmp_path, "add", VALID, "B@example.com", VALID)
        assert told(done) == [f"{VALID}: enrolled", "b@example.com: enrolled"]
        assert told(run_users(servers[0], tmp_path, "add", VALID)) == [f"{VALID}: already there"]
        found = heard.updates(2)
        assert [(u["seq"], u["event"], u["email"]) for u in found] == [
            (1, "enrolled", "b@example.com"),
            (2, "enrolled", VALID),
        ]
        for server in servers:
            assert server.request("POST", "/api/client").status == 204
        assert [update["seq"] for update in heard.updates(2)] == [3, 4]
        # This is how a second announcement would look.
        servers[0].rows("INSERT INTO unannounced VALUES (2)")
        assert [update["seq"] for update in heard.updates(1)] == [2]
        assert told(run_users(servers[1], tmp_path, "remove", VALID)) == [f"{VALID}: removed"]
        [removed] = heard.updates(1)
        assert (removed["seq"], removed["event"]) == (5, "removed")
        assert servers[0].request("POST", "/api/client").status == 403


def test_what_was_written_while_no_server_ran_is_announced_by_the_next(
    start_server: StartServer, tmp_path: Path
) -> None:
    """And counts at once."""
    server = start_server()
    server.stop()
    done = run_users(server, tmp_path, "add", "-", given=f"{VALID}\n\n a@example.com \n")
    assert told(done) == [f"{VALID}: enrolled", "a@example.com: enrolled"]
    done = run_users(server, tmp_path, "remove", "a@example.com", "z@example.com")
    assert (done.returncode, done.stdout) == (
        1,
        "a@example.com: removed\nz@example.com: unknown\n",
    )
    port = free_port(socket.SOCK_DGRAM)
    with Heard(port) as heard:
        start_server(announce={"targets": targets(port)[:1]})
        assert [u["event"] for u in heard.updates(3)] == ["enrolled", "enrolled", "removed"]


@pytest.mark.parametrize(
    ("words", "given", "problem"),
    [
        (["add", "nonsense"], "", "'nonsense': not a valid e-mail address"),
        (["add", "-"], "a@example.com\nb\0@example.com\n", "'b\\x00@example.com': not a valid"),
        (["remove", "\x1b[2J@example.com"], "", "'\\x1b[2J@example.com': not a valid"),
        (["erase", "x" * 2000], "", "does not fit in a common name"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_told_and_changes_nothing(
    server: Server, tmp_path: Path, words: list[str], given: str, problem: str
) -> None:
    """One line on standard error, status 2."""
    done = run_users(server, tmp_path, *words, given=given)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.rstrip("\n").isprintable()
    assert server.rows("SELECT seq FROM head") == [(0,)]


def test_a_database_of_another_version_is_left_alone(
    start_server: StartServer, tmp_path: Path, empty_database_url: str
) -> None:
    """An empty one, and one that a later version has migrated."""
    server = {"database": {"url": empty_database_url}, "tls": {}, "announce": {"targets": []}}
    for words in (["add", VALID], ["list"]):
        done = run_users(server, tmp_path, *words)
        assert done.returncode == 2
        assert "start its server once" in done.stderr
    started = start_server(url=empty_database_url)
    started.rows("UPDATE alembic_version SET version_num = 'g3_9999'")
    done = run_users(started, tmp_path, "add", VALID)
    assert done.returncode == 2
    assert "this version can serve generation 2" in done.stderr
    started.rows("UPDATE alembic_version SET version_num = 'g2_9999'")  # newer, and compatible
    assert told(run_users(started, tmp_path, "add", VALID))


def test_a_database_that_is_away_is_status_1(tmp_path: Path) -> None:
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/nothing"
    for words in (["add", VALID], ["list"]):
        done = run_users({"database": {"url": url}}, tmp_path, *words)
        assert (done.returncode, done.stdout) == (1, "") or words == ["list"]
        assert done.returncode == 1
        assert "tornado-status: " in done.stderr


def test_everybody_is_listed(start_server: StartServer, tmp_path: Path) -> None:
    """As a table for people, as JSON lines for programs, or only who is in one state."""
    server = start_server()
    told(run_users(server, tmp_path, "add", "later@example.com"))
    assert server.request("POST", "/api/client").status == 204
    server.rows("UPDATE user_status SET offline = true WHERE email = %s", VALID)
    heading, later, valid, summary = told(run_users(server, tmp_path, "list"))
    assert heading.split() == ["E-MAIL", "STATE", "LAST", "SEEN", "(UTC)", "FROM"]
    assert later.split() == ["later@example.com", "never", "never"]
    assert re.fullmatch(rf"{VALID} +offline +\S+ \S+ +127\.0\.0\.1 port \d+", valid)
    assert summary == "2 users: 1 never, 1 offline"
    lines = told(run_users(server, tmp_path, "list", "--json", "--state", "offline"))
    assert [json.loads(line) for line in lines] == [
        {k: v for k, v in server.request("GET", "/api/client").json.items() if k != "devices"}
    ]


def test_emails_are_canonical_and_once() -> None:
    """From the command line and the input alike."""
    assert changes.emails(["A@example.com", "-", "a@example.com"], ["b@example.com\n", "\n"]) == [
        "a@example.com",
        "b@example.com",
    ]
    with pytest.raises(ConfigError):
        changes.emails(["-"], ["x\n"])


# ------------------------------------------------------------------------------------- erasing


def traces(server: Server) -> list[str]:
    """Return what the database still has of the user of `client`."""
    return [text for (text,) in server.rows(ALL) if VALID in text or "127.0.0.1" in text]


def test_who_is_erased_leaves_numbers_and_nothing_else(
    start_server: StartServer, tmp_path: Path
) -> None:
    """Also from before an earlier removal; announced by name, then that is blanked as well."""
    server = start_server(access=ADMINS)
    with Heard(server.announce_port) as heard:
        for method, path, cert in (
            ("POST", "/api/client", "client"),
            ("DELETE", PATH, "operator"),
            ("POST", "/api/client", "client"),
            ("PUT", "/api/users/other@example.com", "operator"),
            ("POST", "/api/client", "client"),
        ):
            assert server.request(method, path, cert=cert).status in (201, 204)
        heard.updates(5)
        assert len(traces(server)) == 5
        [said] = told(run_users(server, tmp_path, "erase", VALID))
        assert said == f"{VALID}: erased in 5 entries of the log"
        [removed] = heard.updates(1)
        assert (removed["seq"], removed["event"], removed["email"]) == (6, "removed", VALID)
    assert traces(server) == []
    columns = "client_ip, client_port, issuer, serial, previous, last_seen"
    assert server.rows(f"SELECT DISTINCT {columns} FROM check_in") == [(None,) * 6]  # noqa: S608
    body = server.request("GET", "/api/events?after=0", cert="operator").body
    replayed = api_responses.events(body, 0)
    assert replayed.head == 6
    assert [(e.seq, e.event, e.email) for e in replayed.events] == [
        (1, "erased", ERASED_EMAIL),
        (2, "erased", ERASED_EMAIL),
        (3, "erased", ERASED_EMAIL),
        (4, "enrolled", "other@example.com"),
        (5, "erased", ERASED_EMAIL),
        (6, "erased", ERASED_EMAIL),
    ]
    assert server.request("GET", "/api/users", cert="operator").json["users"][0]["email"] == (
        "other@example.com"
    )
    done = run_users(server, tmp_path, "erase", VALID)
    assert (done.returncode, done.stdout) == (1, f"{VALID}: unknown\n")


def test_erasing_without_a_server_says_that_nobody_was_told(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next server announces the number, without a name."""
    server = start_server()
    assert server.request("POST", "/api/client").status == 204
    server.stop()
    [said] = told(run_users(server, tmp_path, "erase", VALID))
    assert said == (
        f"{VALID}: erased in 2 entries of the log; not announced by name: no server took it in time"
    )
    assert traces(server) == []
    port = free_port(socket.SOCK_DGRAM)
    with Heard(port) as heard:
        start_server(announce={"targets": targets(port)[:1]})
        [erased] = heard.updates(1)
        assert (erased["seq"], erased["event"], erased["email"]) == (2, "erased", ERASED_EMAIL)


def test_erasing_goes_through_the_log_in_steps(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each a statement of its own; what is not of this person stays as it was."""
    monkeypatch.setattr(people_module, "ERASE_CHUNK", 3)
    statements = []

    async def body(store: Store) -> None:
        for n in range(20):
            await store.record(check_in("ab"[n % 2]))
        rows(database_url, "DELETE FROM check_in WHERE seq < 5")  # pruned
        before = rows(database_url, "SELECT * FROM check_in WHERE seq % 2 = 0 ORDER BY seq")
        async with connected(DatabaseSettings(url=database_url), writable=True) as connection:
            clerk = OfflineEnrolment(connection)
            await clerk.prepare()
            execute = connection.execute

            async def counted(sql: str, *arguments: Any, **options: Any) -> Any:
                statements.append(sql)
                return await execute(sql, *arguments, **options)

            monkeypatch.setattr(connection, "execute", counted)
            assert await clerk.erase("a@example.com") == 8
            assert await clerk.erase("a@example.com") == 0
        assert rows(database_url, "SELECT * FROM check_in WHERE seq % 2 = 0 ORDER BY seq") == before
        assert {event for seq, event, _ in rows(database_url, LOG) if seq % 2} == {"erased"}

    run(database_url, [], body)
    assert len(statements) == 2 * (1 + 6 + 1)


# ------------------------------------------------------------------------------------ listeners


def test_listeners_show_who_was_never_seen_and_who_is_erased() -> None:
    """Without the lines, and the members, that there is nothing for."""
    at = "2026-01-02T03:08:00.000001Z"
    body = {"seq": 4, "event": "enrolled", "email": "new_user@example.com", "at": at}
    page = {"log": "0b0e7a52-4c1f-4f57-9d8e-2f6a3c5b1d90", "head": 4, "events": [body]}
    [event] = api_responses.events(json.dumps(page).encode(), 3).events
    text = render(Format.TEXT, Update(event, None))
    assert text.splitlines()[1:-1] == [
        "Source Packet: none (fetched over HTTPS)",
        "Event        : enrolled",
        "User Email   : new_user@example.com",
    ]
    line = json.loads(render(Format.JSON, Update(event, None)))
    assert line == body
    record = {
        "email": "new_user@example.com",
        "state": "never",
        "seq": 4,
        **dict.fromkeys(("last_seen", "first_seen", "client_ip", "client_port")),
    }
    times = {"interval_s": 60.0, "late_after_s": 90.0, "offline_after_s": 180.0}
    page = {"log": page["log"], "head": 4, "presence": times, "users": [record], "next": None}
    [known] = api_responses.users(json.dumps(page).encode()).users
    assert "State        : never" in render(Format.TEXT, Snapshot(known))
    assert "last_seen" not in json.loads(render(Format.JSON, Snapshot(known)))
    for half in ({"client_ip": "10.0.0.7", "client_port": 1}, {"last_seen": at}):
        wrong = {**page, "users": [{**record, **half}]}
        with pytest.raises(api_responses.AnswerError):
            api_responses.users(json.dumps(wrong).encode())


# -------------------------------------------------------------------------------- shared settings


def test_servers_that_disagree_about_presence_say_so(start_server: StartServer) -> None:
    """The one that was there first sees what the other was told; equal ones say nothing."""
    short = {"interval_s": 1, "offline_after_s": 3600}
    first = start_server(presence=short)
    same = start_server(presence=short)
    swept = "SELECT swept_at FROM head"
    before = wait_until(lambda: first.rows(swept)[0][0], "a sweep")
    wait_until(lambda: first.rows(swept)[0][0] > before, "one more sweep")
    name = "another server on this database has other presence settings"
    assert first.events(name) == same.events(name) == []
    start_server(presence={**short, "offline_after_s": 7200})
    for server in (first, same):
        assert server.wait_event(name)["offline_after_s"] == 7200
        assert server.wait_event(name)["ours"] == [1, 3600]


def test_a_refused_change_is_known_not_to_be_done(database_url: str) -> None:
    """The database refuses: 503, nothing written, and the next one is done."""

    async def body(store: Store) -> None:
        rows(database_url, "ALTER TABLE check_in ADD CHECK (event <> 'enrolled')")
        with pytest.raises(StoreUnavailable):
            await store.enrol("a@example.com")
        assert rows(database_url, LOG) == []
        rows(database_url, "ALTER TABLE check_in DROP CONSTRAINT check_in_event_check")
        assert await store.enrol("a@example.com")
        assert not await store.enrol("a@example.com")
        await until(lambda: store.head == 1)

    run(database_url, [], body, when=PresenceSettings(interval_s=3600, offline_after_s=7200))
