"""Counters and histograms of check-ins, cheap enough for every one of them.

The histograms of prometheus-client take a lock and search for each observation. Here a whole batch
is observed at once.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from prometheus_client.core import Metric

from tornado_status.errors import (
    IdentityError,
    StatusError,
    StoreUnavailable,
    TooFrequent,
    UserUnknown,
)
from tornado_status.model.records import CheckIn
from tornado_status.observe import metrics

# Upper bounds in seconds, from the time on an idle machine to the time-outs.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)  # up to what one commit takes

RECORDED = "recorded"
RESULTS = (RECORDED, "refused", "user_unknown", "too_frequent", "unavailable", "failed")


class Batch(NamedTuple):
    """One finished commit of check-ins. Times are monotonic, in seconds.

    `submitted` is when its first check-in was submitted, `sent` and `ended` when its statement was
    sent and answered. `error` is a SQLSTATE or the name of an error if it failed; then nothing is
    `recorded`. `head` is the largest committed sequence number.
    """

    check_ins: Sequence[CheckIn]
    recorded: int
    head: int
    submitted: float
    sent: float
    ended: float
    error: str | None


class Histogram:
    """Counts of observations by upper bound, and their sum.

    `counts` has a number for each bound, without those below it, and a last one for the rest.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def observe_since(self, begun: Sequence[float], now: float) -> None:
        """Observe `now` minus each of `begun`, which are in rising order."""
        size = len(begun)
        if size < len(self.bounds):
            for moment in begun:
                self.observe(now - moment)
            return
        # They are in order, so one search a bound is enough.
        within = 0
        for number, bound in enumerate(self.bounds):
            below, within = within, size - bisect_left(begun, now - bound)
            self.counts[number] += within - below
            if within == size:
                break
        self.counts[-1] += size - within
        self.sum += size * now - sum(begun)


class CheckIns:
    """The results of check-ins, and how long they took.

    `results` counts the answers by `RESULTS`. Durations are in seconds. `commits` is the time of a
    commit, from its statement to its answer. `durations` is the time of a check-in, from its last
    byte read to its answer written. `batches` are the check-ins of a commit.
    """

    __slots__ = ("batches", "commits", "durations", "results")

    def __init__(self) -> None:
        self.results: Counter[str] = Counter(dict.fromkeys(RESULTS, 0))
        self.commits = Histogram(SECONDS)
        self.durations = Histogram(SECONDS)
        self.batches = Histogram(ROWS)

    def batch(
        self, submitted: Sequence[float], recorded: int, sent: float, committed: float
    ) -> None:
        """Count a batch that was answered just now, `recorded` of its check-ins with success.

        Times are monotonic: when its check-ins were submitted, in order, and when its statement
        was sent and answered.
        """
        self.results[RECORDED] += recorded
        self.batches.observe(len(submitted))
        self.commits.observe(committed - sent)
        self.durations.observe_since(submitted, time.monotonic())

    def refused(self, error: StatusError) -> None:
        """Count a check-in that was answered with an error."""
        self.results[_result_of(error)] += 1

    def metrics(self) -> Iterable[Metric]:
        yield metrics.counters("check_ins", "Check-ins answered", ["result"], self.results)
        yield metrics.histogram(
            "check_in_duration_seconds",
            "From reading a check-in to its answer, of those committed",
            self.durations,
        )
        yield metrics.histogram(
            "commit_duration_seconds",
            "From sending a commit's statement to its answer",
            self.commits,
        )
        yield metrics.histogram("commit_batch_size", "Check-ins in a commit", self.batches)


def _result_of(error: StatusError) -> str:
    if isinstance(error, UserUnknown):
        return "user_unknown"
    if isinstance(error, TooFrequent):
        return "too_frequent"
    if isinstance(error, StoreUnavailable):
        return "unavailable"
    if isinstance(error, IdentityError):
        return "refused"
    return "failed"
