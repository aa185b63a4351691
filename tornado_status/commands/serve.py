"""`tornado-status serve`, also without a command: run the server."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

from tornado_status.config import loader


def run(options: argparse.Namespace) -> int:
    """Run the server until SIGTERM or Ctrl-C."""
    settings = loader.load(options.config, os.environ)
    import structlog

    from tornado_status import server
    from tornado_status.observe import logging_setup
    from tornado_status.runtime import background_output

    background_output.start()
    logging_setup.configure(settings.logging)
    if options.config is None:
        structlog.get_logger().info("no config.yaml, the defaults apply", folder=str(Path.cwd()))
    asyncio.run(server.serve(settings))
    return 0
