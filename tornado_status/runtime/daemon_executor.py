"""Blocking calls in daemon threads: a call that hangs does not delay shutdown."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MAX_THREADS = 32  # more calls wait; DNS, files and migrations seldom need more than one


class DaemonExecutor(ThreadPoolExecutor):
    """An executor that runs each call in a daemon thread, also as an event loop's default.

    `asyncio.run` waits for the threads of a `ThreadPoolExecutor`, and so does the interpreter: a
    silent name server or file system delays shutdown for minutes. This class derives from it only
    because an event loop accepts no other; it uses neither its threads nor its queue.
    """

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self._lock = threading.Lock()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._running = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            self._calls.append((future, lambda: fn(*args, **kwargs)))
            if self._running >= MAX_THREADS:
                return future
            self._running += 1
        try:
            threading.Thread(target=self._run, name="blocking call", daemon=True).start()
        except RuntimeError as error:  # the system has no more threads
            self._fail(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Begin no more calls. Running ones are left alone."""
        with self._lock:
            calls, self._calls = self._calls, deque()
        for future, _ in calls:
            future.cancel()

    def _fail(self, error: RuntimeError) -> None:
        """Fail the waiting calls, unless a running thread will take them."""
        with self._lock:
            self._running -= 1
            if self._running:
                return
            calls, self._calls = self._calls, deque()
        for future, _ in calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._calls:
                    self._running -= 1
                    return
                future, call = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
