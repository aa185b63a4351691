"""How a check-in is kept: group commit, queries, migrations, the embedded PostgreSQL.

The only SQL of the project is in this package, and no driver's exception leaves it.
"""

from tornado_status.store.store import Store

__all__ = ["Store"]
