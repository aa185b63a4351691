"""What /metrics shows, in Prometheus' words: read from where it is counted, when asked for."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tornado_status import __version__
from tornado_status.observe.counters import CheckIns, Histogram
from tornado_status.observe.health import Check
from tornado_status.pki.expiry import Validity

PREFIX = "tornado_status_"


@dataclass(frozen=True, slots=True)
class MetricSources:
    """Where the numbers are. Counters and histograms change in place; the rest is called."""

    checks: Callable[[], Sequence[Check]]
    terms: Callable[[], Sequence[Validity]]
    head: Callable[[], int]
    pending: Callable[[], int]
    connections: Callable[[], int]
    handshakes: Callable[[], int]
    users: Callable[[], Mapping[str, int]]
    swept_ago_s: Callable[[], float | None]
    gone_offline: Callable[[], int]
    pruned: Callable[[], int]
    check_ins: CheckIns
    handshake_durations: Histogram
    refused: Mapping[str, int]
    requests: Mapping[tuple[str, str], int]
    streams: Callable[[], int]
    streams_ended: Mapping[str, int]
    alerts: Mapping[tuple[str, str], int]
    spans: Mapping[str, int]
    datagrams_sent: Mapping[str, int]
    datagrams_refused: Mapping[tuple[str, str], int]


def make_registry(vitals: MetricSources) -> CollectorRegistry:
    """Return a registry of our metrics and, as `process_...`, of this process's."""
    registry = CollectorRegistry()
    registry.register(_VitalsCollector(vitals))
    ProcessCollector(registry=registry)
    return registry


class _VitalsCollector(Collector):
    def __init__(self, vitals: MetricSources) -> None:
        self._vitals = vitals

    def collect(self) -> Iterable[Metric]:
        yield from self._state()
        yield from self._check_ins()
        yield from self._presence()
        yield from self._connections()
        yield from self._announcements()
        yield from self._terms(time.time())

    def _state(self) -> Iterable[Metric]:
        build = InfoMetricFamily(PREFIX + "build", "What is running")
        build.add_metric([], {"version": __version__, "python": platform.python_version()})
        yield build
        checks = self._vitals.checks()
        ready = not any(check.problems for check in checks)
        yield _gauge("ready", "1 when check-ins are recorded", float(ready))
        troubles = GaugeMetricFamily(
            PREFIX + "troubles", "Problems and warnings of /readyz", labels=["check", "severity"]
        )
        for check in checks:
            troubles.add_metric([check.name, "problem"], len(check.problems))
            troubles.add_metric([check.name, "warning"], len(check.warnings))
        yield troubles

    def _check_ins(self) -> Iterable[Metric]:
        check_ins = self._vitals.check_ins
        yield _gauge("head", "Largest number known to be committed", self._vitals.head())
        yield _gauge(
            "commit_queue_length", "Check-ins waiting for a commit", self._vitals.pending()
        )
        yield _counter("check_ins", "Check-ins answered", ["result"], check_ins.results)
        yield _histogram(
            "check_in_duration_seconds",
            "From a check-in's being read to its answer, of those committed",
            check_ins.durations,
        )
        yield _histogram(
            "commit_duration_seconds", "From a commit's statement to its answer", check_ins.commits
        )
        yield _histogram("commit_batch_size", "Check-ins in a commit", check_ins.batches)
        yield _counter(
            "http_requests",
            "Requests answered by ordinary HTTP, which plain check-ins do without",
            ["method", "code"],
            self._vitals.requests,
        )

    def _presence(self) -> Iterable[Metric]:
        vitals = self._vitals
        users = GaugeMetricFamily(
            PREFIX + "users", "Users in the database by presence", labels=["state"]
        )
        for state, count in vitals.users().items():
            users.add_metric([state], count)
        yield users
        swept = GaugeMetricFamily(
            PREFIX + "sweep_age_seconds", "Since it was last looked, by any server, who is offline"
        )
        ago_s = vitals.swept_ago_s()
        if ago_s is not None:
            swept.add_metric([], ago_s)
        yield swept
        for name, documentation, value in (
            (
                "users_gone_offline",
                "Users that this server declared offline",
                vitals.gone_offline(),
            ),
            ("log_pruned", "Entries of the log that this server deleted", vitals.pruned()),
        ):
            yield CounterMetricFamily(PREFIX + name, documentation, value=value)

    def _connections(self) -> Iterable[Metric]:
        vitals = self._vitals
        yield _gauge("connections", "Connections open, with handshakes", vitals.connections())
        yield _gauge("handshakes", "TLS handshakes under way", vitals.handshakes())
        yield _histogram(
            "handshake_duration_seconds",
            "From a client's first word to the end of its TLS handshake",
            vitals.handshake_durations,
        )
        yield _counter(
            "connections_refused", "Handshakes and identities refused", ["reason"], vitals.refused
        )
        yield _gauge("streams", "Open streams of /api/stream and /api/socket", vitals.streams())
        yield _counter(
            "streams_ended", "Streams that the server ended", ["reason"], vitals.streams_ended
        )

    def _announcements(self) -> Iterable[Metric]:
        vitals = self._vitals
        yield _counter(
            "datagrams_sent", "Datagrams handed to the kernel", ["target"], vitals.datagrams_sent
        )
        yield _counter("alert_messages", "Messages of alerts", ["alert", "outcome"], vitals.alerts)
        yield _counter("trace_spans", "Spans sent to the collector", ["outcome"], vitals.spans)
        yield _counter(
            "announce_errors",
            "Datagrams not sent",
            ["target", "errno"],
            vitals.datagrams_refused,
        )

    def _terms(self, now: float) -> Iterable[Metric]:
        certificates = GaugeMetricFamily(
            PREFIX + "certificate_days_left",
            "Days until a certificate expires, negative behind it",
            labels=["setting", "file", "subject"],
        )
        lists = GaugeMetricFamily(
            PREFIX + "crl_days_left",
            "Days until a CA's revocation list is out of date, negative behind it",
            labels=["setting", "file", "subject"],
        )
        for term in self._vitals.terms():
            family = lists if term.kind == "list" else certificates
            family.add_metric([term.setting, term.file, term.subject], term.days_left(now))
        yield certificates
        yield lists


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, documentation, value=value)


def _counter(
    name: str,
    documentation: str,
    labels: list[str],
    counts: Mapping[str, int] | Mapping[tuple[str, str], int],
) -> Metric:
    family = CounterMetricFamily(PREFIX + name, documentation, labels=labels)
    for key, count in counts.items():
        family.add_metric([key] if isinstance(key, str) else list(key), count)
    return family


def _histogram(name: str, documentation: str, histogram: Histogram) -> Metric:
    buckets = []
    below = 0
    names = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
    for bound, count in zip(names, histogram.counts, strict=True):
        below += count
        buckets.append((bound, float(below)))
    return HistogramMetricFamily(
        PREFIX + name, documentation, buckets=buckets, sum_value=histogram.sum
    )
