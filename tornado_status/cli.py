"""The command line: `python -m tornado_status`, also installed as `tornado-status`.

A table of commands; what a command does is in a module of its own, imported only when it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tornado_status import __version__, config
from tornado_status.errors import ConfigError, StatusError, StoreError
from tornado_status.model.presence import State

EXIT_FAILED = 1
EXIT_USAGE = 2


@dataclass(frozen=True, slots=True)
class Command:
    """A word of the command line: `add` declares its arguments, `run` returns the exit status."""

    name: str
    help: str
    run: Callable[[argparse.Namespace], int]
    add: Callable[[argparse.ArgumentParser], None] | None = None


def serve(options: argparse.Namespace) -> int:
    """Run the server until SIGTERM or Ctrl-C."""
    settings = config.load(options.config, os.environ)
    # Imported here, so that a wrong setting is told at once.
    from tornado_status import server
    from tornado_status.observe import logging_setup

    logging_setup.configure(settings.logging)
    asyncio.run(server.serve(settings))
    return 0


def show_config(options: argparse.Namespace) -> int:
    """Print the settings in effect and where each comes from, without secrets."""
    settings = config.load(options.config, os.environ)
    from tornado_status.commands import config_dump

    format_of = config_dump.as_json if options.format == "json" else config_dump.as_yaml
    print(format_of(settings, config.origins(options.config, os.environ)), end="")
    return 0


def _add_show_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=("yaml", "json"), default="yaml", help="default: yaml, as in the file"
    )


def examine(options: argparse.Namespace) -> int:
    """Look for what is wrong with the setup; exit 1 where something is."""
    from tornado_status.commands import doctor
    from tornado_status.observe import logging_setup

    logging_setup.configure(config.LoggingSettings(level="error"))
    findings = doctor.examine(options.config, os.environ)
    print(doctor.text(findings), end="")
    return EXIT_FAILED if any(finding.level == "problem" for finding in findings) else 0


def complete(options: argparse.Namespace) -> int:
    """Print a completion script.

    In bash: `source <(tornado-status completion bash)`; in zsh, behind compinit:
    `eval "$(tornado-status completion zsh)"`. See docs/operation.md.
    """
    from tornado_status.commands import completion

    print(completion.script(make_parser(), options.shell))
    return 0


def _add_complete(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell to complete in")


def log(options: argparse.Namespace) -> int:
    """Show the log: its id, its head and when that was written; or begin a new log.

    A new log is needed after a restore that the server cannot notice: a copy of its data directory
    put back, or a dump played back into the same PostgreSQL. Listeners then fetch everybody's
    status, instead of taking numbers that are handed out again for those they know.
    """
    settings = config.load(options.config, os.environ)
    from tornado_status.model.records import timestamp
    from tornado_status.observe import logging_setup
    from tornado_status.store import log_id

    logging_setup.configure(settings.logging)
    work = log_id.renew if options.action == "new" else log_id.show
    try:
        state = asyncio.run(work(settings.database))
    except StoreError as error:
        print(f"tornado-status: {error}", file=sys.stderr)
        return EXIT_FAILED
    print(f"log {state.log_id}\nhead {state.head}\nat {timestamp(state.at)}")
    return 0


def _add_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("show", "new"),
        nargs="?",
        default="show",
        help="show it with its head (the default), or begin a new one",
    )


def users(options: argparse.Namespace) -> int:
    """Enrol, remove, erase or list people, in the database itself, whether a server runs or not.

    A running server announces what is written. `erase` removes somebody and blanks the e-mail, the
    addresses and the certificates in the log, which keeps its numbers. See docs/people.md.
    """
    settings = config.load(options.config, os.environ)
    from tornado_status.commands import users as people
    from tornado_status.observe import logging_setup

    logging_setup.configure(settings.logging)
    try:
        if options.action != "list":
            named = people.emails(options.emails, sys.stdin)
            work = {"add": people.add, "remove": people.remove, "erase": people.erase}
            missing = asyncio.run(work[options.action](settings, named, print))
            return EXIT_FAILED if missing and options.action != "add" else 0
        if options.watch:
            if not sys.stdout.isatty() or options.json:
                raise ConfigError("--watch draws on a terminal; programs follow /api/stream")
            asyncio.run(people.watch(settings, options.state))
        asyncio.run(people.show(settings, options.state, options.json, print))
    except StoreError as error:
        print(f"tornado-status: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        if options.action == "list":
            return 0  # the only way to end --watch
        raise
    return 0


def _add_users(parser: argparse.ArgumentParser) -> None:
    words = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, what in {
        "add": "enrol people; who is there already stays",
        "remove": "remove people with their records",
        "erase": "the same, and blank them in the log: their e-mail, addresses and certificates",
    }.items():
        word = words.add_parser(name, help=what, description=what)
        word.add_argument(
            "emails", nargs="+", metavar="EMAIL", help="an e-mail; -: one a line from the input"
        )
        _add_config(word, argparse.SUPPRESS)
    word = words.add_parser("list", help="show everybody", description="Show everybody.")
    word.add_argument(
        "--state", choices=[state.value for state in State], help="only who is in this state"
    )
    word.add_argument("--json", action="store_true", help="a JSON object a line, as of the API")
    word.add_argument("--watch", action="store_true", help="redraw every second, until Ctrl-C")
    _add_config(word, argparse.SUPPRESS)


def alerts(options: argparse.Namespace) -> int:
    """Send a test message to an alert's receiver, as an event would be sent."""
    settings = config.load(options.config, os.environ)
    from tornado_status.alerts import NotDelivered, load_senders

    chosen = [alert for alert in settings.alerts if alert.name == options.name]
    if not chosen:
        names = ", ".join(alert.name for alert in settings.alerts) or "there is none"
        raise ConfigError(f"alerts: no alert is named {options.name!a} ({names})")
    [sender] = load_senders(chosen)
    try:
        status = asyncio.run(sender.test())
    except NotDelivered as error:
        print(f"tornado-status: not delivered: {error}", file=sys.stderr)
        return EXIT_FAILED
    print(f"Delivered: {sender.webhook.where} answered {status}")
    return 0


def _add_alerts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["test"], help="send one message of type test")
    parser.add_argument("name", help="the alert's name in the configuration")


def version(options: argparse.Namespace) -> int:
    """Print the version."""
    print(f"tornado_status {__version__}")
    return 0


COMMANDS = (
    Command("serve", "run the server until SIGTERM or Ctrl-C (the default)", serve),
    Command("config", "print the settings in effect", show_config, _add_show_config),
    Command("doctor", "look for what is wrong and say what to do", examine),
    Command("completion", "print a completion script for a shell", complete, _add_complete),
    Command("log", "show the log id and the head, or begin a new log", log, _add_log),
    Command("users", "enrol, remove, erase or list people", users, _add_users),
    Command("alerts", "send a test message to an alert's receiver", alerts, _add_alerts),
    Command("version", "print the version", version),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 failed, 2 usage or configuration."""
    options = make_parser().parse_args(arguments)
    command = next(each for each in COMMANDS if each.name == (options.command or "serve"))
    try:
        status = command.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if command.run is serve:
            raise
        # Whoever reads has seen enough; nothing more must be written at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except StatusError as error:
        print(f"tornado-status: {error}", file=sys.stderr)
        return EXIT_USAGE


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. `--config` may stand before or behind the command."""
    parser = argparse.ArgumentParser(
        prog="tornado-status",
        description="A check-in service: a client certificate is the identity.",
    )
    _add_config(parser, Path("config.yaml"))
    words = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS:
        word = words.add_parser(command.name, help=command.help, description=command.run.__doc__)
        # Suppressed, or the default would undo what stood before the command.
        _add_config(word, argparse.SUPPRESS)
        if command.add is not None:
            command.add(word)
    return parser


def _add_config(parser: argparse.ArgumentParser, default: object) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        default=default,
        metavar="FILE",
        help="settings; relative paths in it are relative to it (default: config.yaml)",
    )
