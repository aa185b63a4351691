"""Events written straight into the log."""

from __future__ import annotations

from tests.support.harness import Server


def fill(server: Server, count: int, name: str = "user") -> int:
    """Write events as another server would that rings no bell; return the head.

    The addresses begin with `name`, and a number follows.
    """
    ((head,),) = server.rows(
        "WITH h AS (UPDATE head SET seq = seq + %s, at = now() RETURNING seq), l AS ("
        "INSERT INTO check_in (seq, at, event, email, client_ip, client_port)"
        " SELECT h.seq - %s + n, now(), 'check-in', %s || n || '@example.com', '10.0.0.1', 5"
        " FROM h, generate_series(1, %s) n) SELECT seq FROM h",
        count,
        count,
        name,
        count,
    )
    return int(head)


def fill_history(server: Server, email: str, count: int) -> None:
    """Check in once as the user, and write so many events more into the user's history."""
    assert server.request("POST", "/api/client").status == 204
    server.rows(
        "WITH p AS (SELECT %s::bigint AS count, %s AS email),"
        " h AS (UPDATE head SET seq = seq + count FROM p RETURNING seq - count AS seq),"
        " u AS (UPDATE user_status u SET seq = h.seq + count FROM h, p WHERE u.email = p.email)"
        " INSERT INTO check_in (seq, at, event, email, client_ip, client_port, issuer, serial,"
        " previous) SELECT h.seq + n, now(), 'check-in', email, '10.0.0.1', 5,"
        " 'CN=Example Device CA,O=Example', '0123456789abcdef0123456789abcdef', h.seq + n - 1"
        " FROM h, p, generate_series(1, count) n",
        count,
        email,
    )
