"""Calls that may hang, in threads that an ending process does not wait for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# At once; what comes beyond it waits. Names, files and migrations: seldom more than one.
MAX_THREADS = 32


class DaemonExecutor(ThreadPoolExecutor):
    """An executor for an event loop's own blocking calls: a daemon thread each.

    The standard one is waited for by `asyncio.run`, and once more by the interpreter: a silent
    name server or file system then holds up the end for minutes. An event loop takes nothing but a
    `ThreadPoolExecutor`; of that one neither the threads nor the queue are used.
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
        except RuntimeError as error:  # the system has no thread for us
            self._fail(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Begin nothing more. What runs is left to itself."""
        with self._lock:
            calls, self._calls = self._calls, deque()
        for future, _ in calls:
            future.cancel()

    def _fail(self, error: RuntimeError) -> None:
        """Fail what waits, unless a thread runs that comes to it."""
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
