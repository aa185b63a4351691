"""The terminal board: all users in a live table, drawn by Textual (extra `board`).

Owns the screen and the keys. `roster` knows the users, and the listener verifies the updates.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Input, Static

from listeners.board.roster import STATES, Roster, RosterEntry, SortOrder
from listeners.listener import Condition, Listener, ListenerCounts
from tornado_status.model.presence import State

TICK_S = 1.0  # "3 s ago" is right to the second
DRAW_S = 0.2  # the shortest pause between two redraws: the eye sees no more
SILENCE_S = 15.0  # three of the server's heartbeats were missed
FRESH_S = 2.0  # how long a row stands out after a check-in
WARNING_S = 30.0  # how long the listener's last warning stays on the screen

Clock = Callable[[], datetime.datetime]

_GLYPHS = {State.ONLINE: "●", State.LATE: "◐", State.OFFLINE: "○", State.NEVER: "◇"}
# The terminal's own colours: right on dark and on light ones.
_STYLES = {
    State.ONLINE: Style(color="green"),
    State.LATE: Style(color="yellow"),
    State.OFFLINE: Style(dim=True),
    State.NEVER: Style(dim=True),
}
_BOLD, _UNVERIFIED = Style(bold=True), Style(color="red")
BETWEEN = "  "  # columns
_BAD, _GOOD = "red", "green"

_STATE, _EMAIL, _SEEN, _ADDRESS, _EVENT = "state", "e-mail", "last seen", "address", "event"


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    width: int


def columns(width: int) -> list[Column]:
    """Return the columns that fit into `width` cells, from left to right.

    The e-mail takes the cells that are left over.
    """
    found = [Column(_STATE, 1 if width < 46 else 9), Column(_SEEN, 10)]
    if width >= 76:
        found.append(Column(_ADDRESS, 21 if width < 120 else 47))  # an IPv6 address with its port
    if width >= 90:
        found.append(Column(_EVENT, 10))
    rest = width - sum(column.width for column in found) - len(found) * len(BETWEEN)
    found.insert(1, Column(_EMAIL, max(1, rest)))
    return found


def ago(seconds: float | None) -> str:
    """Return an age in its largest unit: `59 s ago`, `3 min ago`, `2 d ago`; or `never`."""
    if seconds is None:
        return "never"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return f"{int(seconds)} s ago"


def cell(column: str, width: int, entry: RosterEntry, state: State, age_s: float | None) -> str:
    """Return the text of an entry in a column, before it is fitted to its width."""
    match column:
        case "state":
            return _GLYPHS[state] if width == 1 else f"{_GLYPHS[state]} {state}"
        case "e-mail":
            return entry.email
        case "last seen":
            return ago(age_s).rjust(width)
        case "address":
            if entry.client_ip is None:
                return ""
            ip = f"[{entry.client_ip}]" if ":" in entry.client_ip else entry.client_ip
            return f"{ip}:{entry.client_port}"
        case _:
            return entry.event if entry.verified else "unverified"


def headings(width: int) -> str:
    """Return the line above the rows."""
    names = {c: c.name.rjust(c.width) if c.name == _SEEN else c.name for c in columns(width)}
    return BETWEEN.join(fit(names[c] if c.width > 1 else "", c.width) for c in names).upper()


def fit(text: str, width: int) -> str:
    """Cut or fill a text of single-cell characters to a width."""
    return text.ljust(width) if len(text) <= width else f"{text[: width - 1]}…"


class _Table(ScrollView, can_focus=True):
    """The rows in view. Only these are drawn: ten thousand users cost what a screenful costs."""

    DEFAULT_CSS = "_Table { height: 1fr; scrollbar-size: 1 1; }"

    def __init__(self, roster: Roster, *, marks: bool) -> None:
        super().__init__()
        self._roster = roster
        self._marks = marks
        self.rows: Sequence[RosterEntry] = ()
        self.now = datetime.datetime.min.replace(tzinfo=datetime.UTC)

    def show(self, rows: Sequence[RosterEntry], now: datetime.datetime) -> None:
        self.rows, self.now = rows, now
        self.virtual_size = Size(self.scrollable_content_region.width, len(rows))
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        number = y + self.scroll_offset.y
        if number >= len(self.rows):
            return Strip.blank(width)
        entry = self.rows[number]
        state, age_s = self._roster.state(entry, self.now), entry.age_s(self.now)
        fresh = age_s is not None and age_s < FRESH_S
        style = _STYLES[state] + (_BOLD if fresh else Style())
        if self._marks and not entry.verified:
            style = _UNVERIFIED
        parts = [
            Segment(fit(cell(c.name, c.width, entry, state, age_s), c.width) + BETWEEN, style)
            for c in columns(width)
        ]
        return Strip(parts).adjust_cell_length(width)


class _Search(Input):
    """The search line. Enter and Escape leave it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", show=False)]

    def action_leave(self) -> None:
        self.value = ""
        self.post_message(self.Submitted(self, ""))


class BoardApp(App[None]):
    """Shows what `listener` delivers, until the listener ends or the user presses q or Ctrl-C.

    `title` says where it listens. `warn` puts a sentence on the screen. `now` is the wall clock.
    """

    CSS = """
    Screen { layout: vertical; }
    Static { height: 1; }
    #title, #columns { text-style: bold; }
    #warning { display: none; height: auto; max-height: 2; }
    _Search { display: none; height: 1; border: none; padding: 0; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c,ctrl+q", "quit", priority=True, show=False),
        Binding("q", "quit", show=False),
        # Priority, so that the letters typed right after it go to the search line.
        Binding("slash", "search", priority=True, show=False),
        Binding("s", "order", show=False),
        Binding("r", "reverse", show=False),
        Binding("f", "filter", show=False),
        Binding("escape", "all", show=False),
    ]

    def __init__(
        self,
        listener: Listener,
        roster: Roster,
        title: str,
        *,
        marks: bool = True,
        now: Clock = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        super().__init__(ansi_color=True)
        self.title = f"Presence ({title})"
        self.shown = 0
        self.failure: BaseException | None = None
        self._listener = listener
        self._roster = roster
        self._now = now
        self._order = SortOrder.EMAIL
        self._descending = False
        self._only: State | None = None
        self._search = ""
        self._changed = True
        self._warned_at = float("-inf")
        self._table = _Table(roster, marks=marks)

    # ------------------------------------------------------------------------------- start, end

    def compose(self) -> ComposeResult:
        yield Static(Text(self.title, no_wrap=True, overflow="ellipsis"), id="title")
        yield Static(id="columns")
        yield self._table
        yield Static(id="warning")
        yield _Search(id="search", placeholder="part of an e-mail or address")
        yield Static(id="counts")
        yield Static(id="condition")
        yield Static(id="keys")

    def on_mount(self) -> None:
        self._table.focus()
        self.run_worker(self._listen(), exit_on_error=False)
        self.set_interval(TICK_S, self.draw)
        self.set_interval(DRAW_S, self._draw_if_changed)

    async def _listen(self) -> None:
        try:
            async for delivery in self._listener:
                self._roster.apply(delivery)
                self._roster.repairs = self._listener.condition.repairs
                self.shown += 1
                self._changed = True
        except Exception as error:  # the caller raises it again once the screen is restored
            self.failure = error
        self.exit()

    def warn(self, sentence: str) -> None:
        """Show a sentence for a while."""
        self._warned_at = time.monotonic()
        warning = self.query_one("#warning", Static)
        warning.update(Text(f"Warning: {sentence}", style=_BAD, overflow="ellipsis"))
        warning.display = True

    # ------------------------------------------------------------------------------ the screen

    def on_resize(self) -> None:
        self.call_after_refresh(self.draw)

    def _draw_if_changed(self) -> None:
        if self._changed:
            self.draw()

    def draw(self) -> None:
        """Draw the current state."""
        self._changed = False
        condition = self._listener.condition
        self._roster.times = condition.presence or self._roster.times
        now = self._now()
        rows = self._roster.rows(
            now,
            order=self._order,
            descending=self._descending,
            search=self._search,
            only=self._only,
        )
        self._table.show(rows, now)
        self._show("#columns", Text(headings(self._table.scrollable_content_region.width)))
        self._show("#counts", self._counts(now, len(rows)))
        self._show("#condition", condition_line(condition, self._listener.counts))
        self._show("#keys", self._keys())
        if time.monotonic() - self._warned_at > WARNING_S:
            self.query_one("#warning").display = False

    def _show(self, where: str, text: Text) -> None:
        text.no_wrap, text.overflow = True, "ellipsis"
        self.query_one(where, Static).update(text)

    def _counts(self, now: datetime.datetime, rows: int) -> Text:
        counts = self._roster.count(now)
        text = Text()
        for state in STATES:
            text.append(f"{_GLYPHS[state]} {counts[state]} {state}  ", _STYLES[state])
        text.append(f"of {len(self._roster)}")
        if rows != len(self._roster):
            text.append(f", {rows} shown", "bold")
        if self._listener.condition.presence is None:
            assumed = f", assuming a check-in every {self._roster.times.interval_s:g} s"
            text.append(assumed, "yellow")
        return text

    def _keys(self) -> Text:
        order = f"{self._order}{' (reversed)' if self._descending else ''}"
        parts = [
            ("/", f" search{f' [{self._search}]' if self._search else ''}  "),
            ("s", f" sort: {order}  "),
            ("r", " reverse  "),
            ("f", f" show: {self._only or 'all'}  "),
            ("q", " quit"),
        ]
        text = Text()
        for key, meaning in parts:
            text.append(key, "bold").append(meaning)
        return text

    # -------------------------------------------------------------------------------- the keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Let a slash be a letter while the search line has the focus."""
        return not (action == "search" and self.query_one(_Search).has_focus)

    def action_order(self) -> None:
        orders = list(SortOrder)
        self._order = orders[(orders.index(self._order) + 1) % len(orders)]
        self._descending = False
        self.draw()

    def action_reverse(self) -> None:
        self._descending = not self._descending
        self.draw()

    def action_filter(self) -> None:
        choices = [None, *STATES]
        self._only = choices[(choices.index(self._only) + 1) % len(choices)]
        self._table.scroll_home(animate=False)
        self.draw()

    def action_all(self) -> None:
        self._search, self._only = "", None
        self.query_one(_Search).value = ""
        self.draw()

    def action_search(self) -> None:
        search = self.query_one(_Search)
        search.display = True
        # Not `focus`, which takes effect later: the next key may have come by then.
        self.screen.set_focus(search)

    def on_input_changed(self, event: Input.Changed) -> None:
        self._search = event.value
        self._table.scroll_home(animate=False)
        self.draw()

    def on_input_submitted(self) -> None:
        self.screen.set_focus(self._table)
        self.query_one(_Search).display = False


def condition_line(condition: Condition, counts: ListenerCounts) -> Text:
    """Return one line that says whether the screen is complete and up to date."""
    text = Text()
    silent_s = condition.silent_s
    if condition.problem is not None:
        text.append(f"cannot repair: {condition.problem}", _BAD)
    elif silent_s is None:
        text.append("no datagram yet", "yellow")
    elif silent_s > SILENCE_S:
        text.append(f"no datagram for {ago(silent_s).removesuffix(' ago')}", _BAD)
    elif counts.lag is None:
        text.append("is this machine's clock right?", _BAD)
    elif counts.lag:
        text.append("repairing" if condition.repairs else "waiting", "yellow")
    else:
        text.append("live", _GOOD)
    if not condition.repairs:
        text.append(" (no repair: no reader's certificate)", "yellow")
    lag = "unknown" if counts.lag is None else counts.lag
    text.append(
        f"  lag {lag}, {counts.healed} healed, {counts.repaired} repaired, {counts.missed} missed"
    )
    text.append(f", {counts.refused.total()} refused", _BAD if counts.refused else "")
    return text
