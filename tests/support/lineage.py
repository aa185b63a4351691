"""A log that goes on from another, made in the database as a failover leaves it."""

from __future__ import annotations

from tests.support.harness import Server

_CUT = """\
DELETE FROM check_in WHERE seq > {fork};
UPDATE user_status u SET seq = c.seq, last_seen = c.at, client_port = c.client_port
FROM (SELECT DISTINCT ON (email) * FROM check_in ORDER BY email, seq DESC) c
WHERE c.email = u.email AND u.seq > {fork};
DELETE FROM user_status WHERE seq > {fork};
UPDATE head SET seq = {fork}
"""
_STEP = """\
WITH step AS (
    INSERT INTO log_step (log_id, parent, fork, at)
    SELECT gen_random_uuid(), log_id, seq, clock_timestamp() FROM head RETURNING log_id
)
UPDATE head SET log_id = step.log_id FROM step RETURNING head.log_id::text
"""


def begin_log(server: Server, fork: int | None = None) -> str:
    """Let another log go on from the head, or lose what is behind the number `fork` first.

    Return the new log id.
    """
    cut = "" if fork is None else f"{_CUT.format(fork=fork)};"
    [(log_id,)] = server.rows(cut + _STEP)
    return str(log_id)
