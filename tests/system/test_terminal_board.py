"""The board: who is online, late or offline, drawn live in a real terminal."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from listeners.board import roster as roster_module
from listeners.board.app import BoardApp, ago, columns, headings
from listeners.board.roster import Roster, SortOrder
from listeners.events import Gap, Rollback, Snapshot, Update
from listeners.listener import Listener, ListenerSettings
from tests.support.announcing import Announcing, Relay
from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    ROOT,
    StartServer,
    free_port,
    plain_environment,
    wait_until,
)
from tests.support.listening import check_in, reading, verifying
from tests.support.terminal import Terminal
from tornado_status.model.presence import PresenceTimes, State
from tornado_status.model.records import Event, StatusRecord
from tornado_status.wire.datagram import BinaryUpdate, encode_json

pytestmark = pytest.mark.once

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


def before(seconds: float) -> datetime.datetime:
    return NOW - datetime.timedelta(seconds=seconds)


def event(email: str, age_s: float, kind: str = "check-in", seq: int = 1, ip: str = "") -> Event:
    if kind == "offline":
        return Event(seq, kind, email, before(age_s), None, None, NOW)
    return Event(seq, kind, email, before(age_s), ip or "10.0.0.7", 51514)


def heard(*events: Event, repairs: bool = True) -> Roster:
    roster = Roster(repairs=repairs)
    for each in events:
        roster.apply(Update(each, None))
    return roster


def states(roster: Roster, now: datetime.datetime = NOW) -> dict[str, str]:
    return {person.email: roster.state(person, now) for person in roster.rows(now)}


def emails(roster: Roster, **how: Any) -> list[str]:
    return [person.email.partition("@")[0] for person in roster.rows(NOW, **how)]


# --------------------------------------------------------------------------------- who is here


def test_age_makes_late_and_offline() -> None:
    """One and a half intervals, then the time that makes offline; clocks that differ do not."""
    roster = heard(
        event("a@example.com", -5), event("b@example.com", 90), event("c@example.com", 91)
    )
    assert states(roster) == {
        "a@example.com": "online",
        "b@example.com": "online",
        "c@example.com": "late",
    }
    assert set(states(roster, NOW + datetime.timedelta(seconds=200)).values()) == {"offline"}
    assert roster.count(NOW) == {State.ONLINE: 2, State.LATE: 1}


def test_the_servers_times_make_late_and_offline() -> None:
    """As soon as they are known, for all users."""
    roster = heard(
        event("a@example.com", 700), event("b@example.com", 1000), event("c@example.com", 9)
    )
    roster.times = PresenceTimes(600, 900, 1800)
    assert list(states(roster).values()) == ["online", "late", "online"]
    roster.times = PresenceTimes(2, 3, 6)
    assert list(states(roster).values()) == ["offline", "offline", "offline"]


def test_users_who_were_never_seen_are_listed() -> None:
    """From a snapshot and from an event, last in every order. An erased entry is no user."""
    roster = heard(event("b@example.com", 1))
    roster.apply(Snapshot(StatusRecord(2, "a@example.com", None, None, None, "never")))
    roster.apply(Update(Event(3, "enrolled", "c@example.com", None, None, None, NOW), None))
    roster.apply(Update(Event(4, "erased", "erased@invalid", None, None, None, NOW), None))
    assert states(roster) == {
        "a@example.com": "never",
        "b@example.com": "online",
        "c@example.com": "never",
    }
    assert roster.count(NOW) == {State.ONLINE: 1, State.NEVER: 2}
    assert emails(roster, order=SortOrder.SEEN) == ["b", "a", "c"]
    assert emails(roster, order=SortOrder.STATE) == ["b", "a", "c"]
    assert emails(roster, only=State.NEVER) == ["a", "c"]
    roster.apply(Update(event("a@example.com", 0, "new", 5), None))
    roster.apply(Update(event("c@example.com", 0, "removed", 6), None))
    assert states(roster) == {"a@example.com": "online", "b@example.com": "online"}


def test_the_servers_word_goes_before_age() -> None:
    """Offline by its event, back by the check-in's; the last check-in is not forgotten."""
    roster = heard(event("a@example.com", 30), event("a@example.com", 1, "offline", 2))
    assert states(roster) == {"a@example.com": "offline"}
    assert roster.rows(NOW)[0].last_seen == before(30)
    roster.apply(Update(event("a@example.com", 0, "back", 3), None))
    assert states(roster) == {"a@example.com": "online"}
    roster.apply(Update(event("a@example.com", 0, "removed", 4), None))
    assert states(roster) == {}


def test_kinds_of_events_that_are_not_known_are_shown_and_change_nothing() -> None:
    """A later server may announce more."""
    roster = heard(event("a@example.com", 100), event("a@example.com", 1, "promoted", 2))
    [person] = roster.rows(NOW)
    assert (person.event, person.last_seen) == ("promoted", before(100))
    roster.apply(Update(event("b@example.com", 3, "offline", 3), None))
    assert states(roster) == {"a@example.com": "late", "b@example.com": "offline"}


def test_rows_are_sorted_searched_and_filtered() -> None:
    """Equals by their e-mail, addresses by their numbers."""
    roster = heard(
        event("b@example.com", 1, ip="10.0.0.10"),
        event("a@example.com", 100, ip="2001:db8::1"),
        event("d@other.example", 200, ip="10.0.0.9"),
        event("c@example.com", 2, ip="10.0.0.10"),
    )
    assert emails(roster) == ["a", "b", "c", "d"]
    assert emails(roster, descending=True) == ["d", "c", "b", "a"]
    assert emails(roster, order=SortOrder.SEEN) == ["b", "c", "a", "d"]
    assert emails(roster, order=SortOrder.STATE) == ["d", "a", "b", "c"]
    assert emails(roster, order=SortOrder.STATE, descending=True) == ["b", "c", "a", "d"]
    assert emails(roster, order=SortOrder.ADDRESS) == ["d", "b", "c", "a"]
    assert emails(roster, search=" OTHER.") == ["d"]
    assert emails(roster, search="10.0.0.1") == ["b", "c"]
    assert emails(roster, search="C@ 10.0.0.") == ["c"]
    assert emails(roster, only=State.LATE) == ["a"]


@pytest.mark.parametrize("missing", [Gap(2, 9), Rollback(10, 12, uuid.UUID(int=7))])
def test_a_snapshot_replaces_everybody(missing: Gap | Rollback) -> None:
    """A user who is not in it was removed meanwhile; without repair no user is forgotten."""
    for repairs, left in ((True, {"b@example.com", "c@example.com"}), (False, None)):
        roster = heard(event("a@example.com", 1), event("b@example.com", 1), repairs=repairs)
        roster.apply(missing)
        if repairs:
            roster.apply(Snapshot(StatusRecord(9, "b@example.com", before(7), "10.0.0.8", 1)))
        assert "a@example.com" in states(roster)  # until it is known to be whole
        roster.apply(Update(event("c@example.com", 0, "new", 10), None))
        assert set(states(roster)) == (left or {"a@example.com", "b@example.com", "c@example.com"})


def test_what_nothing_proves_is_marked_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unverified users are marked and bounded in number; verified knowledge stays."""
    monkeypatch.setattr(roster_module, "MAX_UNVERIFIED", 2)
    roster = heard(event("a@example.com", 10))
    for email, age_s in (("a@example.com", 20), ("b@example.com", 1), ("c@example.com", 1)):
        update = BinaryUpdate(email, before(age_s), "10.0.0.9", 1)
        roster.apply(Update(update, ("10.0.0.1", 6666), verified=False))
    assert [(p.email, p.verified) for p in roster.rows(NOW)] == [
        ("a@example.com", True),
        ("b@example.com", False),
    ]


@pytest.mark.parametrize("width", [1, 12, 20, 30, 45, 46, 75, 76, 89, 90, 119, 120, 300])
def test_columns_fit_into_any_width(width: int) -> None:
    """The e-mail is always there, and lines are never longer than the terminal."""
    found = columns(width)
    assert found[1].name == "e-mail"
    if width >= 20:
        assert len(headings(width)) <= width
        assert found[1].width >= 5


def test_ages_are_told_in_their_largest_unit() -> None:
    assert [ago(s) for s in (0.9, 59.9, 60, 7199, 7200, 86399, 172800)] == [
        "0 s ago",
        "59 s ago",
        "1 min ago",
        "1 h ago",
        "2 h ago",
        "23 h ago",
        "2 d ago",
    ]


# ---------------------------------------------------------------------------- a board, driven


class Driven:
    """A board without a terminal, fed by real datagrams, its clock standing still at `NOW`."""

    def __init__(self, certs: Path, board: BoardApp, pilot: Pilot[None], announcing: Announcing):
        self.board = board
        self.pilot = pilot
        self._announcing = announcing

    async def announce(self, *events: Event) -> None:
        sent = datetime.datetime.now(datetime.UTC)
        for payload in encode_json(
            self._announcing.log_id, sent, events[-1].seq, events, self._announcing.signer
        ):
            self._announcing.send(payload)
        async with asyncio.timeout(PATIENCE_S):
            while self.board.shown < events[-1].seq:
                await self.pilot.pause(0.02)
        self.board.draw()
        await self.pilot.pause()

    def text(self, where: str) -> str:
        return str(self.board.query_one(where, Static).content)

    def screen(self) -> list[str]:
        """The lines as they are drawn."""
        width, height = self.board.size
        lines = self.board.screen._compositor.render_strips(self.board.size)
        assert len(lines) == height
        return [line.text[:width].rstrip() for line in lines]


@contextlib.asynccontextmanager
async def _driven(certs: Path, size: tuple[int, int]) -> Any:
    port = free_port(socket.SOCK_DGRAM)
    settings = ListenerSettings(
        port=port, ca=certs / "ca.crt", announcers=[certs / "announcer.crt"]
    )
    with Announcing(port, certs / "announcer.key") as announcing:
        async with Listener(settings, warn=lambda sentence: None) as listener:
            roster = Roster(repairs=False)
            board = BoardApp(listener, roster, "listening on 0.0.0.0 port 6667", now=lambda: NOW)
            async with board.run_test(size=size) as pilot:
                yield Driven(certs, board, pilot, announcing)


def driven(certs: Path, size: tuple[int, int], act: Callable[[Driven], Any]) -> None:
    async def run() -> None:
        async with _driven(certs, size) as found:
            await act(found)

    asyncio.run(run())


PEOPLE = [
    event("ada@example.com", 3, "check-in", 1, "10.0.0.7"),
    event("bea@example.com", 61, "check-in", 2, "10.0.0.21"),
    event("press-4@plant.example", 0, "back", 3, "10.0.3.4"),
    event("press-5@plant.example", 118, "check-in", 4, "10.0.3.5"),
    event("tug@harbour.example", 8000, "check-in", 5, "2001:db8::17"),
    event("valid_user@example.com", 12, "new", 6, "10.0.0.7"),
    Event(7, "enrolled", "zoe@example.com", None, None, None, NOW),
]


def test_the_board_shows_everybody(certs: Path) -> None:
    """As docs/listeners.md shows it, in text and in colours. STATUS_UPDATE_DOCS=1 draws it anew."""
    page, picture = ROOT / "docs" / "listeners.md", ROOT / "docs" / "board.svg"

    async def act(shown: Driven) -> None:
        await shown.announce(*PEOPLE)
        drawn = "\n".join(shown.screen())
        svg = shown.board.export_screenshot(title="status-listener --board")
        svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # nothing is fetched
        svg = re.sub(r"\s*<!--.*?-->", "", svg)
        assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
        svg = "".join(f"{line.rstrip()}\n" for line in svg.splitlines())
        if os.environ.get("STATUS_UPDATE_DOCS"):
            block = re.compile(r"```text\n.*?\n```", re.DOTALL)
            page.write_text(
                block.sub(lambda _: f"```text\n{drawn}\n```", page.read_text(), count=1)
            )
            picture.write_text(svg)
        assert f"```text\n{drawn}\n```" in page.read_text(), drawn
        assert svg == picture.read_text()

    driven(certs, (92, 14), act)


def test_keys_sort_search_and_filter(certs: Path) -> None:
    """And the last line says which of it is on."""

    def rows(shown: Driven) -> list[str]:
        return [line.split()[2] for line in shown.screen() if line[:1] in tuple("●◐○◇")][:-1]

    async def act(shown: Driven) -> None:
        await shown.announce(*PEOPLE)
        assert rows(shown) == [person.email for person in PEOPLE]
        await shown.pilot.press("r")
        assert rows(shown) == [person.email for person in reversed(PEOPLE)]
        await shown.pilot.press("s")
        assert rows(shown)[0] == "press-4@plant.example"
        assert "sort: last seen" in shown.text("#keys")
        await shown.pilot.press("s")
        assert rows(shown)[0] == "tug@harbour.example"
        await shown.pilot.press("slash", *"plant")
        assert set(rows(shown)) == {"press-4@plant.example", "press-5@plant.example"}
        assert "2 shown" in shown.text("#counts")
        await shown.pilot.press("enter", "f")
        assert rows(shown) == ["press-4@plant.example"]
        assert "search [plant]" in shown.text("#keys")
        await shown.pilot.press("escape")
        assert len(rows(shown)) == len(PEOPLE)
        await shown.pilot.press("slash", "q", "escape")
        assert len(rows(shown)) == len(PEOPLE)
        await shown.pilot.press("q")
        assert shown.board._exit

    driven(certs, (92, 16), act)


def test_a_narrow_terminal_shows_what_matters(certs: Path) -> None:
    """State, e-mail and age, down to thirty columns, also after a change of size."""

    async def act(shown: Driven) -> None:
        await shown.announce(*PEOPLE)
        await shown.pilot.resize_terminal(30, 13)
        await shown.pilot.pause()
        shown.board.draw()
        await shown.pilot.pause()
        lines = shown.screen()
        assert lines[1] == "   E-MAIL            LAST SEEN"
        assert lines[2] == "●  ada@example.com     3 s ago"
        assert lines[4] == "●  press-4@plant.…     0 s ago"
        assert lines[6] == "○  tug@harbour.ex…     2 h ago"

    driven(certs, (92, 14), act)


def test_ten_thousand_people_cost_what_a_screenful_does(certs: Path) -> None:
    """Only the rows in view are drawn."""

    async def act(shown: Driven) -> None:
        for number in range(10_000):
            shown.board._roster.apply(Update(event(f"u{number:05}@example.com", 1), None))
        shown.board.draw()
        await shown.pilot.pause()
        drawn: list[int] = []
        table = shown.board._table
        original = table.render_line

        def counted(y: int) -> Any:
            drawn.append(y)
            return original(y)

        table.render_line = counted  # type: ignore[method-assign] # counts, and draws all the same
        shown.board.draw()
        await shown.pilot.pause()
        assert 0 < len(drawn) <= 5 * table.size.height
        await shown.pilot.press("end")
        await shown.pilot.pause(1)
        assert "u09999@example.com" in "\n".join(shown.screen())

    driven(certs, (92, 14), act)


# ------------------------------------------------------------------------------ a real terminal


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    with contextlib.ExitStack() as stack:

        def start(*command: object, **options: Any) -> Terminal:
            found = Terminal(*command, **options)
            stack.callback(found.close)
            return found

        yield start


def test_the_board_begins_with_everybody_and_stays_live(
    start_server: StartServer, terminal: Callable[..., Terminal]
) -> None:
    """It shows earlier and new check-ins; Ctrl-C restores the terminal."""
    server = start_server(announce={"heartbeat_s": 1})
    check_in(server, 3)
    board = terminal("-m", "listeners", "--board", *reading(server))
    board.wait(r"● online +valid_user@example\.com +\d+ s ago +127\.0\.0\.1:\d+")
    assert server.request("POST", "/api/client", cert="operator").status == 204
    board.wait(r"● online +operator@example\.com +\d+ s ago .* new")
    board.wait(r"● 2 online +◐ 0 late +○ 0 offline +◇ 0 never +of 2\n")
    board.wait(r"\nlive +lag 0, \d+ healed, \d+ repaired, 0 missed, 0 refused\n")
    assert re.search(r"valid_user@example\.com +[2-9] s ago", board.wait(r"user.* [2-9] s ago"))
    board.type("/oper\r")
    board.wait(r"of 2, 1 shown")
    assert "valid_user" not in board.screen
    board.resize(34, 12)
    board.wait(r"(?m)^●  operator@example\S* +\d+ (s|min) ago$")
    assert not board.restored
    board.type("\x03")
    assert board.ended() == 0
    wait_until(lambda: board.restored, "the terminal as it was")
    board.wait_said(r"Heard \d+ datagrams: ")


def test_the_board_lists_never_seen_users_and_takes_the_servers_times(
    start_server: StartServer, terminal: Callable[..., Terminal]
) -> None:
    """Users who were enrolled before it started, and after; late after three seconds, not 90."""
    server = start_server(
        announce={"heartbeat_s": 1},
        access={"admins": ["operator@example.com"]},
        presence={"interval_s": 2, "offline_after_s": 600},
    )
    enrol = "/api/users/{}@example.com"
    assert server.request("PUT", enrol.format("before"), cert="operator").status == 201
    check_in(server, 1)
    board = terminal("-m", "listeners", "--board", *reading(server))
    board.wait(r"(?m)◇ never +before@example\.com +never$")
    assert server.request("PUT", enrol.format("after"), cert="operator").status == 201
    board.wait(r"◇ never +after@example\.com +never +enrolled")
    board.wait(r"◐ late +valid_user@example\.com +[3-9] s ago")
    board.wait(r"● 0 online +◐ 1 late +○ 0 offline +◇ 2 never +of 3\n")
    assert server.request("DELETE", enrol.format("before"), cert="operator").status == 204
    board.wait(r"◇ 1 never +of 2\n")


@pytest.mark.parametrize("end", ["q", signal.SIGTERM, signal.SIGINT, "--timeout"])
def test_each_end_restores_the_terminal(
    certs: Path, terminal: Callable[..., Terminal], end: str | signal.Signals
) -> None:
    """A key, a signal, or its time."""
    port = free_port(socket.SOCK_DGRAM)
    more = ("--timeout", 2) if end == "--timeout" else ()
    board = terminal("-m", "listeners", "--board", *verifying(certs, port), *more)
    board.wait("no datagram yet .no repair: no reader's certificate")
    if end == "q":
        board.type("q")
    elif isinstance(end, signal.Signals):
        board.process.send_signal(end)
    assert board.ended() == 0
    wait_until(lambda: board.restored, "the terminal as it was")


def test_a_terminal_that_goes_away_ends_the_board(
    certs: Path, terminal: Callable[..., Terminal]
) -> None:
    """Nothing is left that turns in circles without one."""
    port = free_port(socket.SOCK_DGRAM)
    board = terminal("-m", "listeners", "--board", *verifying(certs, port))
    board.wait("no datagram yet")
    os.close(board._slave)
    os.close(board.master)
    board.ended()


def test_the_board_is_complete_by_repair_and_tells_when_it_is_not(
    start_server: StartServer, terminal: Callable[..., Terminal]
) -> None:
    """Every second datagram is lost and no user is missing; it says that a server died."""
    port = free_port(socket.SOCK_DGRAM)
    with Relay(port, 0.5) as relay:
        target = {"kind": "unicast", "address": LOOPBACK, "port": relay.port}
        server = start_server(announce={"heartbeat_s": 1, "repeat": 0, "targets": [target]})
        board = terminal("-m", "listeners", "--board", *reading(server, port=port), "--group", "")
        board.wait("of 0")
        check_in(server, 40)
        board.wait(r"(?s)valid_user.*live +lag 0, \d+ healed, [1-9]\d* repaired, 0 missed")
        [(stream,)] = server.rows("SELECT log_id::text FROM head")
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(PATIENCE_S)
        with Announcing(port, server.certs / "announcer.key", uuid.UUID(stream)) as announcing:
            announcing.socket.sendto(announcing.payload(99), (LOOPBACK, port))
        board.wait(r"cannot repair: Nothing listens on localhost port \d+ \(connection refused\)")
        board.wait(r"Warning: the server: Nothing listens on ")
        board.type("q")
        assert board.ended() == 0
        board.wait_said(r"40 updates shown, .* 0 missed, lag 59\.")


# ------------------------------------------------------------------------------------- refusals


def test_without_a_terminal_the_board_says_so(certs: Path) -> None:
    """One sentence and status 2."""
    done = subprocess.run(
        [sys.executable, "-m", "listeners", "--board", *map(str, verifying(certs, 1))],
        cwd=ROOT,
        env=plain_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "status-listener: --board: needs a terminal, and stdin is not one\n"


@pytest.mark.parametrize(
    ("program", "options", "sentence"),
    [
        (
            "import sys; sys.modules['textual'] = None; ",
            [],
            "--board: needs the package textual: pip install 'tornado-status\\[board\\]'",
        ),
        ("", ["--exec", "cat"], "--board: not together with --exec"),
        ("", ["--state", "x.json"], "--board: not together with --state"),
        ("", ["--format", "json"], "--board: not together with --format"),
        ("", ["--count", "1"], "--board: not together with --count"),
        ("", ["--from", "snapshot"], "--from snapshot: needs a reader's certificate"),
    ],
)
def test_what_the_board_cannot_do_is_one_sentence(
    certs: Path,
    terminal: Callable[..., Terminal],
    program: str,
    options: list[str],
    sentence: str,
) -> None:
    """Also where the library that draws it is not installed: all else works without."""
    port = free_port(socket.SOCK_DGRAM)
    program += "from listeners.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    board = terminal("-c", program, "--board", *verifying(certs, port), *options, size=(200, 5))
    assert board.ended() == 2
    board.wait(f"status-listener: {sentence}")
    assert "Traceback" not in board.screen
