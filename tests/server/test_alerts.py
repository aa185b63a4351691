"""Alerts: each event once at a receiver that works, whatever happens on the way."""

from __future__ import annotations

import base64
import contextlib
import datetime
import functools
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import yaml

from certs_gen.authority import Authority
from tests.support import pages
from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    Postgres,
    Server,
    StartServer,
    free_port,
    rows,
    run_command,
    wait_until,
)
from tests.support.hostile_receiver import HostileReceiver, endless_chunk_size
from tests.support.metrics import metric
from tests.support.trust_site import replace
from tests.support.webhook_receiver import SECRET, Receiver, adopted, alert, log, waiting
from tests.support.with_constants import (
    ALERT_BACK_OFF_S,
    ALERT_GIVE_UP_EVERY_S,
    ALERT_MAX_QUEUED,
    ALERT_POLL_S,
)
from tornado_status.alerts.filter import AlertFilter
from tornado_status.alerts.webhook_signature import parse_secrets, sign
from tornado_status.api import Access
from tornado_status.errors import ConfigError
from tornado_status.model.records import Event

OTHER = "whsec_" + base64.b64encode(b"another one, also only for tests").decode()

BLOCKS = pages.blocks("docs/alerts.md")
[VERIFIER] = [block.text for block in BLOCKS if block.language == "python"]
_defined: dict[str, Any] = {}
exec(VERIFIER, _defined)  # noqa: S102 - the page's own
verify: Callable[[str, Any, bytes], None] = _defined["verify"]


@pytest.fixture
def start_server(start_server: StartServer) -> StartServer:
    """Start servers that look for work, and try again, ten times as often as others."""
    return functools.partial(
        start_server, constants={ALERT_POLL_S: 0.1, ALERT_BACK_OFF_S: [0.2, 300]}
    )


# ------------------------------------------------------------------------------- what is sent


def test_a_message_is_signed_as_receivers_know_it(start_server: StartServer, certs: Path) -> None:
    """Over HTTPS, and the page's verifier takes it, and nothing that was changed."""
    with Receiver(certs=certs) as receiver:
        server = start_server(
            alerts=[alert(receiver.url, events=["new"], ca=str(certs / "ca.crt"))]
        )
        adopted(server)
        assert server.request("POST", "/api/client").status == 204
        [found] = receiver.wait_for(1)
    verify(SECRET, found.headers, found.body)
    message = json.loads(found.body)
    [event] = server.request("GET", "/api/events?after=0", cert="operator").json["events"]
    stream = server.rows("SELECT log_id::text FROM head")[0][0]
    assert message == {
        "type": "new",
        "timestamp": event["last_seen"],
        "data": {"alert": "plant", "log": stream, **event},
    }
    assert found.headers["Content-Type"] == "application/json"
    assert "." not in found.id
    good = {name.lower(): value for name, value in found.headers.items()}
    verify(SECRET, good, found.body)
    for secret, headers, body in (
        (OTHER, found.headers, found.body),
        (SECRET, found.headers, found.body + b" "),
        (SECRET, {**good, "webhook-id": "msg_1"}, found.body),
        (SECRET, {**good, "webhook-timestamp": str(int(time.time()) - 301)}, found.body),
    ):
        with pytest.raises(AssertionError):
            verify(secret, headers, body)


def test_who_really_goes_offline_and_comes_back_is_told(start_server: StartServer) -> None:
    """From the server's own sweep, with what the log says of it."""
    with Receiver() as receiver:
        server = start_server(
            alerts=[alert(receiver.url)], presence={"interval_s": 1, "offline_after_s": 3}
        )
        adopted(server)
        assert server.request("POST", "/api/client").status == 204
        receiver.wait_for(1)
        assert server.request("POST", "/api/client").status == 204
        receiver.wait_for(2)
    offline, back = (json.loads(each.body)["data"] for each in receiver.received[:2])
    assert (offline["event"], back["event"]) == ("offline", "back")
    assert offline["at"] > offline["last_seen"]
    assert "client_ip" not in offline
    page = server_events(server, offline["seq"])
    assert [dict(each, alert="plant", log=offline["log"]) for each in page] == [offline, back]


def server_events(server: Server, first: int) -> list[dict[str, Any]]:
    answer = server.request("GET", f"/api/events?after={first - 1}&limit=2", cert="operator")
    found: list[dict[str, Any]] = answer.json["events"]
    return found


def test_what_comes_once_it_serves_is_told(start_server: StartServer, database_url: str) -> None:
    """Also by an alert that is new, however long the database takes for where it begins."""
    start_server().stop()  # the tables are there
    with Receiver() as receiver, contextlib.closing(psycopg2.connect(database_url)) as other:
        other.cursor().execute("LOCK TABLE alert IN SHARE MODE")
        server = start_server(
            wait=False,
            server={"port": free_port()},
            alerts=[alert(receiver.url, events=["new"])],
        )
        waiting = (
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'alert'"
        )
        wait_until(lambda: rows(database_url, waiting), "the alert waits")
        assert not any('"event": "serving"' in line for line in server.log.lines)
        other.rollback()
        server.wait_event("serving")
        assert server.request("POST", "/api/client").status == 204
        receiver.wait_for(1)


def test_the_signature_is_that_of_the_specification() -> None:
    """Its own example; with two secrets there are two signatures."""
    [secret] = parse_secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "x")
    headers = sign([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    both = sign(parse_secrets(f"{OTHER}\n{SECRET}\n", "x"), "msg_1", int(time.time()), b"{}")
    verify(SECRET, both, b"{}")
    verify(OTHER, both, b"{}")


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_c2hvcnQ=", SECRET[6:], "whsec_%%%", "x y"])
def test_a_bad_secret_is_told_and_not_shown(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_secrets(text, "alerts.plant.secret")
    assert str(caught.value).startswith("alerts.plant.secret: ")
    assert (
        not text.strip() or text.removeprefix("whsec_") not in str(caught.value) or text == "whsec_"
    )


def test_only_its_users_and_events_are_told(start_server: StartServer) -> None:
    """By pattern, as readers are named."""
    with Receiver() as receiver, Receiver() as other:
        server = start_server(
            alerts=[
                alert(receiver.url, users=["A*@example.com", "b@example.com"]),
                alert(other.url, name="gone", events=["removed"]),
            ]
        )
        adopted(server, 2)
        for kind, email in (
            ("offline", "ada"),
            ("offline", "cyd"),
            ("check-in", "ada"),
            ("back", "ada"),
            ("offline", "b"),
            ("removed", "ada"),
            ("offline", "bob"),
            ("back", "b"),
        ):
            log(server.database_url, kind, email)
        receiver.wait_for(4)
        other.wait_for(1)
        assert server.stop() == 0
    # Of each user in order; users take turns.
    assert sorted(receiver.said, key=lambda said: said[1]) == [
        ("offline", "ada"),
        ("back", "ada"),
        ("offline", "b"),
        ("back", "b"),
    ]
    assert other.said == [("removed", "ada")]


# ------------------------------------------------------------------------------- quiet time


def test_a_short_absence_is_told_to_nobody(start_server: StartServer) -> None:
    """Neither offline nor back; a long one is told, both ways, and in order."""
    with Receiver() as receiver:
        server = start_server(
            alerts=[alert(receiver.url, quiet_s=60)],
            constants={},  # an alert that looks between two entries tells the first
        )
        adopted(server)
        url = server.database_url
        for kind, email, age_s in (
            ("offline", "short", 100),
            ("offline", "long", 99),
            ("offline", "waits", 10),
            ("back", "short", 50),
            ("back", "long", 30),
        ):
            log(url, kind, email, age_s)
        receiver.wait_for(2)
        assert receiver.said == [("offline", "long"), ("back", "long")]
        wait_until(lambda: waiting(url) == 1, "one that waits")
        log(url, "back", "waits", 0)
        wait_until(lambda: waiting(url) == 0, "nobody waits any more")
        log(url, "offline", "again", 61)
        receiver.wait_for(3)
        assert server.stop() == 0
    assert receiver.said[2:] == [("offline", "again")]


def test_the_filter_suppresses_absences_within_the_quiet_time() -> None:
    """Each absence by itself; the return of an unknown user may end one that waits elsewhere."""
    moment = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)

    def event(seq: int, kind: str, at: float, email: str = "a@example.com") -> Event:
        return Event(seq, kind, email, moment + datetime.timedelta(seconds=at), "10.0.0.7", 1)

    alert_filter = AlertFilter(["*@example.com"], ["offline", "back"], 60)
    assert alert_filter.kinds == ["back", "offline"]
    events = [
        event(1, "back", 0),
        event(2, "offline", 100),
        event(3, "back", 159),
        event(4, "offline", 200),
        event(5, "back", 260),
        event(6, "offline", 300, "b@elsewhere.example"),
    ]
    filtered = alert_filter.apply(events)
    assert [each.seq for each in filtered.events] == [1, 4, 5]
    assert [each.seq for each in filtered.returns] == [1]
    assert filtered.suppressed == 1
    plain = AlertFilter(["*"], ["back"], 0).apply(events)
    assert ([each.seq for each in plain.events], plain.returns) == ([1, 3, 5], [])


@pytest.mark.parametrize("pattern", ["Anna@MÜNCHEN.de", "anna@xn--mnchen-3ya.de", "anna@*.de"])
def test_users_are_named_as_readers_are(pattern: str) -> None:
    """A pattern names the same users in `access.readers` and in an alert."""
    email = "anna@xn--mnchen-3ya.de"
    moment = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    event = Event(1, "offline", email, moment, "10.0.0.7", 1)
    assert Access([pattern]).may_read_all(email)
    assert AlertFilter([pattern], ["offline"], 0).apply([event]).events == [event]


# --------------------------------------------------------------------- whatever happens on the way


def test_of_several_servers_one_tells(start_server: StartServer) -> None:
    """And when it ends another goes on."""
    with Receiver() as receiver:
        servers = [start_server(alerts=[alert(receiver.url)]) for _ in range(2)]
        url = servers[0].database_url
        adopted(servers[0])
        for number in range(30):
            log(url, "offline", f"u{number}")
        receiver.wait_for(30)
        for number, server in enumerate(servers):
            log(url, "back", f"u{number}")
            receiver.wait_for(31 + number)
            wait_until(lambda: waiting(url) == 0, "it is noted as delivered")
            assert server.stop() == 0
        assert len({each.id for each in receiver.received}) == len(receiver.received) == 32
        # Under two names they would both tell: it is the lease that made it once.
        servers = [start_server(alerts=[alert(receiver.url, name=n)]) for n in ("one", "two")]
        adopted(servers[0], 2)
        log(url, "offline", "twice")
        receiver.wait_for(34)
        assert receiver.said[32:] == [("offline", "twice")] * 2


def test_a_receiver_that_never_answers_delays_nobody(start_server: StartServer) -> None:
    """Neither the other alert, nor check-ins, nor the end of the server; and it is not lost."""
    with socket.create_server((LOOPBACK, 0)) as mute, Receiver() as receiver:
        mute.settimeout(PATIENCE_S)
        stuck = f"http://localhost:{mute.getsockname()[1]}/"
        settings = {
            "alerts": [alert(stuck, name="stuck", timeout_s=60), alert(receiver.url)],
        }
        server = start_server(**settings)
        adopted(server, 2)
        log(server.database_url, "offline", "ada")
        connection, _ = mute.accept()
        with connection:
            assert receiver.wait_for(1)[0].said == ("offline", "ada")
            assert server.request("POST", "/api/client").status == 204
            assert server.stop() == 0
            # It did not wait until the receiver had its minute.
            assert server.events("alert not delivered, trying again") == []
            assert b"offline" in connection.recv(65536)
        start_server(**settings)
        connection, _ = mute.accept()
        connection.close()


def test_an_answer_that_cannot_be_read_is_a_failed_delivery(start_server: StartServer) -> None:
    """Counted, retried with back-off, delivered once the receiver answers properly."""
    with Receiver() as receiver:
        receiver.headers["X-Padding"] = "a" * 70_000
        server = start_server(alerts=[alert(receiver.url)])
        adopted(server)
        log(server.database_url, "offline", "ada")
        event = server.wait_event("alert not delivered, trying again")
        assert event["reason"].endswith("(its headers are longer than 64 KiB)")
        receiver.headers.clear()
        server.wait_event("alert delivered again")
        wait_until(lambda: waiting(server.database_url) == 0, "it is noted as delivered")
        counted = [
            metric(server, f'alert_messages_total{{alert="plant",outcome="{outcome}"}}')
            for outcome in ("failed", "delivered")
        ]
        assert server.events("alert failed") == []
    assert counted == [len(receiver.received) - 1, 1]


def test_an_endless_chunk_size_is_a_failed_delivery(start_server: StartServer) -> None:
    """At once, and without a traceback: `start_server` looks for one in the log."""
    with HostileReceiver(endless_chunk_size) as receiver:
        server = start_server(alerts=[alert(receiver.url, timeout_s=60)])
        adopted(server)
        log(server.database_url, "offline", "ada")
        event = server.wait_event("alert not delivered, trying again")
        assert event["reason"].endswith("(its chunks cannot be read)")


def test_a_user_with_many_messages_holds_up_no_other(start_server: StartServer) -> None:
    """All wait for one that is to be sent again later. Another user's message is sent."""
    with Receiver() as receiver:
        server = start_server(alerts=[alert(receiver.url)])
        adopted(server)
        server.rows(
            "INSERT INTO alert_message"
            " (name, log_id, seq, event, email, at, client_ip, client_port, due_at, next_at)"
            " SELECT 'plant', log_id, n, 'back', 'ada@example.com', now(), '10.0.0.7', 1, now(),"
            " now() + CASE WHEN n % 2 = 0 THEN -1 ELSE 600 END * interval '1 second'"
            " FROM head, generate_series(1, 50000) n"
        )
        log(server.database_url, "offline", "bob")
        assert receiver.wait_for(1)[0].said == ("offline", "bob")


def test_users_take_turns(start_server: StartServer) -> None:
    """One who has many messages would hold up all others until each of them is sent."""
    with Receiver() as receiver:
        server = start_server(alerts=[alert(receiver.url)])
        adopted(server)
        server.rows(
            "INSERT INTO alert_message"
            " (name, log_id, seq, event, email, at, client_ip, client_port, due_at, next_at)"
            " SELECT 'plant', log_id, n, 'back',"
            " CASE WHEN n = 300 THEN 'bob' ELSE 'ada' END || '@example.com',"
            " now(), '10.0.0.7', 1, now(), now() + n * interval '1 microsecond'"
            " FROM head, generate_series(1, 300) n"
        )
        receiver.wait_for(3)
        assert receiver.said[1] == ("back", "bob")


def test_a_receiver_is_not_trusted_for_its_name_alone(
    start_server: StartServer, certs: Path
) -> None:
    """Its certificate must be of a known CA, and it cannot send us elsewhere. Secrets stay ours."""
    with (
        Receiver(certs=certs) as unknown,
        Receiver() as goal,
        Receiver(answer=lambda n: 307) as moved,
    ):
        moved.headers["Location"] = goal.url
        server = start_server(
            alerts=[alert(unknown.url), alert(moved.url, name="moved")],
            logging={"level": "debug"},
        )
        adopted(server, 2)
        log(server.database_url, "offline", "ada")
        moved.wait_for(1)
        wait_until(
            lambda: len(server.events("alert not delivered, trying again")) == 2, "both refused"
        )
        reasons = {
            e["alert"]: e["reason"] for e in server.events("alert not delivered, trying again")
        }
        assert "is not trusted" in reasons["plant"]
        assert reasons["moved"].endswith("answered 307: redirects are not followed")
        assert (unknown.received, goal.received) == ([], [])
        assert server.stop() == 0
        said = server.log.wait_end()
    assert "hidden-path" not in said
    assert SECRET not in said


def test_a_renewed_ca_of_a_receiver_is_reloaded(
    start_server: StartServer, certs: Path, tmp_path: Path
) -> None:
    """With the next delivery it is in force; a file that cannot be used keeps the one before."""
    ca = tmp_path / "receiver-ca.crt"
    ca.write_bytes(Authority.create().certificate_pem())
    with Receiver(certs=certs) as receiver:
        server = start_server(alerts=[alert(receiver.url, ca=str(ca))])
        adopted(server)
        log(server.database_url, "offline", "ada")
        refused = server.wait_event("alert not delivered, trying again")
        assert "is not trusted" in refused["reason"]
        replace(ca, (certs / "ca.crt").read_bytes())
        receiver.wait_for(1)
        replace(ca, b"no certificate")
        wait_until(
            lambda: "alerts.plant.ca" in str(server.management("/readyz").json["warnings"]),
            "a warning",
        )
        log(server.database_url, "back", "ada")
        receiver.wait_for(2)
        replace(ca, (certs / "ca.crt").read_bytes())
        wait_until(lambda: not server.management("/readyz").json["warnings"], "a reload")


def test_what_cannot_be_delivered_for_long_is_given_up(start_server: StartServer) -> None:
    """Loudly, and the others follow: one that the receiver refuses does not stop them."""
    refused = "nobody"

    def answer(count: int) -> int:
        return 400 if receiver.received[-1].said[1] == refused else 204

    with Receiver(answer=answer) as receiver:
        server = start_server(alerts=[alert(receiver.url, give_up_s=1)])
        adopted(server)
        log(server.database_url, "offline", refused)
        log(server.database_url, "offline", "ada")
        wait_until(lambda: ("offline", "ada") in receiver.said, "the other one")
        given_up = server.wait_event("alert messages dropped")
        assert given_up["messages"] == 1
        assert given_up["alert"] == "plant"
        wait_until(lambda: waiting(server.database_url) == 0, "nothing waits")
        metrics = server.management("/metrics").body.decode()
        for outcome in ("dropped", "delivered"):
            counted = 'tornado_status_alert_messages_total{alert="plant",outcome="%s"} 1.0'
            assert counted % outcome in metrics


def test_beyond_the_limit_the_user_with_the_most_messages_loses_some(
    start_server: StartServer,
) -> None:
    """Not the oldest of all, which may be the only one of another user."""
    with Receiver(answer=lambda _: 503) as receiver:
        constants = {ALERT_MAX_QUEUED: 10, ALERT_GIVE_UP_EVERY_S: 0.1, ALERT_POLL_S: 0.1}
        server = start_server(alerts=[alert(receiver.url)], constants=constants)
        adopted(server)
        server.rows(
            "INSERT INTO alert_message"
            " (name, log_id, seq, event, email, at, client_ip, client_port, due_at, next_at)"
            " SELECT 'plant', log_id, n, 'back',"
            " CASE WHEN n <= 4 THEN 'bob' ELSE 'ada' END || '@example.com',"
            " now(), '10.0.0.7', 1, now(), now() FROM head, generate_series(1, 30) n"
        )
        dropped = server.wait_event("alert messages dropped")
        assert dropped["messages"] == 20
        kept = server.rows("SELECT seq::integer FROM alert_message ORDER BY seq")
        assert [seq for (seq,) in kept] == [1, 2, 3, 4, *range(25, 31)]


def test_the_database_may_go_and_come(start_server: StartServer, own_postgres: Postgres) -> None:
    """Alerts go on by themselves, and what the log holds by then is told."""
    with Receiver() as receiver:
        server = start_server(url=own_postgres.url, alerts=[alert(receiver.url)])
        adopted(server)
        log(own_postgres.url, "offline", "ada")
        receiver.wait_for(1)
        # Once it is noted: else it may come again, which is promised, too.
        wait_until(lambda: waiting(own_postgres.url) == 0, "nothing waits")
        own_postgres.stop()
        wait_until(lambda: server.request("POST", "/api/client").status == 503, "it is away")
        own_postgres.start()
        log(own_postgres.url, "back", "ada")
        assert receiver.wait_for(2)[1].said == ("back", "ada")


def test_what_was_pruned_before_it_was_read_is_told_to_the_operator(
    start_server: StartServer,
) -> None:
    """It cannot be told to the receiver any more; the rest of the log is."""
    with Receiver() as receiver:
        settings = {"alerts": [alert(receiver.url)]}
        server = start_server(**settings)
        adopted(server)
        url = server.database_url
        assert server.stop() == 0
        for email in ("lost", "lost", "kept"):
            log(url, "offline", email)
        rows(url, "DELETE FROM check_in WHERE email = 'lost@example.com'")
        pruned = start_server(**settings).wait_event("log pruned before it was read")
        assert (pruned["first"], pruned["last"]) == (1, 2)
        assert receiver.wait_for(1)[0].said == ("offline", "kept")


# ------------------------------------------------------------------------------ alerts test NAME


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command("alerts", "test", *arguments, cwd=directory)


def test_an_alert_can_be_tried(tmp_path: Path) -> None:
    """Without a server or a database; and says what is wrong in one line."""
    (tmp_path / "plant.secret").write_text(f"{OTHER}\n{SECRET}\n")
    gone = free_port()
    with Receiver(answer=lambda n: 204 if n == 1 else 401) as receiver:
        entry = alert(receiver.url, secret=None, secret_file="plant.secret")  # noqa: S106 - a name
        dead = alert(f"http://localhost:{gone}/", name="dead")
        (tmp_path / "config.yaml").write_text(json.dumps({"alerts": [entry, dead]}))
        done = run(tmp_path, "plant")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"Delivered: localhost port {receiver.port} answered 204\n"
        [found] = receiver.received
        verify(SECRET, found.headers, found.body)
        assert json.loads(found.body)["type"] == "test"
        refused = run(tmp_path, "plant")
    assert refused.returncode == 1
    assert refused.stderr.endswith(f"not delivered: localhost port {receiver.port} answered 401\n")
    away = run(tmp_path, "dead")
    assert (away.returncode, len(away.stderr.splitlines())) == (1, 1)
    assert f"no answer from localhost port {gone}" in away.stderr
    unknown = run(tmp_path, "plent")
    assert (unknown.returncode, len(unknown.stderr.splitlines())) == (2, 1)
    assert "no alert is named 'plent' (plant, dead)" in unknown.stderr
    os.truncate(tmp_path / "plant.secret", 10)
    bad = run(tmp_path, "plant")
    assert bad.returncode == 2
    assert "alerts.plant.secret_file: expected whsec_" in bad.stderr


def recipes() -> dict[str, dict[str, Any]]:
    """Return the alerts of the page, by name."""
    settings = [yaml.safe_load(block.text) for block in BLOCKS if block.language == "yaml"]
    return {each["name"]: each for found in settings for each in found.get("alerts", [])}


@pytest.mark.parametrize("name", ["phone", "home"])
def test_the_url_of_a_recipe_is_sent_unchanged(tmp_path: Path, name: str) -> None:
    """With its query, and the braces of a template, which nothing may escape."""
    recipe = recipes()[name]
    (tmp_path / "certs").mkdir()
    (tmp_path / recipe["secret_file"]).write_text(f"{SECRET}\n")
    path = "/" + recipe["url"].split("/", 3)[3]
    with Receiver() as receiver:
        recipe["url"] = f"http://localhost:{receiver.port}{path}"
        (tmp_path / "config.yaml").write_text(json.dumps({"alerts": [recipe]}))
        done = run(tmp_path, name)
        assert (done.returncode, done.stderr) == (0, "")
        [found] = receiver.received
    assert found.path == path
    assert ("{{.type}}" in path) is (name == "phone")
    assert json.loads(found.body)["data"] == {"alert": name}


def test_a_bad_secret_stops_the_start(start_server: StartServer) -> None:
    """In one line, before anything is served."""
    server = start_server(alerts=[alert("https://localhost/", secret="whsec_x")], wait=False)  # noqa: S106 - a wrong one
    assert server.process.wait(PATIENCE_S) == 2
    assert "alerts.plant.secret: expected whsec_" in server.log.wait_end()
