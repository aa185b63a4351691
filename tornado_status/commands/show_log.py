"""`tornado-status log`: show the log id and the head, or begin a new log."""

from __future__ import annotations

import argparse
import asyncio
import os

from tornado_status.config import loader


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("show", "new"),
        nargs="?",
        default="show",
        help="show it with its head (the default), or begin a new one",
    )


def run(options: argparse.Namespace) -> int:
    """Show the log: its id, its head and when that was written; or begin a new log.

    Begin a new log after a restore that the server cannot notice. That is a copy of its data
    directory, or a dump that went back into the same PostgreSQL. Listeners then fetch the status of
    all users, instead of taking reused sequence numbers for events that they know.

    A new log also sets times that are ahead of the database's clock to the present.
    """
    settings = loader.load(options.config, os.environ)
    from tornado_status.model.records import timestamp
    from tornado_status.observe import logging_setup
    from tornado_status.store import log_id

    logging_setup.configure(settings.logging)
    work = log_id.renew if options.action == "new" else log_id.show
    state = asyncio.run(work(settings.database))
    print(f"log {state.log_id}\nhead {state.head}\nat {timestamp(state.at)}")
    return 0
