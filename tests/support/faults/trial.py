"""A server under load, on a database that a test breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.support.faults.judge import Listener, judge
from tests.support.faults.ledger import Load
from tests.support.harness import Postgres, Server

NAMES = ("user0", "user1", "user2", "user3", "user0_phone")


MakePostgres = Callable[..., Postgres]


@dataclass
class Trial:
    """A server under load, whoever hears it, and the database that it should all be in."""

    server: Server
    load: Load
    listener: Listener
    broadcasts: Listener

    def wait_acknowledged(self, count: int = 40) -> float:
        """Wait for more 204s; return the seconds until they were there."""
        return self.load.ledger.wait_more(204, count)

    def wait_refused(self, count: int = 4) -> float:
        """Wait for more 503s; return the seconds until they were there."""
        return self.load.ledger.wait_more(503, count)

    def verdict(self, database_url: str) -> list[str]:
        """Stop the load and let the judge look at what is left."""
        self.load.stop()
        return judge(self.load.ledger, database_url, self.listener, self.broadcasts)


StartTrial = Callable[..., Trial]
