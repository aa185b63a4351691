"""Filters of live streams: compiled once, and matched in slices, between which check-ins go on."""

from __future__ import annotations

import asyncio
import datetime
import re
import threading
import uuid
from collections.abc import Iterable, Sequence
from typing import cast

import pytest

from tests.support.harness import PATIENCE_S
from tornado_status.api.dependencies import EventFeed
from tornado_status.api.live import cpu_slices, event_filter, subscriptions
from tornado_status.api.live.event_filter import EventFilter, FilterError, parse_filter
from tornado_status.api.live.framing import EventStream
from tornado_status.api.live.subscription import Subscription
from tornado_status.api.live.subscriptions import Subscriptions
from tornado_status.config.settings import LiveSettings
from tornado_status.model.email_patterns import any_of
from tornado_status.model.records import Event
from tornado_status.runtime.http_timeouts import TimeoutStream

STREAMS = 2
NOW = datetime.datetime.now(datetime.UTC)
EVENTS = [  # in one page
    Event(n, "check-in", f"{'a' * 60}@{'a' * 60}.{'a' * 60}.com", NOW, "10.0.0.1", 5)
    for n in range(1, 201)
]


def costly_filter(number: int) -> EventFilter:
    """Return a filter that tries all its patterns on each event, far into it, and takes none."""
    nearly = "a" * 50 + "b"
    return parse_filter([f"*{nearly}*{number}-{n}" for n in range(event_filter.MAX_TERMS)], ())


def test_a_filter_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the subscription is admitted, however many others there are."""
    compiled = []

    def counted(patterns: Iterable[str]) -> re.Pattern[str] | None:
        compiled.append(patterns)
        return any_of(patterns)

    monkeypatch.setattr(event_filter, "any_of", counted)
    filters = [costly_filter(number) for number in range(300)]
    for _ in range(2):
        assert not any(each.select(EVENTS[:1]) for each in filters)
    assert len(compiled) == len(filters)


def test_a_pattern_has_few_wildcards() -> None:
    """Each makes it slower to compile and to match."""
    most = event_filter.MAX_WILDCARDS
    parse_filter(["a*" * most], ())
    with pytest.raises(FilterError, match="wildcards"):
        parse_filter(["a*" * (most + 1)], ())


class Client:
    """A connection that takes everything. `done` is set once it gets events."""

    stalled = False

    def __init__(self) -> None:
        self.done = asyncio.Event()

    def writing(self) -> bool:
        return False

    def write(self, data: bytes) -> asyncio.Future[None]:
        if b"event: check-in" in data:
            self.done.set()
        written = asyncio.get_running_loop().create_future()
        written.set_result(None)
        return written

    def close(self) -> None: ...


class Log:
    """The feed: `EVENTS`, once they are committed."""

    log_id = uuid.UUID(int=1)
    head = 0

    def __init__(self) -> None:
        self.advanced = asyncio.Event()

    def commit(self) -> None:
        self.head = EVENTS[-1].seq
        self.advanced.set()

    async def open(self) -> None: ...

    def close(self) -> None: ...

    def after(self, position: int, limit: int) -> list[Event]:
        return EVENTS[position : position + limit]


async def most_at_once(matched: list[int], *, resuming: bool) -> int:
    """Deliver `EVENTS` to all; return how many were matched while nothing else ran, at most."""
    log = Log()
    subscriptions = Subscriptions(cast(EventFeed, log), LiveSettings())
    if resuming:
        log.commit()
    await subscriptions.open_feed()

    def follow(wanted: EventFilter) -> Client:
        client = Client()
        log_id, position = subscriptions.position(None, 0 if resuming else None)
        subscription = Subscription(
            subscriptions.take_slot(f"{wanted!r}@example.com", is_reader=True),
            cast(TimeoutStream, client),
            EventStream(),
            wanted,
            lambda: None,
            lambda code, reason: subscriptions.on_disconnected(subscription),
            log_id=log_id,
            position=position,
        )
        subscriptions.add(subscription)
        return client

    for number in range(STREAMS):
        follow(costly_filter(number))
    last = follow(EventFilter())
    most = 0
    if not resuming:
        subscriptions.start()
        log.commit()
    while not last.done.is_set():
        await asyncio.sleep(0)
        most = max(most, sum(matched))
        matched.clear()
    await subscriptions.close()
    return most


@pytest.mark.parametrize("resuming", [False, True])
def test_filters_stop_nothing_else(monkeypatch: pytest.MonkeyPatch, resuming: bool) -> None:
    """Check-ins go on while the costliest filters are matched."""

    matched: list[int] = []
    select = EventFilter.select

    def counted(self: EventFilter, events: Sequence[Event]) -> Sequence[Event]:
        if self.patterns:
            matched.append(len(events))
        return select(self, events)

    def most(slice_s: float) -> int:
        monkeypatch.setattr(cpu_slices, "SLICE_S", slice_s)
        return asyncio.run(asyncio.wait_for(most_at_once(matched, resuming=resuming), PATIENCE_S))

    monkeypatch.setattr(EventFilter, "select", counted)
    assert most(0.0) == cpu_slices.MATCHED_AT_ONCE
    assert most(PATIENCE_S) >= len(EVENTS)


class FeedStub:
    def close(self) -> None: ...


def test_a_filter_is_compiled_beside_the_loop_and_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The costliest patterns take 30 ms, in which others are served."""
    begun, go = threading.Event(), threading.Event()
    running: list[None] = []

    def slow(patterns: Sequence[str], kinds: Sequence[str]) -> EventFilter:
        running.append(None)
        begun.set()
        assert go.wait(PATIENCE_S)
        assert len(running) == 1
        running.pop()
        return EventFilter()

    async def main() -> None:
        monkeypatch.setattr(subscriptions, "parse_filter", slow)
        served = Subscriptions(cast(EventFeed, FeedStub()), LiveSettings())
        waiting = [asyncio.ensure_future(served.event_filter([], [])) for _ in range(3)]
        await asyncio.to_thread(begun.wait)
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(*waiting)

    asyncio.run(main())


@pytest.mark.parametrize("slice_s", [0.0, PATIENCE_S], ids=["as it is", "without slices"])
def test_streams_are_checked_in_slices(monkeypatch: pytest.MonkeyPatch, slice_s: float) -> None:
    """Behind a proxy, a changed CA bundle means that each stream's chain is verified again."""
    monkeypatch.setattr(cpu_slices, "SLICE_S", slice_s)
    monkeypatch.setattr(subscriptions, "CHECK_EVERY_S", 0)
    checked: list[None] = []

    def add(served: Subscriptions, number: int) -> None:
        log_id, position = served.position(None, None)
        subscription = Subscription(
            served.take_slot(f"{number}@example.com", is_reader=True),
            cast(TimeoutStream, Client()),
            EventStream(),
            EventFilter(),
            lambda: checked.append(None),
            lambda code, reason: served.on_disconnected(subscription),
            log_id=log_id,
            position=position,
        )
        served.add(subscription)

    async def main() -> int:
        served = Subscriptions(cast(EventFeed, Log()), LiveSettings())
        await served.open_feed()
        for number in range(50):
            add(served, number)
        served.start()
        most = 0
        for _ in range(500):
            await asyncio.sleep(0)
            most = max(most, len(checked))
            checked.clear()
        await served.close()
        return most

    most = asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert most == 1 if slice_s == 0.0 else most >= 50
