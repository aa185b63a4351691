"""`tornado-status alerts test`: send a test message to an alert's receiver."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from tornado_status.commands import EXIT_FAILED
from tornado_status.config import loader
from tornado_status.errors import ConfigError
from tornado_status.runtime.printable import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["test"], help="send one message of type test")
    parser.add_argument("name", help="the alert's name in the configuration")


def run(options: argparse.Namespace) -> int:
    """Send a test message to an alert's receiver, in the form of an event's message."""
    settings = loader.load(options.config, os.environ)
    from tornado_status.alerts import NotDelivered, load_senders
    from tornado_status.pki.tls_contexts import webhook_contexts

    chosen = [alert for alert in settings.alerts if alert.name == options.name]
    if not chosen:
        names = ", ".join(alert.name for alert in settings.alerts) or "there is none"
        raise ConfigError(f"alerts: no alert is named {options.name!a} ({names})")
    [sender] = load_senders(chosen, webhook_contexts(chosen))
    try:
        status = asyncio.run(sender.send_test())
    except NotDelivered as error:
        print(f"tornado-status: not delivered: {printable(str(error))}", file=sys.stderr)
        return EXIT_FAILED
    print(f"Delivered: {sender.webhook.where} answered {status}")
    return 0
