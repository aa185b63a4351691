"""The command line `tornado-status`: a table of commands. Each is a module of `commands`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tornado_status.commands import (
    EXIT_FAILED,
    EXIT_USAGE,
    alerts,
    completion,
    config_dump,
    doctor,
    init,
    serve,
    show_log,
    users,
    version,
)
from tornado_status.commands.config_option import add_config
from tornado_status.config import loader
from tornado_status.config.settings import keys_named, variable
from tornado_status.errors import ConfigError, StatusError, StoreError
from tornado_status.runtime.printable import printable


@dataclass(frozen=True, slots=True)
class Command:
    """A command: `run` returns the exit status, and its docstring is the description."""

    name: str
    help: str
    run: Callable[[argparse.Namespace], int]
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None


COMMANDS = (
    Command("serve", "run the server until SIGTERM or Ctrl-C (the default)", serve.run),
    Command("init", "write config.yaml and a systemd unit", init.run, init.add_arguments),
    Command("config", "print the settings in effect", config_dump.run, config_dump.add_arguments),
    Command("doctor", "find what is wrong and say what to do", doctor.run),
    Command(
        "completion",
        "print a completion script for a shell",
        completion.run,
        completion.add_arguments,
    ),
    Command(
        "log",
        "show the log id and the head, or begin a new log",
        show_log.run,
        show_log.add_arguments,
    ),
    Command("users", "enrol, remove, erase or list users", users.run, users.add_arguments),
    Command(
        "alerts", "send a test message to an alert's receiver", alerts.run, alerts.add_arguments
    ),
    Command("version", "print the version", version.run),
)

RUN_ANYWHERE = (completion.run, version.run)
OTHER_SYSTEM = (
    "the server runs on Linux; this system has status-client, status-listener and status-certs"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 failed, 2 usage or configuration."""
    options = make_parser().parse_args(arguments)
    options.config = loader.find_file(options.config)
    command = next(each for each in COMMANDS if each.name == (options.command or "serve"))
    try:
        if sys.platform != "linux" and command.run not in RUN_ANYWHERE:
            raise ConfigError(OTHER_SYSTEM)
        status = command.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if command.run is serve.run:
            raise
        # The reader of our output has gone. Python flushes once more at exit: that must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except StatusError as error:
        for line in str(error).splitlines():
            print(f"tornado-status: {printable(line)}", file=sys.stderr)
        return EXIT_FAILED if isinstance(error, StoreError) else EXIT_USAGE


class _Parser(argparse.ArgumentParser):
    """Names the setting that an unknown option is meant for: `--port` is server.port."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See `ArgumentParser.parse_known_args`."""
        self._given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """See `ArgumentParser.error`."""
        known = set(_options(self))
        for given, following in zip(self._given, [*self._given[1:], ""], strict=True):
            name, has_value, value = given.partition("=")
            if not name.startswith("--") or any(each.startswith(name) for each in known):
                continue
            if keys := keys_named(name[2:]):
                value = value if has_value else following
                message = f"{name} is no option: set {_ways(keys, value)}"
                break
        super().error(message)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _options(inner)


def _ways(keys: Sequence[str], value: str) -> str:
    value = value if value and not value.startswith("-") else "..."
    ways = (
        f"{key} in config.yaml, or the environment variable {variable(key)}={value}" for key in keys
    )
    return "; or ".join(ways)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. `--config` may stand before or after the command."""
    parser = _Parser(
        prog="tornado-status",
        description="A check-in service: a client certificate is the identity.",
    )
    parser.add_argument(
        "--version", action="version", version=version.TEXT, help="print the version"
    )
    add_config(parser, None)
    parser.set_defaults(parser=parser)
    words = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS:
        word = words.add_parser(command.name, help=command.help, description=command.run.__doc__)
        add_config(word)
        if command.add_arguments is not None:
            command.add_arguments(word)
    return parser
