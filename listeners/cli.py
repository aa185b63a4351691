"""The command line: write updates to stdout, and everything else to stderr."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from listeners.board.roster import Roster
from listeners.console import Console, NotWritten, ReaderGone
from listeners.events import Gap, Rollback
from listeners.listener import (
    Listener,
    ListenerCounts,
    ListenerSettings,
)
from listeners.options import EXIT_USAGE, PROGRAM, check_board, listener_settings, make_parser
from listeners.output import Format, render
from listeners.verify.unverified import Encoding
from tornado_status.errors import ConfigError
from tornado_status.runtime.printable import printable

if TYPE_CHECKING:
    from listeners.board.app import BoardApp


EXIT_ENDED = 0
EXIT_FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Listen until a signal, a bound or the reader ends it. Returns the exit status."""
    options = make_parser().parse_args(arguments)
    try:
        with _signals_call(_interrupt):
            return _listen(options)
    except KeyboardInterrupt:
        return EXIT_ENDED


def _listen(options: argparse.Namespace) -> int:
    console = Console()
    try:
        if options.board:
            check_board(options)
        settings = listener_settings(options)
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


class _Session:
    """One run, from the settings to the exit status. `failure` says why that is not 0."""

    def __init__(
        self, settings: ListenerSettings, console: Console, options: argparse.Namespace
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
            self._roster = Roster(repairs=bool(settings.urls))
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
        except ReaderGone:
            return EXIT_ENDED
        except NotWritten as error:
            self.failure = f"cannot write to {error}"
            return EXIT_FAILED

    async def _show_all(self) -> int:
        try:
            async with asyncio.timeout(self._timeout_s):
                async for delivery in self._listener:
                    self._console.show(render(self._form, delivery, marks=self._marks))
                    self.shown += not isinstance(delivery, Gap | Rollback)
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
            raise ReaderGone
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
            self._board.warn(printable(sentence))
            return
        # The next update will notice that the reader is gone.
        with contextlib.suppress(ReaderGone):
            self._console.say(f"Warning: {sentence}")


def _summary(counts: ListenerCounts, shown: int) -> str:
    refused = ", ".join(f"{reason} {number}" for reason, number in sorted(counts.refused.items()))
    parts = [
        f"{shown} updates shown",
        f"{counts.duplicates} duplicates",
        f"{counts.refused.total()} refused{f' ({refused})' if refused else ''}",
        f"{counts.ignored} of the other encoding",
        f"{counts.healed} healed",
        f"{counts.repaired} repaired",
        f"{counts.missed} missed",
        f"lag {_lag(counts)}",
    ]
    if counts.dropped:
        parts.insert(3, f"{counts.dropped} dropped in a flood")
    return f"Heard {counts.datagrams} datagrams: {', '.join(parts)}."


def _lag(counts: ListenerCounts) -> str:
    return "unknown (is this machine's clock right?)" if counts.lag is None else str(counts.lag)


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
