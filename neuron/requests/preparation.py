"""Threads for the part of requests that takes long, which accounts use in turn."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Preparation:
    """Runs functions in threads of its own. No account ever has all of them, and those who wait take turns:
    one dear request slows its own account, and nobody else's.

    Args:
        name: of the threads.
        threads: at least two.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._threads = max(2, threads)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix=name)
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # by account, in turn
        self._running: Counter[str] = Counter()

    async def run(self, account: str, function: Callable[..., T], *args: Any) -> T:
        """What `function` returns, once `account` has had its turn. Cancelled before that, it never runs."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.setdefault(account, deque()).append(turn)
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it had its turn in this moment
                self._done(account)
            raise
        job = self._pool.submit(function, *args)
        # A thread cannot be stopped: it counts until it is done, whether anybody still waits for it or not.
        job.add_done_callback(lambda job: self._call_done(loop, job, account))
        return await asyncio.wrap_future(job)

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _call_done(self, loop: asyncio.AbstractEventLoop, job: Future[Any], account: str) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._done, account)

    def _done(self, account: str) -> None:
        self._running[account] -= 1
        if not self._running[account]:
            del self._running[account]
        self._next()

    def _next(self) -> None:
        """Begin what may begin: one of each account, and again from the first."""
        begun = True
        while begun:
            begun = False
            for account in list(self._waiting):
                if self._running.total() >= self._threads:
                    return
                begun |= self._begin_one(account)

    def _begin_one(self, account: str) -> bool:
        """Give `account` a turn, if it may have one."""
        turns = self._waiting[account]
        while turns and turns[0].done():  # nobody waits for it any more
            turns.popleft()
        if not turns:
            del self._waiting[account]
            return False
        if self._running[account] >= self._threads - 1:
            return False
        self._running[account] += 1
        turns.popleft().set_result(None)
        self._waiting.move_to_end(account)
        return True
