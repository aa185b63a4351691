"""Work in short slices of the processor's time, between which check-ins are served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from tornado_status.api.live.event_filter import EventFilter
from tornado_status.model.records import Event

SLICE_S = 0.005  # of work at a time; then check-ins are served
MATCHED_AT_ONCE = 10  # events: the costliest patterns need as long as a slice for them


class CpuSlices:
    """The slices of one task at a time. In the end it rests `rest` times as long as it worked."""

    def __init__(self, rest: float) -> None:
        self.rest = rest
        self._worked_s = 0.0
        self._began = 0.0

    def begin(self) -> None:
        """Start the first slice. Until `finish`, await nothing but the methods of this object."""
        self._worked_s = 0.0
        self._began = time.thread_time()

    async def pause(self) -> None:
        """Let others run if the slice is over."""
        if (elapsed := time.thread_time() - self._began) > SLICE_S:
            self._worked_s += elapsed
            await asyncio.sleep(0)
            self._began = time.thread_time()

    async def finish(self) -> None:
        """End the last slice, and rest."""
        self._worked_s += time.thread_time() - self._began
        await asyncio.sleep(self.rest * self._worked_s)

    async def select(self, event_filter: EventFilter, events: Sequence[Event]) -> list[Event]:
        """Return the events that match. Pauses in between if that takes long."""
        selected: list[Event] = []
        step = MATCHED_AT_ONCE if event_filter.patterns else len(events) or 1
        for start in range(0, len(events), step):
            selected += event_filter.select(events[start : start + step])
            await self.pause()
        return selected
