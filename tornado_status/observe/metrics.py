"""Prometheus metrics: each part collects its own, with these helpers, when /metrics is read."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from tornado_status.observe.counters import Histogram

PREFIX = "tornado_status_"

Collect = Callable[[], Iterable[Metric]]  # reads the counters of one part


def make_registry(parts: Iterable[Collect]) -> CollectorRegistry:
    """Return a registry of the metrics of `parts`, of the build, and, as `process_...`, of the
    process.
    """
    registry = CollectorRegistry()
    registry.register(_Parts(parts))
    ProcessCollector(registry=registry)
    return registry


class _Parts(Collector):
    def __init__(self, parts: Iterable[Collect]) -> None:
        self._parts = (_build, *parts)

    def collect(self) -> Iterable[Metric]:
        for part in self._parts:
            yield from part()


def gauge(name: str, documentation: str, value: float) -> Metric:
    """Return a gauge without labels."""
    return GaugeMetricFamily(PREFIX + name, documentation, value=value)


def gauges(
    name: str, documentation: str, labels: list[str], values: Iterable[tuple[list[str], float]]
) -> Metric:
    """Return a gauge with a sample for each of `values`, which may be none."""
    family = GaugeMetricFamily(PREFIX + name, documentation, labels=labels)
    for of, value in values:
        family.add_metric(of, value)
    return family


def counter(name: str, documentation: str, value: float) -> Metric:
    """Return a counter without labels; `_total` is appended to its name."""
    return CounterMetricFamily(PREFIX + name, documentation, value=value)


def counters(
    name: str,
    documentation: str,
    labels: list[str],
    counts: Mapping[str, int] | Mapping[tuple[str, str], int],
) -> Metric:
    """Return a counter with a sample for each key: the value of its label, or of its two."""
    family = CounterMetricFamily(PREFIX + name, documentation, labels=labels)
    for key, count in counts.items():
        family.add_metric([key] if isinstance(key, str) else list(key), count)
    return family


def histogram(name: str, documentation: str, observed: Histogram) -> Metric:
    """Return what was observed so far."""
    buckets = []
    below = 0
    names = [*(str(float(bound)) for bound in observed.bounds), "+Inf"]
    for bound, count in zip(names, observed.counts, strict=True):
        below += count
        buckets.append((bound, float(below)))
    return HistogramMetricFamily(
        PREFIX + name, documentation, buckets=buckets, sum_value=observed.sum
    )


def _build() -> Iterable[Metric]:
    build = InfoMetricFamily(PREFIX + "build", "The version that runs, and its Python")
    build.add_metric([], {"version": __version__, "python": platform.python_version()})
    yield build
