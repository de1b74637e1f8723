"""Bodies of requests, read where they hold up few.

What a dialect makes of a body of megabytes takes it a tenth of a second, and of a quarter of one with nothing
in it but lists a quarter of that. In a thread the loop has its turns meanwhile, but for the time in which the
bytes are decoded, which keeps the interpreter to itself. Where that is long another process does it all
(`gateway.http.aside`). Dialects bound how much anything is made of.

Who waits for a thread waits in turn, one body of each account: many bodies of one hold up another's by those
in the threads and one, and not by all. How many wait is bounded by the memory that there is for bodies.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from gateway.dialects import RequestContext

T = TypeVar("T")

LARGE = 256 << 10  # bytes, which take some milliseconds,
MANY = 2000  # and so do so many lists and objects, also within texts
THREADS = 2  # each takes its turn of the interpreter, and so does the loop


class FairThreads:
    """Threads for which accounts take turns."""

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count, "parsing")
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = {}  # whose turn it is first

    def submit(self, account: str, work: Callable[[], T]) -> Future[T]:
        """Have a thread do that, unless the future is cancelled before one begins."""
        future: Future[T] = Future()
        with self._lock:
            self._waiting.setdefault(account, deque()).append((future, work))
        self._threads.submit(self._do_one)
        return future

    def _do_one(self) -> None:
        future, work = self._next()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
            del future, work  # the error refers to this frame

    def _next(self) -> tuple[Future[Any], Callable[[], Any]]:
        with self._lock:
            account = next(iter(self._waiting))
            line = self._waiting.pop(account)
            first = line.popleft()
            if line:
                self._waiting[account] = line  # behind all others
            return first


_threads = FairThreads(THREADS)


async def parsed(
    parse: Callable[[bytes, RequestContext], Coroutine[Any, Any, T]], data: bytes, context: RequestContext
) -> T:
    """What `parse` makes of a body; CortexError: as it does."""
    if len(data) < LARGE and data.count(b"{") + data.count(b"[") < MANY:
        return await parse(data, context)
    waiting = [data]  # until a thread takes it: whoever is cancelled before leaves nothing behind
    try:
        return await in_turn(lambda: asyncio.run(parse(waiting.pop(), context)), context.account)
    finally:
        waiting.clear()


async def in_turn(work: Callable[[], T], account: str) -> T:
    """What `work` gives, done by a thread once `account` has its turn."""
    return await asyncio.wrap_future(_threads.submit(account, work))
