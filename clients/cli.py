"""The command line: check in once, or as a heartbeat until a signal ends it."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from clients.check_in import METHODS, CheckInClient
from clients.heartbeat import MAX_LIMIT_S, MIN_WAIT_S, Heartbeat
from clients.https import HttpsError, Refused, SetUpError, Unreachable

PROGRAM = "status-client"
SUCCESS = "Success! (204 No Content)"

EXIT_SUCCESS = 0
EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130  # as shells report a program that SIGINT ended

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MAX_SECONDS = 7 * 24 * 3600  # a longer time is a mistake of the unit

_EPILOG = f"""\
exit status:
  0  checked in (204); with --every also: ended by SIGINT or SIGTERM
  1  refused by the server: a TLS alert, a 4xx, or an answer of something else than a check-in
  2  a wrong option, URL or file: nothing was sent
  3  not known to be recorded, try again later: not reachable, not trusted, no answer in time,
     429, 503 and other errors of the server
  130  without --every: interrupted by a signal
With --every and --count it is the exit status of the last attempt.

With --every the connection is kept. After a failure the next attempt comes after a random wait of
at most {MAX_LIMIT_S:g} seconds, or the server's Retry-After and that; the files are read again for
each new connection. Files that are wrong at the start end it with 2.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check in as the options say. Returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.count is not None and options.every is None:
        parser.error("argument --count: expected --every beside it")
    try:
        client = CheckInClient(
            options.url,
            certificate=Path(options.cert) if options.cert else None,
            private_key=Path(options.key),
            ca=Path(options.ca),
            timeout_s=options.timeout,
            method=options.method,
        )
        with _signals_interrupt(), client:
            if options.every is None:
                return _once(client)
            client.check_files()
            return _again_and_again(client, Heartbeat(options.every), options.count)
    except SetUpError as error:
        _write(sys.stderr, f"{PROGRAM}: {error}")
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED if options.every is None else EXIT_SUCCESS


def _once(client: CheckInClient) -> int:
    try:
        client.check_in()
    except (Refused, Unreachable) as error:
        _write(sys.stderr, str(error))
        return _status(error)
    _write(sys.stdout, SUCCESS)
    return EXIT_SUCCESS


def _again_and_again(client: CheckInClient, heartbeat: Heartbeat, count: int | None) -> int:
    """Check in `count` times, or until an exception from a signal handler gets out of here."""
    attempts = 0
    while True:
        started = time.monotonic()
        attempts += 1
        last = attempts == count
        try:
            client.check_in()
        except HttpsError as error:
            status = _status(error)
            wait_s = heartbeat.after_failure(getattr(error, "retry_after_s", None))
            then = "" if last else f" (next attempt in {wait_s:.1f} seconds)"
            _write(sys.stderr, f"{error}{then}")
        else:
            status = EXIT_SUCCESS
            wait_s = heartbeat.after_success(time.monotonic() - started)
            _write(sys.stdout, SUCCESS)
        if last:
            return status
        time.sleep(wait_s)


def _status(error: HttpsError) -> int:
    match error:
        case SetUpError():
            return EXIT_USAGE
        case Refused():
            return EXIT_REFUSED
        case _:
            return EXIT_UNREACHABLE


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a KeyboardInterrupt, which ends any wait."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def interrupt(*_: object) -> NoReturn:
        for number in numbers:  # a second signal must not disturb the shutdown
            signal.signal(number, signal.SIG_IGN)
        # The signal may come inside a constructor of http.client or socket. From Python 3.13 on the
        # finalizer of the half-made object then prints "Exception ignored in ..." at the end.
        sys.unraisablehook = lambda _: None
        raise KeyboardInterrupt

    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _write(output: TextIO | None, line: str) -> None:
    """Write a line and flush it. If the reader has gone, this and later lines are discarded."""
    if output is None:  # closed before we started
        return
    try:
        output.write(f"{line}\n")
        output.flush()
    except BaseException as error:
        # The rest of the buffer would fail, or wait, again at exit.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, output.fileno())
        os.close(null)
        if not isinstance(error, OSError):
            raise


class _ShowVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"{parser.prog} {_version()}")
        parser.exit()


def _version() -> str:
    # Imported here: a check-in does not need it, and it takes a moment to load.
    import importlib.metadata

    try:
        return importlib.metadata.version("tornado-status")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (tornado-status is not installed)"


class _ClientParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _ClientParser(
        prog=PROGRAM,
        description="Check in with a status server: the client certificate says who is here.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version and exit")
    parser.add_argument(
        "--url",
        default="https://localhost:8443/api/client",
        help="where to check in (default: %(default)s)",
    )
    parser.add_argument(
        "--cert",
        default="certs/client.crt",
        metavar="FILE",
        help="client certificate, PEM; '' sends none (default: %(default)s)",
    )
    parser.add_argument(
        "--key",
        default="certs/client.key",
        metavar="FILE",
        help="its private key, PEM, not encrypted (default: %(default)s)",
    )
    parser.add_argument(
        "--ca",
        default="certs/ca.crt",
        metavar="FILE",
        help="the CA that issued the server's certificate, PEM (default: %(default)s)",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default=METHODS[0],
        help="HTTP method; all three mean the same (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="bound on each wait: connection, handshake, answer; or as 90s (default: %(default)g)",
    )
    parser.add_argument(
        "--every",
        type=_rhythm,
        metavar="SECONDS",
        help="check in again and again, so often: seconds, or as 90s, 15m, 12h; at least "
        f"{MIN_WAIT_S:g} seconds (default: once)",
    )
    parser.add_argument(
        "--count",
        type=_count,
        metavar="N",
        help="with --every: end after N attempts (default: never)",
    )
    return parser


def parse_duration(text: str) -> float:
    """Return the seconds of `90`, `90s`, `15m`, `12h` or `7d`, as config.yaml has them.

    Raises `ValueError`.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smhd])", text.strip())
    return float(match[1]) * _UNITS_S[match[2]] if match else float(text)


def _seconds(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = math.nan
    if 0 < seconds <= MAX_SECONDS:
        return seconds
    raise argparse.ArgumentTypeError(
        f"expected seconds, or a duration such as 90s, 15m, 12h, above 0 and up to 7d, got {text!a}"
    )


def _rhythm(text: str) -> float:
    seconds = _seconds(text)
    if seconds < MIN_WAIT_S:
        raise argparse.ArgumentTypeError(f"expected at least {MIN_WAIT_S:g}, got {text!a}")
    return seconds


def _count(text: str) -> int:
    if text.isascii() and text.isdecimal() and 0 < int(text) < 2**63:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!a}")
