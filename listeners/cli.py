"""The command line: hear updates, write them to stdout, and say everything else on stderr."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import math
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TextIO

from listeners.complaints import Complaints
from listeners.output import Format, Source, render
from listeners.receiver import Encoding, Receiver
from listeners.sockets import WILDCARD, open_socket
from tornado_status.errors import ConfigError, DatagramError

PROGRAM = "status-listener"

# What the shipped config.yaml announces.
GROUP = "239.255.66.66"
PORT = 6667
INTERFACE = "127.0.0.1"

EXIT_ENDED = 0
EXIT_FAILED = 1
EXIT_USAGE = 2

_EPILOG = """\
exit status:
  0  ended by a signal, by its reader, by --count, or by --timeout where there is no --count
  1  --timeout was over before --count updates were shown, or stdout took no more
  2  a wrong option, or a port, address, group or interface that cannot be used

A listener on the wildcard address hears broadcasts and groups alike, and shows what arrives as
both once. On Linux, one on a broadcast address or on a group's own address hears only that one.
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
    groups = [GROUP] if options.group is None else [group for group in options.group if group]
    address = options.address or WILDCARD
    try:
        sock = open_socket(address, options.port, groups, options.interface)
    except ConfigError as error:
        console.say(f"{PROGRAM}: {error}")
        return EXIT_USAGE
    session = _Session(
        Receiver(Encoding(options.encoding)),
        console,
        Format(options.format),
        options.count,
        options.timeout,
    )
    joined = f", groups {', '.join(groups)} on {options.interface}" if groups else ""
    with sock:
        status = asyncio.run(
            session.run(sock, f"Listening on {address} port {options.port}{joined}")
        )
    if session.failure:
        console.say(f"{PROGRAM}: {session.failure}")
    counts = session.receiver.counts
    console.say(
        f"Heard {counts.datagrams} datagrams: {counts.shown} updates shown, "
        f"{counts.duplicates} duplicates, {counts.malformed} malformed, "
        f"{counts.ignored} of the other encoding."
    )
    return status


# ------------------------------------------------------------------------------------------ hearing


class _Session(asyncio.DatagramProtocol):
    """One run: from the open socket to the exit status, and in `failure` why that is not 0.

    On asyncio rather than a select loop, because its datagram endpoint is the one non-blocking
    receive that Windows' proactor has too, and what comes next (repair over HTTPS) waits as well.
    """

    def __init__(
        self,
        receiver: Receiver,
        console: _Console,
        form: Format,
        count: int | None,
        timeout_s: float | None,
    ) -> None:
        self.receiver = receiver
        self.failure: str | None = None
        self._console = console
        self._form = form
        self._count = count
        self._timeout_s = timeout_s
        self._complaints = Complaints()

    async def run(self, sock: socket.socket, greeting: str) -> int:
        """Receive on `sock` until something ends it, and return the exit status."""
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        with _signals_call(self._on_signal):
            transport, _ = await self._loop.create_datagram_endpoint(lambda: self, sock=sock)
            try:
                self._console.say(greeting)
                async with asyncio.timeout(self._timeout_s):
                    return await self._ended
            except TimeoutError:
                return self._out_of_time()
            except _ReaderGone:
                return EXIT_ENDED
            finally:
                transport.close()

    def datagram_received(self, payload: bytes, source: Source) -> None:
        if self._ended.done():
            return
        try:
            self._show(payload, source)
        except DatagramError as error:
            self._complain(f"a datagram from {source[0]}", error.reason, str(error))
        except _ReaderGone:
            self._end(EXIT_ENDED)
        except OSError as error:
            self.failure = f"cannot write to stdout: {error.strerror}"
            self._end(EXIT_FAILED)

    def error_received(self, error: Exception) -> None:
        # The endpoint goes on: the error belongs to one datagram.
        self._complain("a datagram", "receive", str(error))

    def _show(self, payload: bytes, source: Source) -> None:
        counts = self.receiver.counts
        for update in self.receiver.receive(payload):
            self._console.show(render(self._form, update, source))
            counts.shown += 1
            if counts.shown == self._count:
                self._end(EXIT_ENDED)
                return

    def _on_signal(self) -> None:
        if self._console.stuck():
            # The loop stands still until somebody reads: only an exception gets out of that.
            raise _ReaderGone
        self._loop.call_soon_threadsafe(self._end, EXIT_ENDED)

    def _end(self, status: int) -> None:
        if not self._ended.done():
            self._ended.set_result(status)

    def _out_of_time(self) -> int:
        if self._count is None:
            return EXIT_ENDED
        self.failure = (
            f"{self.receiver.counts.shown} of {self._count} updates after {self._timeout_s:g} "
            f"seconds: is the server announcing to this group and port?"
        )
        return EXIT_FAILED

    def _complain(self, subject: str, reason: str, sentence: str) -> None:
        withheld = self._complaints.admit((subject, reason), self._loop.time())
        if withheld is None:
            return
        more = f" ({withheld} more like it before)" if withheld else ""
        try:
            self._console.say(f"Warning: dropped {subject}: {sentence}{more}")
        except _ReaderGone:
            self._end(EXIT_ENDED)


@contextlib.contextmanager
def _signals_call(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` on SIGINT and SIGTERM, even while the loop is stuck in a write.

    That is why it is not `loop.add_signal_handler`, which Windows lacks too.
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
    """Nobody reads any more: the other end is closed, or a signal ended the wait for it."""


class _Console:
    """Updates to stdout, everything else to stderr; each flushed at once."""

    def __init__(self) -> None:
        self._writing: TextIO | None = None

    def stuck(self) -> bool:
        """Whether a write is under way that waits for its reader."""
        if self._writing is None:
            return False
        if sys.platform == "win32":  # where select knows only sockets: it may be
            return True
        return not select.select([], [self._writing], [], 0)[1]

    def show(self, text: str) -> None:
        """Write to stdout. Raises `_ReaderGone`, or `OSError` for a full disk and the like."""
        try:
            self._write(sys.stdout, text)
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EINVAL):  # EINVAL: a closed pipe on Windows
                raise _ReaderGone from error
            raise

    def say(self, sentence: str) -> None:
        """Write a line to stderr; where it is closed, to nobody. Raises `_ReaderGone`."""
        if sys.stderr is not None:
            with contextlib.suppress(OSError):
                self._write(sys.stderr, f"{sentence}\n")

    def _write(self, stream: TextIO | None, text: str) -> None:
        if stream is None:  # closed before we started
            raise _ReaderGone
        self._writing = stream
        try:
            stream.write(text)
            stream.flush()
        except BaseException:
            # The rest would fail, or wait, once more when the interpreter flushes it at exit.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
            raise
        finally:
            self._writing = None


# ------------------------------------------------------------------------------------------ options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Show the updates that a status server announces on the network.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--group",
        action="append",
        metavar="ADDRESS",
        help=f"multicast group to join; may be repeated; '' joins none (default: {GROUP})",
    )
    parser.add_argument(
        "--address", default="", help=f"local address to bind (default: all, {WILDCARD})"
    )
    parser.add_argument(
        "--port", type=_port, default=PORT, help="UDP port to bind (default: %(default)s)"
    )
    parser.add_argument(
        "--interface",
        default=INTERFACE,
        metavar="ADDRESS|NAME",
        help="interface to join the groups on: an address of this machine, or on Linux a name "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--encoding",
        choices=[encoding.value for encoding in Encoding],
        default=Encoding.AUTO.value,
        help="show both encodings, or only one (default: %(default)s)",
    )
    parser.add_argument(
        "--format",
        choices=[form.value for form in Format],
        default=Format.TEXT.value,
        help="a block for each update, or a JSON object a line (default: %(default)s)",
    )
    parser.add_argument(
        "--count", type=_count, metavar="N", help="end after N updates shown (default: never)"
    )
    parser.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="end after so long (default: never)"
    )
    return parser


def _port(text: str) -> int:
    return _whole_number(text, 1, 65535)


def _count(text: str) -> int:
    return _whole_number(text, 1, 2**63 - 1)


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
