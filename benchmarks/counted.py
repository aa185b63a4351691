"""What servers counted themselves, read from their /metrics: batches, commits, datagrams."""

from __future__ import annotations

import http.client
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.errors import BenchmarkError
from benchmarks.peers.base import LOOPBACK

TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Counted:
    """Sums over all servers since their start; a difference of two is what happened between.

    `batches` are commits of check-ins, `commit_s` the seconds from their statements to their
    answers, `datagrams` those sent to the multicast target.
    """

    check_ins: float
    batches: float
    commit_s: float
    datagrams: float

    def __sub__(self, before: Counted) -> Counted:
        return Counted(
            self.check_ins - before.check_ins,
            self.batches - before.batches,
            self.commit_s - before.commit_s,
            self.datagrams - before.datagrams,
        )


def read(ports: Iterable[int]) -> Counted:
    """Ask the management ports of servers on this machine. Raises `BenchmarkError`."""
    check_ins = batches = commit_s = datagrams = 0.0
    for port in ports:
        for family in text_string_to_metric_families(_metrics(port)):
            for sample in family.samples:
                match sample.name:
                    case "tornado_status_check_ins_total" if sample.labels["result"] == "recorded":
                        check_ins += sample.value
                    case "tornado_status_commit_batch_size_count":
                        batches += sample.value
                    case "tornado_status_commit_duration_seconds_sum":
                        commit_s += sample.value
                    case "tornado_status_datagrams_sent_total" if sample.labels[
                        "target"
                    ].startswith("multicast"):
                        datagrams += sample.value
    return Counted(check_ins, batches, commit_s, datagrams)


def _metrics(port: int) -> str:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise BenchmarkError(f"the metrics of a server cannot be read: {error}") from error
    finally:
        connection.close()
