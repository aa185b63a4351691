"""`tornado-status users`: enrol, remove, erase and list users, in the database itself.

It works whether a server runs or not. Its changes are events of the log, and a running server
announces them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from tornado_status.commands import EXIT_FAILED
from tornado_status.commands.config_option import add_config
from tornado_status.config import loader
from tornado_status.model.presence import State


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, what in {
        "add": "enrol users; keep those that exist",
        "remove": "remove users with their records",
        "erase": "remove, and blank their e-mail, addresses and certificates in the log",
    }.items():
        action = actions.add_parser(name, help=what, description=what)
        action.add_argument(
            "emails",
            nargs="+",
            metavar="EMAIL",
            help="an e-mail address; -: read them from standard input, one a line",
        )
        add_config(action)
    action = actions.add_parser("list", help="list all users", description="List all users.")
    action.add_argument(
        "--state", choices=[state.value for state in State], help="only users in this state"
    )
    action.add_argument(
        "--json", action="store_true", help="print a JSON object a line, as in the API"
    )
    add_config(action)


def run(options: argparse.Namespace) -> int:
    """Enrol, remove, erase or list users, in the database itself, whether a server runs or not.

    A running server announces the changes. `erase` removes users and blanks their e-mail,
    addresses and certificates in the log, which keeps its sequence numbers. See docs/people.md.
    """
    settings = loader.load(options.config, os.environ)
    from tornado_status.commands.users import changes, listing
    from tornado_status.observe import logging_setup

    logging_setup.configure(settings.logging)
    if options.action == "list":
        asyncio.run(listing.show(settings, options.state, options.json, print))
        return 0
    emails = changes.emails(options.emails, sys.stdin)
    change = {"add": changes.add, "remove": changes.remove, "erase": changes.erase}[options.action]
    unchanged = asyncio.run(change(settings, emails, print))
    return EXIT_FAILED if unchanged and options.action != "add" else 0
