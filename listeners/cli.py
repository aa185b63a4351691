"""The command line: write updates to stdout, and everything else to stderr."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import importlib.util
import math
import os
import select
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, NoReturn

from listeners.board.roster import INTERVAL_S, MISSED, Roster
from listeners.events import Gap
from listeners.listener import (
    GROUP,
    INTERFACE,
    PORT,
    Listener,
    ListenerCounts,
    ListenerSettings,
)
from listeners.output import Format, render
from listeners.receive.sockets import WILDCARD
from listeners.verify.unverified import Encoding
from listeners.verify.verifier import MAX_SKEW_S
from tornado_status import __version__
from tornado_status.errors import ConfigError
from tornado_status.wire.datagram import MAX_SEQ
from tornado_status.wire.nats_broker import (
    SUBJECT,
    Broker,
    check_credentials,
    check_subject,
    parse_addresses,
)

if TYPE_CHECKING:
    from listeners.board.app import BoardApp

PROGRAM = "status-listener"

# The files that certs_gen makes, and the address of the shipped server.
URL = "https://localhost:8443"
CERTIFICATE = "certs/operator.crt"
PRIVATE_KEY = "certs/operator.key"
CA = "certs/ca.crt"
ANNOUNCER = "certs/announcer.crt"

EXIT_ENDED = 0
EXIT_FAILED = 1
EXIT_USAGE = 2

COMMAND_END_S = 30.0  # how long a command may take to end once its input is closed

_EPILOG = f"""\
exit status:
  0  ended by a signal, by its reader, by --count, or by --timeout without --count
  1  --timeout was over before --count updates were shown, or stdout took no more
  2  a wrong option, or a file, port, address, group or interface that cannot be used, or no
     terminal for --board

An update is shown once it is verified: signed by an announcer whose certificate is known from
--announcer, or from the server at --url, which also repairs what was missed. By default both are
used if {ANNOUNCER} and {CERTIFICATE} exist; an explicit --url wins over the former.

A listener on the wildcard address receives broadcasts and groups alike, and shows an update that
arrives as both once. On Linux, a listener on a broadcast address or on a group's own address
receives only that one.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Listen until a signal, a bound or the reader ends it. Returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        with _signals_call(_interrupt):
            return _listen(options)
    except KeyboardInterrupt:
        return EXIT_ENDED


def _listen(options: argparse.Namespace) -> int:
    console = _Console()
    try:
        if options.board:
            _check_board(options)
        settings = _settings(options)
        session = _Session(settings, console, options)
    except ConfigError as error:
        console.say(f"{PROGRAM}: {error}")
        return EXIT_USAGE
    try:
        status = asyncio.run(session.run())
    except ConfigError as error:
        console.say(f"{PROGRAM}: {error}")
        return EXIT_USAGE
    finally:
        command = console.close_command()
    if command and status == EXIT_ENDED:
        session.failure = f"the command of --exec ended with status {command}"
        status = EXIT_FAILED
    if session.failure:
        console.say(f"{PROGRAM}: {session.failure}")
    console.say(session.summary())
    return status


def _settings(options: argparse.Namespace) -> ListenerSettings:
    groups = [GROUP] if options.group is None else [group for group in options.group if group]
    ca = Path(options.ca)
    encoding = Encoding(options.encoding)
    broker = _broker(options)
    if encoding is Encoding.BINARY:
        return ListenerSettings(
            address=options.address or WILDCARD,
            port=options.port or PORT,
            groups=groups,
            interfaces=options.interface or [INTERFACE],
            encoding=encoding,
        )
    if options.announcer is not None:
        announcers = [Path(name) for name in options.announcer if name]
    elif options.url is None and Path(ANNOUNCER).exists() and ca.exists():
        announcers = [Path(ANNOUNCER)]
    else:
        announcers = []
    certificate, private_key = options.cert, options.key
    if certificate is None and (options.url is not None or Path(CERTIFICATE).exists()):
        certificate = CERTIFICATE
        private_key = private_key or PRIVATE_KEY
    reads = bool(certificate)
    if not reads and options.url is not None and not announcers:
        raise ConfigError("--url: needs a reader's certificate, see --cert and --key")
    if reads and not private_key:
        raise ConfigError("--cert: needs its private key, see --key")
    return ListenerSettings(
        address=options.address or WILDCARD,
        port=options.port or PORT,
        groups=groups,
        interfaces=options.interface or [INTERFACE],
        broker=broker,
        ca=ca if reads or announcers else None,
        announcers=announcers,
        url=(options.url or URL) if reads else None,
        certificate=Path(certificate) if reads else None,
        private_key=Path(private_key) if reads else None,
        log_id=options.log,
        state=options.state,
        start=options.start or ("snapshot" if options.board and reads else "now"),
        max_skew_s=options.max_skew,
        insecure=options.insecure,
        encoding=encoding,
    )


def _broker(options: argparse.Namespace) -> Broker | None:
    if options.nats is None:
        for name in ("subject", "user", "password_file", "ca", "cert", "key"):
            if getattr(options, f"nats_{name}") is not None:
                raise ConfigError(f"--nats-{name.replace('_', '-')}: only with --nats")
        return None
    for name in ("group", "address", "port", "interface"):
        if getattr(options, name):
            raise ConfigError(
                f"--{name}: not with --nats, which receives no UDP: start another one"
            )
    if options.encoding == Encoding.BINARY.value:
        raise ConfigError("--encoding: a broker carries json, not binary")
    broker = Broker(
        addresses=options.nats,
        subject=options.nats_subject or SUBJECT,
        user=options.nats_user,
        password_file=options.nats_password_file,
        ca=options.nats_ca,
        certificate=options.nats_cert,
        private_key=options.nats_key,
    )
    try:
        check_credentials(broker)
    except ValueError as error:
        text = str(error).replace("certificate", "cert").replace("private_key", "key")
        raise ConfigError(f"--nats-{text.replace('password_file', 'password-file')}") from error
    return broker


def _check_board(options: argparse.Namespace) -> None:
    """Raise `ConfigError` if the board cannot be shown."""
    for name in ("exec", "count", "format", "state"):
        if getattr(options, name) is not None:
            raise ConfigError(f"--board: not together with --{name}")
    if options.offline_after is not None and options.offline_after < options.interval:
        raise ConfigError("--offline-after: expected at least one --interval")
    files = {"stdin": sys.stdin, "stdout": sys.stdout, "stderr": sys.stderr}
    for name, file in files.items():
        if file is None or not file.isatty():
            raise ConfigError(f"--board: needs a terminal, and {name} is none")
    if os.environ.get("TERM") == "dumb":
        raise ConfigError("--board: needs a terminal that can more than TERM=dumb")
    if importlib.util.find_spec("textual") is None:
        raise ConfigError("--board: needs the package textual: pip install 'tornado-status[board]'")


# -------------------------------------------------------------------------------------- one session


class _Session:
    """One run, from the settings to the exit status. `failure` says why that is not 0."""

    def __init__(
        self, settings: ListenerSettings, console: _Console, options: argparse.Namespace
    ) -> None:
        self.failure: str | None = None
        self.shown = 0
        self._console = console
        self._form = Format.JSON if options.exec else Format(options.format or Format.TEXT)
        self._command = options.exec
        self._marks = settings.encoding is not Encoding.BINARY
        self._count: int | None = options.count
        self._timeout_s: float | None = options.timeout
        joined = ", ".join(settings.groups)
        where = f", groups {joined} on {', '.join(settings.interfaces)}" if joined else ""
        self._greeting = f"Listening on {settings.address} port {settings.port}{where}"
        if settings.broker is not None:
            self._greeting = f"Listening on {settings.broker}, subject {settings.broker.subject}"
        self._board: BoardApp | None = None
        self._roster: Roster | None = None
        if options.board:
            self._roster = Roster(
                options.interval,
                options.offline_after or MISSED * options.interval,
                repairs=settings.url is not None,
            )
        self._listener = Listener(settings, warn=self._say_warning)

    async def run(self) -> int:
        """Listen until something ends it, and return the exit status."""
        self._loop = asyncio.get_running_loop()
        try:
            with _signals_call(self._on_signal), self._usr1_summarises():
                async with self._listener:
                    if self._command:
                        self._console.start_command(self._command)
                    self._console.say(self._greeting)
                    if self._roster is not None:
                        return await self._show_board(self._roster)
                    return await self._show_all()
        except _ReaderGone:
            return EXIT_ENDED
        except _NotWritten as error:
            self.failure = f"cannot write to {error}"
            return EXIT_FAILED

    async def _show_all(self) -> int:
        try:
            async with asyncio.timeout(self._timeout_s):
                async for delivery in self._listener:
                    self._console.show(render(self._form, delivery, marks=self._marks))
                    self.shown += not isinstance(delivery, Gap)
                    if self.shown == self._count:
                        break
        except TimeoutError:
            return self._out_of_time()
        return EXIT_ENDED

    async def _show_board(self, roster: Roster) -> int:
        # Imported here: its library is an extra, and takes a moment to load.
        from listeners.board.app import BoardApp

        title = self._greeting[0].lower() + self._greeting[1:]
        self._board = BoardApp(self._listener, roster, title, marks=self._marks)
        if self._timeout_s is not None:
            self._loop.call_later(self._timeout_s, self._listener.stop)
        try:
            await self._board.run_async(mouse=False)
        finally:
            board, self._board = self._board, None
            self.shown = board.shown
        if board.failure is not None:
            raise board.failure
        return board.return_code or EXIT_ENDED

    def summary(self) -> str:
        """Return the counts as one line."""
        return _summary(self._listener.counts, self.shown)

    def _on_signal(self) -> None:
        if self._console.blocked():
            # The loop is blocked in a write: only an exception ends that.
            raise _ReaderGone
        self._loop.call_soon_threadsafe(self._listener.stop)

    @contextlib.contextmanager
    def _usr1_summarises(self) -> Iterator[None]:
        number = getattr(signal, "SIGUSR1", None)
        if number is None:  # Windows
            yield
            return
        self._loop.add_signal_handler(number, lambda: self._console.say(self.summary()))
        try:
            yield
        finally:
            self._loop.remove_signal_handler(number)

    def _out_of_time(self) -> int:
        if self._count is None:
            return EXIT_ENDED
        self.failure = (
            f"{self.shown} of {self._count} updates after {self._timeout_s:g} "
            f"seconds: is the server announcing to this group and port?"
        )
        return EXIT_FAILED

    def _say_warning(self, sentence: str) -> None:
        if self._board is not None:
            self._board.warn(sentence)
            return
        # The next update will notice that the reader is gone.
        with contextlib.suppress(_ReaderGone):
            self._console.say(f"Warning: {sentence}")


def _summary(counts: ListenerCounts, shown: int) -> str:
    refused = ", ".join(f"{reason} {number}" for reason, number in sorted(counts.refused.items()))
    parts = [
        f"{shown} updates shown",
        f"{counts.duplicates} duplicates",
        f"{counts.refused.total()} refused{f' ({refused})' if refused else ''}",
        f"{counts.ignored} of the other encoding",
        f"{counts.repaired} repaired",
        f"{counts.missed} missed",
        f"lag {counts.lag}",
    ]
    if counts.dropped:
        parts.insert(3, f"{counts.dropped} dropped in a flood")
    return f"Heard {counts.datagrams} datagrams: {', '.join(parts)}."


@contextlib.contextmanager
def _signals_call(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` on SIGINT and SIGTERM, even while the loop is blocked in a write.

    `loop.add_signal_handler` would wait for the loop, and Windows lacks it.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: callback()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _interrupt() -> None:
    raise KeyboardInterrupt


# ------------------------------------------------------------------------------------------ writing


class _ReaderGone(Exception):
    """The other end of the pipe is closed, or a signal ended the wait for it."""


class _NotWritten(Exception):
    """The update could not be written, as to a full disk."""


class _Console:
    """Writes updates to stdout or a command, and all else to stderr. Flushes each at once."""

    def __init__(self) -> None:
        self._writing: IO[str] | None = None
        self._command: subprocess.Popen[str] | None = None

    def start_command(self, line: str) -> None:
        """Send updates to a command's standard input from now on. Raises `ConfigError`."""
        try:
            words = shlex.split(line)
            self._command = subprocess.Popen(words, stdin=subprocess.PIPE, text=True)  # noqa: S603 - the operator's own command, without a shell
        except (OSError, ValueError, IndexError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"--exec: {line!a} cannot be run ({reason})") from error

    def close_command(self) -> int:
        """Close the command's input and wait for its end. Returns its exit status."""
        if self._command is None:
            return 0
        if self._command.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._command.stdin.close()
        try:
            return self._command.wait(COMMAND_END_S)
        except subprocess.TimeoutExpired:
            self._command.terminate()
            return self._command.wait()

    def blocked(self) -> bool:
        """Return whether a write is under way that waits for its reader."""
        if self._writing is None:
            return False
        if sys.platform == "win32":  # select only takes sockets there: assume that it is
            return True
        return not select.select([], [self._writing], [], 0)[1]

    def show(self, text: str) -> None:
        """Write an update. Raises `_ReaderGone`, or `_NotWritten` as for a full disk."""
        output = sys.stdout if self._command is None else self._command.stdin
        try:
            self._write(output, text)
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EINVAL):  # EINVAL: a closed pipe on Windows
                raise _ReaderGone from error
            where = "stdout" if self._command is None else "the command of --exec"
            raise _NotWritten(f"{where}: {error.strerror}") from error

    def say(self, sentence: str) -> None:
        """Write a line to stderr, if it is open. Raises `_ReaderGone`."""
        if sys.stderr is not None:
            with contextlib.suppress(OSError):
                self._write(sys.stderr, f"{sentence}\n")

    def _write(self, output: IO[str] | None, text: str) -> None:
        if output is None:  # closed before we started
            raise _ReaderGone
        self._writing = output
        try:
            output.write(text)
            output.flush()
        except BaseException:
            # The interpreter would fail, or wait, again when it flushes the rest at exit.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, output.fileno())
            os.close(null)
            raise
        finally:
            self._writing = None


# ------------------------------------------------------------------------------------------ options


class _ListenerParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _ListenerParser(
        prog=PROGRAM,
        description="Show the updates that a status server announces on the network.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_receiving(parser.add_argument_group("receiving"))
    _add_broker(parser.add_argument_group("receiving from a broker"))
    _add_trust(parser.add_argument_group("trust and repair"))
    _add_showing(parser.add_argument_group("showing"))
    return parser


def _add_receiving(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--group",
        action="append",
        metavar="ADDRESS",
        help="multicast group to join, IPv4 or IPv6; may be repeated; '' joins none "
        f"(default: {GROUP})",
    )
    group.add_argument(
        "--address", default="", help=f"local address to bind (default: all, {WILDCARD})"
    )
    group.add_argument(
        "--port", type=_port, metavar="PORT", help=f"UDP port to bind (default: {PORT})"
    )
    group.add_argument(
        "--interface",
        action="append",
        metavar="ADDRESS|NAME",
        help="interface to join the groups on: an address of this machine, or on Linux a name; "
        f"may be repeated (default: {INTERFACE})",
    )


def _add_broker(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--nats",
        type=_addresses,
        metavar="URL",
        help="subscribe to a NATS broker at nats://HOST:PORT or tls://HOST:PORT instead of UDP; "
        "several servers of a cluster with commas between",
    )
    group.add_argument(
        "--nats-subject",
        type=_subject,
        metavar="SUBJECT",
        help=f"where the server publishes (default: {SUBJECT})",
    )
    group.add_argument("--nats-user", metavar="NAME", help="user of the broker")
    group.add_argument(
        "--nats-password-file", type=Path, metavar="FILE", help="file with that user's password"
    )
    group.add_argument(
        "--nats-ca",
        type=Path,
        metavar="FILE",
        help="the CA of the broker's certificate; requires TLS (default: the system's)",
    )
    group.add_argument(
        "--nats-cert", type=Path, metavar="FILE", help="a client's certificate for the broker"
    )
    group.add_argument("--nats-key", type=Path, metavar="FILE", help="its private key")


def _add_trust(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--url",
        metavar="URL",
        help=f"server to repair from and to learn keys from (default: {URL})",
    )
    group.add_argument(
        "--cert",
        metavar="FILE",
        help=f"a reader's certificate for it; '' for none (default: {CERTIFICATE}, if it exists)",
    )
    group.add_argument(
        "--key", metavar="FILE", help=f"its private key (default: {PRIVATE_KEY} with that)"
    )
    group.add_argument(
        "--ca",
        metavar="FILE",
        default=CA,
        help="the CA of the server and of the announcers (default: %(default)s)",
    )
    group.add_argument(
        "--announcer",
        action="append",
        metavar="FILE",
        help="an announcer's certificate, intermediate CAs behind it; may be repeated; '' for none "
        f"(default: {ANNOUNCER}, if it exists and --url is not given)",
    )
    group.add_argument(
        "--log",
        type=_log_id,
        metavar="UUID",
        help="follow the log with this id and no other (default: the one that the server confirms)",
    )
    group.add_argument(
        "--max-skew",
        type=_seconds,
        default=MAX_SKEW_S,
        metavar="SECONDS",
        help="refuse a datagram whose time differs more from this clock (default: %(default)g)",
    )
    group.add_argument(
        "--insecure",
        action="store_true",
        help="also show updates that are not signed or not verified, marked as such",
    )


def _add_showing(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--from",
        dest="start",
        type=_start,
        metavar="now|start|snapshot|SEQ",
        help="where to begin: with the next update, with the oldest that the server keeps, with "
        "the records of all users, or with a number (default: now; snapshot with --board and a "
        "certificate)",
    )
    group.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="save the number of the last update there, and go on after it at the next start",
    )
    group.add_argument(
        "--encoding",
        choices=[encoding.value for encoding in Encoding],
        default=Encoding.AUTO.value,
        help="show both encodings, or only one (default: %(default)s)",
    )
    group.add_argument(
        "--format",
        choices=[form.value for form in Format],
        help="a block for each update, or a JSON object a line (default: text)",
    )
    group.add_argument(
        "--board",
        action="store_true",
        help="all users in a live table that fills the terminal: online, late, offline",
    )
    group.add_argument(
        "--interval",
        type=_seconds,
        default=INTERVAL_S,
        metavar="SECONDS",
        help="how often a client checks in; a user is late after half of that more (default: "
        "%(default)g)",
    )
    group.add_argument(
        "--offline-after",
        type=_seconds,
        metavar="SECONDS",
        help=f"a user without a check-in for so long is offline (default: {MISSED} intervals)",
    )
    group.add_argument(
        "--exec",
        metavar="COMMAND",
        help="start this once, and write updates to its standard input, a JSON object a line",
    )
    group.add_argument(
        "--count", type=_count, metavar="N", help="end after N updates shown (default: never)"
    )
    group.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="end after so long (default: never)"
    )


def _addresses(text: str) -> tuple[str, ...]:
    try:
        return parse_addresses(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _subject(text: str) -> str:
    try:
        return check_subject(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _port(text: str) -> int:
    return _whole_number(text, 1, 65535)


def _count(text: str) -> int:
    return _whole_number(text, 1, MAX_SEQ)


def _start(text: str) -> int | Literal["now", "start", "snapshot"]:
    match text:
        case "now" | "start" | "snapshot":
            return text
    try:
        return _whole_number(text, 1, MAX_SEQ)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"expected now, start, snapshot or a number: {error}"
        ) from None


def _log_id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a UUID, got {text!a}") from None


def _whole_number(text: str, low: int, high: int) -> int:
    if text.isascii() and text.isdecimal() and low <= int(text) <= high:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected {low} to {high}, got {text!a}")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if 0 < seconds < math.inf:
        return seconds
    raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!a}")
