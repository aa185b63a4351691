"""`tornado-status serve`, also without a command: run the server."""

from __future__ import annotations

import argparse
import asyncio
import os

from tornado_status import config


def run(options: argparse.Namespace) -> int:
    """Run the server until SIGTERM or Ctrl-C."""
    settings = config.load(options.config, os.environ)
    from tornado_status import server
    from tornado_status.observe import logging_setup

    logging_setup.configure(settings.logging)
    asyncio.run(server.serve(settings))
    return 0
