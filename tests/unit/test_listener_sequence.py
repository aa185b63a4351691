"""The order of updates, in pure: whatever the network does, the log comes out once and in order."""

from __future__ import annotations

import datetime
import itertools
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from listeners.events import Delivery, Gap, Rollback, Snapshot, Update
from listeners.order.held_datagrams import HOLD_S, MAX_HELD
from listeners.order.log_follower import BEHIND_S, LogFollower, Start
from listeners.order.log_tracker import LogStatus, LogTracker
from listeners.order.retry_timer import FIRST_JITTER_S, MAX_RETRY_AFTER_S, RetryTimer
from listeners.order.sequence import (
    MAX_SEEN,
    REPORT_WINDOW_S,
    TICKS,
    WINDOW_S,
    EventSequence,
    Fetch,
    FetchEvents,
    FetchUsers,
    Position,
)
from listeners.receive.fair_queue import MAX_PROVEN, FairQueue
from listeners.repair.key_refresh import UNKNOWN_S, KeyRefresh
from tornado_status.errors import DatagramError
from tornado_status.model.records import (
    Event,
    EventPage,
    Lineage,
    LogSpan,
    LogStep,
    StatusRecord,
    UserPage,
    common_head,
)
from tornado_status.wire.datagram import Datagram

MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
SOURCE = ("10.0.0.1", 6666)
USERS = 7  # few, so that each checks in often

examples = settings(deadline=None, max_examples=300)

# ------------------------------------------------------------------------------------ the model


@dataclass
class World:
    """The server: a log, what of it was pruned, and from which logs it goes on.

    No two events of any logs are equal: each has a port of its own.
    """

    log_id: uuid.UUID
    log: list[Event] = field(default_factory=list)
    pruned: int = 0
    lineage: Lineage = ()
    ports: Iterator[int] = field(default_factory=itertools.count)

    @property
    def head(self) -> int:
        return len(self.log)

    def commit(self, user: int) -> Event:
        port = next(self.ports)
        event = Event(self.head + 1, "check-in", f"u{user}@a.b", MOMENT, "10.0.0.7", port)
        self.log.append(event)
        return event

    def replaced(self) -> World:
        """Return another database, of which nothing is known."""
        return World(uuid.UUID(int=self.log_id.int + 1), ports=self.ports)

    def failed_over(self, lost: int) -> World:
        """Return the log that goes on from this one, without the newest events."""
        new, fork = self.replaced(), max(0, self.head - lost)
        new.log, new.pruned = self.log[:fork], min(self.pruned, fork)
        new.lineage = (LogStep(new.log_id, self.log_id, fork), *self.lineage)
        return new

    def status(self) -> dict[str, int]:
        return {event.email: event.seq for event in self.log}

    def answer(self, fetch: Fetch, page: int) -> EventPage | UserPage | None:
        """Return the server's answer; None is 410."""
        if isinstance(fetch, FetchEvents):
            if fetch.after > self.head or fetch.after < self.pruned:
                return None
            found = self.log[fetch.after : fetch.after + fetch.limit]
            return EventPage(self.log_id, self.head, found)
        after = fetch.path.removeprefix("/api/users?after=") if fetch.path else ""
        users = sorted(email for email in self.status() if email > after)
        records = [
            StatusRecord(self.status()[email], email, MOMENT, "10.0.0.7", 1)
            for email in users[:page]
        ]
        following = f"/api/users?after={users[page - 1]}" if len(users) > page else None
        return UserPage(self.log_id, self.head, records, following)


class Reader:
    """Takes deliveries and checks that they continue what came before.

    `at` is the number that it has reached, `known` the newest number of each user.
    """

    def __init__(self, at: int) -> None:
        self.at = at
        self.known: dict[str, int] = {}
        self.gaps: list[Gap] = []
        self.updates: list[Event] = []
        self.rollbacks: list[Rollback] = []
        self.lost: list[Event] = []  # of the updates, that were rolled back
        self._snapshot_of: int | None = None

    def take(self, delivery: Delivery) -> None:
        match delivery:
            case Update(event, _, verified):
                assert isinstance(event, Event)
                assert verified
                assert event.seq == self.at + 1
                assert event.seq > self.known.get(event.email, 0)
                self.known[event.email] = event.seq
                self.updates.append(event)
                self.at = event.seq
                self._snapshot_of = None
            case Gap(first, last, log_id):
                if log_id is None:
                    assert first == self.at + 1
                    assert last >= first
                else:
                    assert first == 1
                    self.known.clear()
                self.gaps.append(delivery)
                self.at = self._snapshot_of = last
            case Rollback(first, last):
                assert first <= last == self.at
                self.rollbacks.append(delivery)
                self.at = self._snapshot_of = first - 1
                self.lost += [event for event in self.updates if event.seq >= first]
                self.updates = [event for event in self.updates if event.seq < first]
                self.known = {user: seq for user, seq in self.known.items() if seq < first}
            case Snapshot(record):
                assert self._snapshot_of is not None, "a snapshot without a gap before it"
                assert record.seq <= self._snapshot_of
                assert record.seq >= self.known.get(record.email, 0)
                self.known[record.email] = record.seq


class Run:
    """One listener's sequence between a lossy network and a server that may fail."""

    def __init__(
        self,
        chance: random.Random,
        *,
        repairs: bool = True,
        calm: bool = False,
        kind: type[EventSequence] = EventSequence,
    ) -> None:
        self.chance = chance
        self.calm = calm  # nothing is pruned, replaced, restarted
        self.now = 1000.0
        self.world = World(uuid.UUID(int=1))
        self.flying: list[tuple[uuid.UUID, int, list[Event]]] = []
        self.max_pending = chance.randint(4, 24)
        self.page = chance.randint(1, 6)
        self.repairs = repairs
        self.kind = kind
        for _ in range(chance.randint(0, 9)):
            self.world.commit(chance.randrange(USERS))
        self.sequence = self.new_sequence()
        start = self.world.head
        self.sequence.begin(self.world.log_id, start, self.world.head, self.now)
        self.start = start
        self.reader = Reader(start)
        self.asked: tuple[Fetch, EventPage | UserPage | None] | None = None

    def new_sequence(self) -> EventSequence:
        return self.kind(
            repairs=self.repairs,
            rng=self.chance.random,
            max_pending=self.max_pending,
            page=self.page,
        )

    def step(self, loss: float) -> None:
        chance = self.chance
        match chance.randrange(9 if self.calm else 13):
            case 0 | 1:
                events = [
                    self.world.commit(chance.randrange(USERS)) for _ in range(chance.randint(1, 5))
                ]
                self.send(events, loss)
            case 2:
                self.send([], loss)
            case 3 | 4:
                if self.flying:
                    self.hear(self.flying.pop(chance.randrange(len(self.flying))))
            case 5:
                self.now += chance.choice([0.001, 0.05, 0.2, 5.0])
            case 6:
                self.ask()
            case 7:
                self.answer(fails=chance.random() < 0.2)
            case 8:
                for _ in range(chance.randint(1, 12)):
                    self.take()
            case 9:
                self.world.pruned = chance.randint(self.world.pruned, self.world.head)
            case 10:
                if chance.random() < 0.3:
                    self.world = self.world.replaced()
                    for _ in range(chance.randint(0, 9)):
                        self.world.commit(chance.randrange(USERS))
            case 11:
                self.restart()
            case 12:
                self.world = self.world.failed_over(chance.choice([0, 0, 1, 5]))
        assert len(self.sequence) <= 2 * self.max_pending + self.page + 2

    def send(self, events: list[Event], loss: float) -> None:
        copies = 0 if self.chance.random() < loss else self.chance.choice([1, 1, 2, 3])
        self.flying += [(self.world.log_id, self.world.head, events)] * copies

    def hear(self, datagram: tuple[uuid.UUID, int, list[Event]]) -> None:
        log_id, head, events = datagram
        if log_id == self.sequence.log_id:
            self.sequence.receive(head, events, SOURCE, self.now)
        else:
            self.confirm()

    def confirm(self) -> bool:
        """As the listener does when the server names a log."""
        before = self.sequence.log_id
        if self.world.log_id == before:
            return False
        common = None if before is None else common_head(self.world.lineage, before)
        if common is None:
            self.sequence.restart(self.world.log_id, 0, self.now)
        else:
            self.sequence.go_on(self.world.log_id, common, self.now)
        self.sequence.note_head(self.world.head, self.now)
        return True

    def ask(self) -> None:
        fetch = self.sequence.due_fetch(self.now)
        if fetch is not None and self.asked is None:
            self.sequence.fetch_started(fetch)
            self.asked = (fetch, self.world.answer(fetch, self.page))

    def answer(self, *, fails: bool = False) -> None:
        if self.asked is None:
            return
        (fetch, answer), self.asked = self.asked, None
        if fails:
            self.sequence.fetch_failed(self.now, self.chance.choice([None, 1.0]))
        elif answer is None:
            assert isinstance(fetch, FetchEvents)
            self.sequence.events_gone(fetch)
        elif answer.log_id != self.sequence.log_id:
            self.confirm()
        else:
            if isinstance(answer, EventPage):
                assert isinstance(fetch, FetchEvents)
                self.sequence.receive_page(fetch, answer, self.now)
            else:
                assert isinstance(fetch, FetchUsers)
                self.sequence.receive_users(fetch, answer, answer.following, self.now)

    def take(self) -> bool:
        delivery = self.sequence.next_delivery()
        if delivery is None:
            return False
        self.reader.take(delivery)
        return True

    def restart(self) -> None:
        """End in order and start again from what was saved."""
        saved = self.sequence.position
        assert saved is not None
        self.asked = None
        self.sequence = self.new_sequence()
        self.sequence.begin(saved.log_id, saved.seq, 0, self.now)
        self.confirm()
        self.sequence.note_head(self.world.head, self.now)
        if saved.seq != self.reader.at:
            # In the middle of a snapshot: it comes again from its beginning.
            assert self.reader.gaps or self.reader.rollbacks
            self.reader.at = saved.seq
            self.reader.known = {e: s for e, s in self.reader.known.items() if s <= saved.seq}

    def first(self) -> int:
        """Return the number behind which updates are shown: a rollback may begin before `start`."""
        return min([self.start, *(lost.first - 1 for lost in self.reader.rollbacks)])

    def settle(self) -> None:
        """No more faults: what was missed must come."""
        for datagram in self.flying:
            self.hear(datagram)
        for _ in range(2000):
            self.ask()
            self.answer()
            self.sequence.expire(self.now)
            self.now += 0.5
            while self.take():
                pass
            self.hear((self.world.log_id, self.world.head, []))
            if self.sequence.lag == 0 and self.sequence.due_fetch(self.now + 1e6) is None:
                return
        raise AssertionError("it never comes to rest")


# ------------------------------------------------------------------------------- its properties


@examples
@given(st.randoms(), st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0]), st.integers(0, 250))
def test_every_number_comes_once_and_in_order(
    chance: random.Random, loss: float, steps: int
) -> None:
    """Loss, copies, reordering, slow readers and failing servers: the log comes out as it is."""
    run = Run(chance, calm=True)
    for _ in range(steps):
        run.step(loss)
    run.settle()
    assert run.reader.updates == run.world.log[run.start :]
    assert run.reader.gaps == []
    assert run.sequence.position == Position(run.world.log_id, run.world.head)
    assert len(run.sequence) == 0


@examples
@given(
    st.randoms(),
    st.sampled_from([0.0, 0.1, 0.3, 0.6]),
    st.integers(0, 300),
    st.booleans(),
)
def test_one_log_goes_on_over_every_failover(
    chance: random.Random, loss: float, steps: int, repairs: bool
) -> None:
    """Lost events are rolled back, and no others: the log comes out as it is."""
    check_failovers(chance, loss, steps, repairs=repairs)


class _Credulous(EventSequence):
    """Takes what it has of the log before for events of the new one."""

    def _forget_above(self, common: int) -> None:
        """Keep all."""


def test_events_of_the_log_before_would_be_found() -> None:
    """The control."""
    with pytest.raises(AssertionError):
        for seed in range(100):
            chance = random.Random(seed)  # noqa: S311 - the same at each run
            check_failovers(chance, 0.3, 200, repairs=True, kind=_Credulous)


def check_failovers(
    chance: random.Random,
    loss: float,
    steps: int,
    *,
    repairs: bool,
    kind: type[EventSequence] = EventSequence,
) -> None:
    run = Run(chance, repairs=repairs, calm=True, kind=kind)
    for _ in range(steps):
        if chance.random() < 0.05:
            run.world = run.world.failed_over(chance.choice([0, 0, 1, 5]))
        run.step(loss)
        run.sequence.expire(run.now)
    run.settle()
    assert not set(run.reader.lost) & set(run.world.log)
    assert run.sequence.position == Position(run.world.log_id, run.world.head)
    expected = run.world.log[run.first() :]
    if repairs:
        assert run.reader.gaps == []
        assert run.reader.updates == expected
    missed = {seq for gap in run.reader.gaps for seq in range(gap.first, gap.last + 1)}
    shown = {event.seq for event in run.reader.updates}
    assert shown | missed >= {event.seq for event in expected}
    assert set(run.reader.updates) <= set(run.world.log)


@examples
@given(st.randoms(), st.sampled_from([0.0, 0.1, 0.3, 0.6]), st.integers(0, 300))
def test_what_cannot_be_had_is_a_gap_and_a_snapshot(
    chance: random.Random, loss: float, steps: int
) -> None:
    """Pruned logs, restored databases and restarts: after a gap every user's state is known."""
    run = Run(chance)
    for _ in range(steps):
        run.step(loss)
    run.settle()
    assert run.sequence.position == Position(run.world.log_id, run.world.head)
    assert run.reader.at == run.world.head
    assert not set(run.reader.lost) & set(run.world.log)
    if run.reader.gaps or run.reader.rollbacks:
        assert run.reader.known == run.world.status()
    if not run.reader.gaps:
        assert run.reader.updates == run.world.log[run.first() :]
    assert len(run.sequence) == 0


@examples
@given(st.randoms(), st.sampled_from([0.0, 0.1, 0.3, 0.6]), st.integers(0, 250))
def test_without_a_server_gaps_are_reported(chance: random.Random, loss: float, steps: int) -> None:
    """Each number is delivered or in a gap, once and in order."""
    run = Run(chance, repairs=False, calm=True)
    for _ in range(steps):
        run.step(loss)
        run.sequence.expire(run.now)
    run.settle()
    assert run.reader.at == run.world.head
    reported = {seq for gap in run.reader.gaps for seq in range(gap.first, gap.last + 1)}
    assert len(reported) == run.sequence.counts.missed
    assert [e.seq for e in run.reader.updates] == [
        e.seq for e in run.world.log[run.start :] if e.seq not in reported
    ]


# ------------------------------------------------------------------------------ how late at most

LATENCY_S = 0.2  # of a server's answer, at most
EVENTS, LAST_S = 60, 3.0


def lateness(
    chance: random.Random,
    loss: float,
    *,
    repairs: bool,
    kind: type[EventSequence] = EventSequence,
) -> float:
    """Let a listener hear a log, and return the longest time from hearing a number to showing it.

    Its clock jumps from one thing that happens to the next: a datagram, an answer, or the time that
    `wake_at` names.
    """
    world = World(uuid.UUID(int=1))
    arrivals: list[tuple[float, list[Event]]] = []
    sent_at = 0.0
    while world.head < EVENTS:
        sent_at += chance.choice([0.0, 0.001, 0.01, 0.1]) * chance.random()
        events = [world.commit(0) for _ in range(chance.randint(1, 3))]
        if chance.random() >= loss:
            arrivals.append((sent_at + chance.choice([0.0, 0.03]) * chance.random(), events))
    arrivals.append((LAST_S, []))  # a heartbeat
    arrivals.sort(key=lambda arrival: arrival[0])
    sequence = kind(repairs=repairs, rng=chance.random)
    sequence.begin(world.log_id, 0, 0, 0.0)
    heard: dict[int, float] = {}
    latest, now = 0.0, 0.0
    answer: tuple[float, FetchEvents, EventPage] | None = None
    while arrivals or answer or sequence.lag:
        moments = [arrivals[0][0]] if arrivals else []
        moments += [answer[0]] if answer else []
        if answer is None and (wake_at := sequence.wake_at()) is not None:
            moments.append(wake_at)
        now = max(now, min(moments))
        if arrivals and arrivals[0][0] <= now:
            _, events = arrivals.pop(0)
            for event in events:
                heard.setdefault(event.seq, now)
            sequence.receive(events[-1].seq if events else world.head, events, SOURCE, now)
        if answer and answer[0] <= now:
            (_, fetch, page), answer = answer, None
            sequence.receive_page(fetch, page, now)
        while sequence.expire(now):
            pass
        if answer is None and isinstance(due := sequence.due_fetch(now), FetchEvents):
            sequence.fetch_started(due)
            found = world.log[due.after : due.after + due.limit]
            page = EventPage(world.log_id, world.head, found)
            answer = (now + LATENCY_S * chance.random(), due, page)
        for seq in seqs(sequence):
            if isinstance(seq, int) and seq in heard:
                latest = max(latest, now - heard[seq])
    return latest


@examples
@given(st.randoms(), st.sampled_from([0.0, 0.05, 0.2, 0.6]))
def test_no_update_is_shown_later_than_the_window(chance: random.Random, loss: float) -> None:
    """However many are missing before it. `TICKS` is how exactly the window is measured."""
    assert lateness(chance, loss, repairs=False) <= REPORT_WINDOW_S * (1 + 1 / TICKS) + 1e-9


@examples
@given(st.randoms(), st.sampled_from([0.0, 0.05, 0.2, 0.6]))
def test_repairs_delay_no_update_longer_than_two_answers(
    chance: random.Random, loss: float
) -> None:
    """The window, the random wait, the answer that was under way, and the answer itself."""
    longest = WINDOW_S * (1 + 1 / TICKS) + FIRST_JITTER_S + 2 * LATENCY_S
    assert lateness(chance, loss, repairs=True) <= longest + 1e-9


class _OneByOne(EventSequence):
    """Begins the window of a gap only when the one before it is reported."""

    def _seen_since(self, seq: int, now: float) -> float:
        return now

    def expire(self, now: float) -> bool:
        if self._gap_since is None or now < self._gap_since + self._window_s:
            return False
        later = (seq for seq in self._pending if seq > self._complete_to)
        self._report(self._complete_to + 1, min(later, default=self.head + 1) - 1)
        self._advance(now)
        return True


def test_a_window_that_waits_for_the_one_before_would_be_found() -> None:
    """The control: of 60 updates, some are many seconds late."""
    chance = random.Random(1)  # noqa: S311 - the same at each run
    assert lateness(chance, 0.2, repairs=False, kind=_OneByOne) > 2 * REPORT_WINDOW_S


def test_two_gaps_are_reported_at_the_time_of_each() -> None:
    """The second one does not wait for the first."""
    sequence = begun(repairs=False)
    sequence.receive(2, [event(2)], SOURCE, 0.0)
    sequence.receive(4, [event(4)], SOURCE, REPORT_WINDOW_S / 2)
    assert sequence.expire(REPORT_WINDOW_S)
    assert seqs(sequence) == [Gap(1, 1), 2]
    assert sequence.wake_at() == 1.5 * REPORT_WINDOW_S
    assert sequence.expire(1.5 * REPORT_WINDOW_S)
    assert seqs(sequence) == [Gap(3, 3), 4]


def test_what_is_known_to_exist_costs_bounded_memory() -> None:
    """A server that is away for hours, while datagrams go on."""
    sequence = begun()
    for number in range(10_000):
        sequence.receive(number + 2, [], SOURCE, 10.0 * number)
    assert len(sequence._seen) <= MAX_SEEN
    assert sequence.due_fetch(1e9) == FetchEvents(0, 10)


# -------------------------------------------------------------------------------- one by one


def event(seq: int) -> Event:
    return Event(seq, "check-in", f"u{seq}@example.com", MOMENT, "10.0.0.7", 1)


LOG_ID, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)


def begun(*, repairs: bool = True, after: int = 0, max_pending: int = 100) -> EventSequence:
    sequence = EventSequence(repairs=repairs, rng=lambda: 1.0, max_pending=max_pending, page=10)
    sequence.begin(LOG_ID, after, after, 0.0)
    return sequence


def deliveries(sequence: EventSequence) -> list[Delivery]:
    return list(iter(sequence.next_delivery, None))


def seqs(sequence: EventSequence) -> list[object]:
    return [
        d.event.seq if isinstance(d, Update) and isinstance(d.event, Event) else d
        for d in deliveries(sequence)
    ]


def test_repairs_that_begin_later_fetch_the_gap_that_is_open() -> None:
    """The server was away at the start, and answers before the gap is reported."""
    sequence = begun(repairs=False)
    sequence.receive(3, [event(3)], SOURCE, 0.0)
    sequence.repairs = True
    assert not sequence.expire(10.0)
    fetch = sequence.due_fetch(10.0)
    assert isinstance(fetch, FetchEvents)
    assert fetch.after == 0
    assert sequence.receive_page(fetch, EventPage(LOG_ID, 3, [event(1), event(2)]), 10.0)
    assert seqs(sequence) == [1, 2, 3]


def test_what_overtook_within_the_window_costs_no_request() -> None:
    """Datagrams of two servers arrive in either order."""
    sequence = begun()
    sequence.receive(2, [event(2)], SOURCE, 0.0)
    assert sequence.next_delivery() is None
    assert sequence.due_fetch(WINDOW_S / 2) is None
    sequence.receive(2, [event(1)], SOURCE, WINDOW_S / 2)
    assert seqs(sequence) == [1, 2]
    assert sequence.due_fetch(1e9) is None


@pytest.mark.parametrize("repairs", [True, False])
def test_a_repeated_event_heals_a_gap_and_is_no_duplicate(repairs: bool) -> None:
    """Nothing is asked for, and nothing is reported; only the hole that it fills is counted."""
    sequence = begun(repairs=repairs)
    sequence.receive(1, [event(1)], SOURCE, 0.0)
    sequence.receive(4, [event(4)], SOURCE, 1.0, [event(seq) for seq in (3, 2, 1)])
    assert seqs(sequence) == [1, 2, 3, 4]
    assert sequence.wake_at() is None
    assert (sequence.counts.healed, sequence.counts.duplicates) == (2, 0)
    sequence.receive(4, [event(3)], SOURCE, 1.1)  # it was only late
    assert (sequence.counts.healed, sequence.counts.duplicates) == (2, 1)


def test_a_gap_is_fetched_after_the_window_and_a_random_wait() -> None:
    """A thousand listeners miss the same datagram, and do not ask in the same moment."""
    sequence = begun()
    sequence.receive(3, [event(3)], SOURCE, 0.0)
    moment = sequence.wake_at()
    assert moment is not None
    assert moment > WINDOW_S
    assert sequence.due_fetch(moment - 0.001) is None
    fetch = sequence.due_fetch(moment)
    assert fetch == FetchEvents(0, 3)
    sequence.fetch_started(fetch)
    assert sequence.receive_page(fetch, EventPage(LOG_ID, 3, [event(n) for n in (1, 2, 3)]), moment)
    assert seqs(sequence) == [1, 2, 3]
    assert sequence.counts.repaired == 2


def test_a_lost_tail_is_noticed_by_a_heartbeat() -> None:
    """Its head says that there is more."""
    sequence = begun()
    sequence.receive(5, [], SOURCE, 0.0)
    assert sequence.due_fetch(10.0) == FetchEvents(0, 5)
    assert sequence.lag == 5


def test_a_page_that_says_there_is_nothing_is_asked_for_again() -> None:
    """The datagrams know of more: a standby may be behind."""
    sequence = begun()
    sequence.receive(5, [], SOURCE, 0.0)
    fetch = sequence.due_fetch(10.0)
    assert isinstance(fetch, FetchEvents)
    assert not sequence.receive_page(fetch, EventPage(LOG_ID, 0, []), 10.0)
    assert sequence.due_fetch(10.1) is None
    assert sequence.due_fetch(60.0) == fetch


def test_what_finds_no_room_is_repaired_later() -> None:
    """A reader who stands still bounds memory and loses nothing."""
    sequence = begun(max_pending=20)
    for number in range(1, 100):
        sequence.receive(number, [event(number)], SOURCE, 0.0)
    assert len(sequence) == 10
    got: list[object] = []
    now = 1.0
    while len(got) < 99:
        got += seqs(sequence)
        now += 1.0
        fetch = sequence.due_fetch(now)
        assert isinstance(fetch, FetchEvents)
        found = [event(n) for n in range(fetch.after + 1, fetch.after + 1 + fetch.limit)]
        sequence.receive_page(fetch, EventPage(LOG_ID, 99, found), now)
        got += seqs(sequence)
    assert got == list(range(1, 100))


def test_a_snapshot_to_begin_with_is_no_gap() -> None:
    """Events heard meanwhile follow it, and nothing before it was missed."""
    sequence = EventSequence(repairs=True, rng=lambda: 0.0, page=10)
    sequence.begin_with_snapshot(LOG_ID)
    sequence.receive(7, [event(7)], SOURCE, 0.0)
    assert deliveries(sequence) == []
    fetch = sequence.due_fetch(0.0)
    assert fetch == FetchUsers(None)
    record = StatusRecord(5, "a@example.com", event(5).last_seen, "10.0.0.7", 1)
    sequence.receive_users(FetchUsers(None), UserPage(LOG_ID, 6, [record], None), None, 0.0)
    assert deliveries(sequence) == [Snapshot(record), Update(event(7), SOURCE)]
    assert (sequence.position, sequence.counts.missed, sequence.lag) == (Position(LOG_ID, 7), 0, 0)


def test_without_a_server_a_gap_is_reported_once_and_late() -> None:
    """It cannot be undone; a later copy is a duplicate."""
    sequence = begun(repairs=False)
    sequence.receive(3, [event(3)], SOURCE, 0.0)
    assert not sequence.expire(REPORT_WINDOW_S / 2)
    assert sequence.expire(REPORT_WINDOW_S)
    assert seqs(sequence) == [Gap(1, 2), 3]
    sequence.receive(3, [event(1)], SOURCE, 2.0)
    assert sequence.next_delivery() is None
    assert sequence.counts.duplicates == 1


def test_a_new_log_without_a_server_is_a_gap_of_its_own() -> None:
    """Events heard of the one before come first."""
    sequence = begun(repairs=False)
    sequence.receive(1, [event(1)], SOURCE, 0.0)
    sequence.restart(OTHER, 6, 0.0)
    sequence.receive(7, [event(7)], SOURCE, 0.0)
    assert seqs(sequence) == [1, Gap(1, 6, OTHER), 7]
    assert sequence.position == Position(OTHER, 7)


def test_a_position_is_not_moved_by_half_a_snapshot() -> None:
    """A listener that is killed in it gets it again."""
    sequence = begun(after=3)
    sequence.receive(9, [], SOURCE, 0.0)
    fetch = sequence.due_fetch(10.0)
    assert isinstance(fetch, FetchEvents)
    sequence.events_gone(fetch)
    ask = sequence.due_fetch(10.0)
    assert ask == FetchUsers(None)
    assert isinstance(ask, FetchUsers)
    records = [StatusRecord(n, f"u{n}@example.com", MOMENT, "::1", 1) for n in (8, 9, 10)]
    sequence.receive_users(ask, UserPage(LOG_ID, 9, records, None), None, 10.0)
    assert sequence.next_delivery() == Gap(4, 9)
    assert sequence.next_delivery() == Snapshot(records[0])
    assert sequence.position == Position(LOG_ID, 3)
    assert sequence.next_delivery() == Snapshot(records[1])
    # Record 10 is newer than the snapshot: its own update follows.
    sequence.receive(10, [event(10)], SOURCE, 10.0)
    assert seqs(sequence) == [10]
    assert sequence.position == Position(LOG_ID, 10)


# ------------------------------------------------------------------------------- timers, logs


@examples
@given(st.lists(st.one_of(st.none(), st.floats(0, 1e9)), max_size=40), st.floats(0, 1))
def test_a_back_off_grows_and_is_bounded(answers: list[float | None], chance: float) -> None:
    """Never sooner than the server asked, and never so late that it is forgotten."""
    timer = RetryTimer(lambda: chance)
    for retry_after_s in answers:
        wait = timer.failed(0.0, retry_after_s)
        asked = min(retry_after_s or 0.0, MAX_RETRY_AFTER_S)
        assert asked < wait <= asked + 30
    timer.succeeded()
    assert timer.failed(0.0) <= 0.5


def test_a_flood_of_unknown_keys_is_no_flood_of_requests() -> None:
    """An hour of it is about one request a minute; a real rotation is followed at once."""
    refresh = KeyRefresh(lambda: 0.5)
    refresh.answered(0.0, changed=True)
    refresh.want(10.0)
    assert refresh.due < 10.0 + UNKNOWN_S[0]
    asked, now = 0, 10.0
    while now < 3610.0:
        refresh.want(now)
        if now >= refresh.due:
            asked += 1
            refresh.answered(now, changed=False)
        now += 0.1
    assert 60 <= asked <= 90
    refresh.answered(now, changed=True)
    refresh.want(now + 5)
    assert refresh.due < now + 6


def test_another_log_is_followed_only_on_evidence() -> None:
    """The server's word, the operator's pin, or without both a newer signed datagram."""
    later = MOMENT + datetime.timedelta(seconds=1)
    asks = LogTracker(confirms=True)
    assert asks.check(LOG_ID, MOMENT) is LogStatus.UNCONFIRMED
    asks.follow(LOG_ID)
    assert asks.check(LOG_ID, MOMENT) is LogStatus.FOLLOWED
    assert asks.check(OTHER, later) is LogStatus.UNCONFIRMED
    asks.follow(OTHER)
    assert asks.check(LOG_ID, later) is LogStatus.REFUSED

    trusts = LogTracker()
    assert trusts.check(LOG_ID, MOMENT) is LogStatus.NEW
    trusts.follow(LOG_ID, MOMENT)
    assert trusts.check(OTHER, MOMENT) is LogStatus.OLDER
    assert trusts.check(OTHER, later) is LogStatus.NEW
    trusts.follow(OTHER, later)
    assert trusts.check(LOG_ID, later + datetime.timedelta(hours=1)) is LogStatus.REFUSED

    pinned = LogTracker(pinned=OTHER, confirms=True)
    assert pinned.check(LOG_ID, later) is LogStatus.REFUSED
    assert pinned.check(OTHER, MOMENT) is LogStatus.NEW
    assert not pinned.allows(LOG_ID)


# ------------------------------------------------------------------------------- the log followed


def following(
    start: Start = "now",
    *,
    repairs: bool = True,
    pinned: uuid.UUID | None = None,
    resumed: Position | None = None,
) -> tuple[LogFollower, list[str]]:
    said: list[str] = []
    follower = LogFollower(
        on_unconfirmed=lambda: said.append("unconfirmed"),
        start=start,
        pinned=pinned,
        resumed=resumed,
        repairs=repairs,
        window_s=None,
        warn=said.append,
        rng=lambda: 0.0,
    )
    return follower, said


def announced(log_id: uuid.UUID, *numbers: int, later_s: float = 0.0) -> Datagram:
    sent = MOMENT + datetime.timedelta(seconds=later_s)
    return Datagram(log_id, sent, max(numbers), tuple(event(n) for n in numbers), kid="kid")


def heartbeat(
    log_id: uuid.UUID, head: int, parent: LogStep | None = None, *, later_s: float = 0.0
) -> Datagram:
    sent = MOMENT + datetime.timedelta(seconds=later_s)
    return Datagram(log_id, sent, head, (), parent=parent, kid="kid")


def test_an_update_that_came_before_the_server_confirmed_its_log_is_held() -> None:
    """`now` is when the listener began to listen, not when the server answered."""
    follower, said = following()
    follower.receive(announced(LOG_ID, 7, 8), SOURCE, 0.0)
    assert said == ["unconfirmed"]
    follower.begin_confirmed(LogSpan(LOG_ID, 9, 0), 1.0)
    assert seqs(follower.sequence) == [7, 8]
    assert follower.sequence.due_fetch(10.0) == FetchEvents(8, 1)


@pytest.mark.parametrize(("start", "first"), [("now", 10), ("start", 1), (4, 4)])
@pytest.mark.parametrize("repairs", [True, False])
def test_a_listener_begins_where_it_was_asked_to(start: Start, first: int, repairs: bool) -> None:
    """With the server's word, or with the first datagram."""
    follower, _ = following(start, repairs=repairs)
    if repairs:
        follower.begin_confirmed(LogSpan(LOG_ID, 9, 0), 0.0)
    follower.receive(announced(LOG_ID, 10), SOURCE, 0.0)
    assert follower.sequence.position == Position(LOG_ID, first - 1)


STEP = LogStep(OTHER, LOG_ID, 6)  # the log OTHER goes on from LOG_ID after number 6


def test_a_log_goes_on_by_its_heartbeat() -> None:
    """Events of it that came before the heartbeat are held until then."""
    follower, said = following(repairs=False)
    follower.receive(announced(LOG_ID, 5), SOURCE, 0.0)
    follower.receive(announced(OTHER, 7, later_s=1.0), SOURCE, 0.0)
    assert seqs(follower.sequence) == [5]
    follower.receive(heartbeat(OTHER, 7, STEP, later_s=2.0), SOURCE, 0.0)
    assert seqs(follower.sequence) == []  # number 6 is missing
    follower.receive(announced(OTHER, 6, later_s=2.0), SOURCE, 0.0)
    assert seqs(follower.sequence) == [6, 7]
    assert follower.sequence.position == Position(OTHER, 7)
    assert said == [f"the log goes on from number 6 as {OTHER}"]
    with pytest.raises(DatagramError):
        follower.receive(announced(LOG_ID, 7, later_s=3.0), SOURCE, 0.0)  # a cut-off server


def test_what_the_new_log_lacks_is_rolled_back() -> None:
    """It was shown; its numbers come again with other events."""
    follower, _ = following(repairs=False)
    follower.receive(announced(LOG_ID, 5, 6, 7, 8), SOURCE, 0.0)
    assert seqs(follower.sequence) == [5, 6, 7, 8]
    follower.receive(heartbeat(OTHER, 6, STEP, later_s=1.0), SOURCE, 0.0)
    follower.receive(announced(OTHER, 7, later_s=1.0), SOURCE, 0.0)
    assert seqs(follower.sequence) == [Rollback(7, 8, OTHER), 7]


def test_a_heartbeat_that_is_older_by_another_clock_counts() -> None:
    """Another server announces the old log with a clock that is ahead: the parent is proof."""
    follower, _ = following(repairs=False)
    follower.receive(announced(LOG_ID, 5, later_s=5.0), SOURCE, 0.0)
    for refused in (announced(OTHER, 7, later_s=1.0), heartbeat(OTHER, 7, later_s=1.0)):
        with pytest.raises(DatagramError):
            follower.receive(refused, SOURCE, 0.0)
    follower.receive(heartbeat(OTHER, 7, STEP, later_s=1.0), SOURCE, 0.0)
    follower.receive(announced(OTHER, 6, 7, later_s=1.0), SOURCE, 0.0)
    assert seqs(follower.sequence) == [5, 6, 7]


def test_a_log_that_no_server_confirms_is_refused_after_a_while() -> None:
    """Another installation's, with the same announcer: the operator learns of it."""
    follower, said = following()
    follower.begin_confirmed(LogSpan(LOG_ID, 6, 0), 0.0)
    follower.receive(announced(OTHER, 7), SOURCE, 0.0)
    with pytest.raises(DatagramError, match="is not confirmed by the server"):
        follower.receive(announced(OTHER, 8), SOURCE, HOLD_S)
    assert said == ["unconfirmed", "unconfirmed"]
    assert not follower.expire(2 * HOLD_S)


@pytest.mark.parametrize("by", ["time", "room"])
def test_a_log_is_held_only_so_long(by: str) -> None:
    """Without a heartbeat it is one of which nothing is known."""
    follower, said = following(repairs=False)
    follower.receive(announced(LOG_ID, 5), SOURCE, 0.0)
    for number in range(7, 7 + MAX_HELD):
        follower.receive(announced(OTHER, number, later_s=1.0), SOURCE, 0.0)
    assert seqs(follower.sequence) == [5]
    last = 6 + MAX_HELD
    if by == "time":
        assert follower.wake_at() == HOLD_S
        assert not follower.expire(HOLD_S - 0.1)
        assert follower.expire(HOLD_S)
    else:
        last += 1
        follower.receive(announced(OTHER, last, later_s=1.0), SOURCE, 0.0)
    assert seqs(follower.sequence) == [Gap(1, 6, OTHER), *range(7, last + 1)]
    assert said == [f"a new log begins: {OTHER}"]


def test_a_rollback_that_waits_leads_into_the_newest_log() -> None:
    """Two failovers before its reader takes it."""
    sequence = EventSequence(repairs=False, rng=random.random)
    sequence.begin(LOG_ID, 5, 5, 0.0)
    newest = uuid.UUID(int=3)
    sequence.go_on(OTHER, 3, 1.0)
    sequence.go_on(newest, 3, 2.0)
    assert sequence.next_delivery() == Rollback(4, 5, OTHER)
    assert sequence.position == Position(newest, 3)


@pytest.mark.parametrize("repairs", [True, False])
def test_a_saved_position_goes_on_in_the_new_log(repairs: bool) -> None:
    """By the server's lineage, or by a heartbeat."""
    follower, _ = following(repairs=repairs, resumed=Position(LOG_ID, 5))
    follower.resume(MOMENT, 0.0)
    if repairs:
        follower.begin_confirmed(LogSpan(OTHER, 7, 0, (STEP,)), 0.0)
    else:
        follower.receive(heartbeat(OTHER, 7, STEP, later_s=1.0), SOURCE, 0.0)
    follower.receive(announced(OTHER, 6, 7, later_s=1.0), SOURCE, 0.0)
    assert seqs(follower.sequence) == [6, 7]
    assert follower.sequence.position == Position(OTHER, 7)


def test_a_server_that_has_not_failed_over_yet_is_asked_again() -> None:
    """It is right once the new log has been silent for long, and may be wrong even then."""
    follower, _ = following()
    follower.begin_confirmed(LogSpan(LOG_ID, 6, 0), 0.0)
    follower.follow_confirmed(LogSpan(OTHER, 7, 0, (STEP,)), 10.0)
    assert follower.follows(OTHER)
    assert follower.is_behind(LOG_ID, 10.0 + BEHIND_S / 2)
    assert not follower.is_behind(uuid.UUID(int=3), 10.0)
    follower.receive(announced(OTHER, 7, later_s=1.0), SOURCE, 10.0 + BEHIND_S)
    assert follower.is_behind(LOG_ID, 10.0 + BEHIND_S * 3 / 2)
    assert not follower.is_behind(LOG_ID, 10.0 + BEHIND_S * 2)
    follower.follow_confirmed(LogSpan(LOG_ID, 6, 0), 200.0)
    assert follower.follows(LOG_ID)
    follower.receive(announced(OTHER, 8, later_s=2.0), SOURCE, 201.0)  # held, and asked about
    follower.follow_confirmed(LogSpan(OTHER, 8, 0, (STEP,)), 202.0)
    assert follower.follows(OTHER)


def test_a_saved_position_of_another_log_ends_in_a_gap() -> None:
    """The operator is reported that a new log begins; a pinned log lets no other in."""
    follower, said = following(repairs=False, resumed=Position(OTHER, 3))
    follower.resume(MOMENT, 0.0)
    with pytest.raises(DatagramError, match="is not the one that is followed"):
        follower.receive(heartbeat(LOG_ID, 5), SOURCE, 0.0)  # not newer than the start
    follower.receive(announced(LOG_ID, 5, later_s=1.0), SOURCE, 0.0)
    follower.receive(heartbeat(LOG_ID, 5, later_s=2.0), SOURCE, 0.0)
    assert seqs(follower.sequence) == [Gap(1, 4, LOG_ID), 5]
    assert said == [f"a new log begins: {LOG_ID}"]

    pinned, _ = following(pinned=OTHER)
    assert not pinned.allows(LOG_ID)
    with pytest.raises(DatagramError):
        pinned.receive(announced(LOG_ID, 5), SOURCE, 0.0)


# --------------------------------------------------------------------------------- fair queue


def test_a_flood_displaces_no_other_source() -> None:
    """Each source has its turn, and the longest queue gives way."""
    queue = FairQueue(max_waiting=100)
    for number in range(1000):
        queue.put(b"forged %d" % number, ("10.0.0.66", 1))
        if number % 100 == 0:
            queue.put(b"good %d" % (number // 100), ("10.0.0.1", 6666))
    assert len(queue) == 100
    first = [queue.get() for _ in range(20)]
    good = [found[0] for found in first if found is not None and found[1][0] == "10.0.0.1"]
    assert good == [b"good %d" % number for number in range(10)]


@pytest.mark.parametrize("sources", [1, 3, 1000])
def test_forged_sources_cost_bounded_memory(sources: int) -> None:
    """However many there are."""
    queue = FairQueue(max_waiting=50, max_sources=8)
    for number in range(500):
        queue.put(b"x", ("10.0.0.1", number % sources))
    assert len(queue) == 50
    while queue.get() is not None:
        pass
    assert len(queue) == 0


@pytest.mark.parametrize("proven", [True, False])
def test_a_flood_of_many_sources_displaces_no_proven_one(proven: bool) -> None:
    """However many they are. Without the proof it shares a queue with most of them."""
    queue = FairQueue(max_waiting=100, max_sources=8)
    if proven:
        queue.prove(("10.0.0.1", 6666))
    for number in range(1000):
        queue.put(b"forged", ("10.0.0.66", number))
        if number % 100 == 0:
            queue.put(b"good %d" % (number // 100), ("10.0.0.1", 6666))
    assert len(queue) == 100
    first = [queue.get() for _ in range(20)]
    good = [found[0] for found in first if found is not None and found[1][0] == "10.0.0.1"]
    assert (good == [b"good %d" % number for number in range(10)]) == proven


def test_neither_half_of_the_room_is_lost_to_the_other() -> None:
    """A flood that takes a proven source's address leaves the others theirs."""
    queue = FairQueue(max_waiting=100, max_sources=8)
    queue.prove(("10.0.0.1", 6666))
    for _ in range(200):
        queue.put(b"forged", ("10.0.0.1", 6666))
    for number in range(50):
        queue.put(b"other", ("10.0.0.2", number % 4))
    for _ in range(200):
        queue.put(b"forged", ("10.0.0.1", 6666))
    found = [queue.get() for _ in range(100)]
    assert [each is not None and each[0] for each in found].count(b"other") == 50
    assert queue.get() is None


def test_proven_sources_cost_bounded_memory() -> None:
    """The oldest is forgotten."""
    queue = FairQueue(max_waiting=100, max_sources=1)
    for number in range(MAX_PROVEN + 1):
        queue.prove(("10.0.0.1", number))
    queue.put(b"x", ("10.0.0.9", 1))
    for number in range(MAX_PROVEN + 1):
        queue.put(b"%d" % number, ("10.0.0.1", number))
    assert [queue.get() for _ in range(3)] == [
        (b"1", ("10.0.0.1", 1)),
        (b"x", ("10.0.0.9", 1)),
        (b"2", ("10.0.0.1", 2)),
    ]
