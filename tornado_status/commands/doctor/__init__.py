"""`tornado-status doctor`: find what is wrong with this setup, and say what to do about it."""

from __future__ import annotations

import argparse
import os

from tornado_status.commands import EXIT_FAILED
from tornado_status.config.settings import LoggingSettings


def run(options: argparse.Namespace) -> int:
    """Check the setup and say what is wrong with it; exit with status 1 if something is."""
    from tornado_status.commands.doctor import report
    from tornado_status.observe import logging_setup

    logging_setup.configure(LoggingSettings(level="error"))
    findings = report.examine(options.config, os.environ)
    print(report.text(findings), end="")
    return EXIT_FAILED if any(finding.level == "problem" for finding in findings) else 0
