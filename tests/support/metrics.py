"""One value of the metrics of a running server."""

from __future__ import annotations

import re

from tests.support.harness import Server


def metric(server: Server, name: str) -> float:
    found = re.search(
        rf"^tornado_status_{re.escape(name)} (\S+)$",
        server.management("/metrics").body.decode(),
        re.MULTILINE,
    )
    return float(found[1]) if found else 0.0


def refused(server: Server, reason: str) -> float:
    """Return how many connections the server refused for a reason."""
    return metric(server, f'connections_refused_total{{reason="{reason}"}}')
