"""Events written straight into the log."""

from __future__ import annotations

from tests.support.harness import Server


def fill(server: Server, count: int) -> int:
    """Write events as another server would that rings no bell; return the head."""
    ((head,),) = server.rows(
        "WITH h AS (UPDATE head SET seq = seq + %s, at = now() RETURNING seq), l AS ("
        "INSERT INTO check_in (seq, at, event, email, client_ip, client_port)"
        " SELECT h.seq - %s + n, now(), 'check-in', 'user' || n || '@example.com', '10.0.0.1', 5"
        " FROM h, generate_series(1, %s) n) SELECT seq FROM h",
        count,
        count,
        count,
    )
    return int(head)
