"""One request to a neuron and its replies, as whoever waits for them sees it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from math import inf

from ipc.messages.replies import TERMINAL, Reply

TERMINAL_TYPES = frozenset(TERMINAL)


class Call:
    """One request and its replies.

    `async for reply in call` yields them as they come, the terminal one last. Leaving the iteration early, or
    being cancelled in it, cancels the request. It is iterated once, by one task. `take` is for who wants all
    that is there at once, or cannot wait for ever.

    Args:
        request_id: of the request.
        patient: whoever made it bounds its wait for a connection.
        loop: that it is waited for in.
        long_wait: seconds from which on a wait of `take` has no timer: `look` ends it.
        cancel: asks the neuron to end this call.
    """

    __slots__ = (
        "_cancel",
        "_deadline",
        "_long_wait",
        "_loop",
        "_replies",
        "_timer",
        "_timer_ends",
        "_waiter",
        "closed",
        "ended",
        "id",
        "patient",
    )

    def __init__(
        self,
        request_id: int,
        patient: bool,
        loop: asyncio.AbstractEventLoop,
        long_wait: float,
        cancel: Callable[[Call], None],
    ) -> None:
        self.id = request_id
        self.patient = patient
        self.closed = False  # the terminal reply is here
        self.ended = 0.0  # since when (monotonic clock)
        self._loop, self._long_wait, self._cancel = loop, long_wait, cancel
        self._replies: deque[Reply] = deque()
        self._waiter: asyncio.Future[None] | None = None
        # Of `take`. A timer is not set anew for each wait, but when it ends before the last one's deadline. A
        # long wait has none.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ends, self._deadline = 0.0, inf  # by the loop's clock

    def cancel(self) -> None:
        """Ask the neuron to end it. The terminal reply still comes. On a closed call it does nothing."""
        if not self.closed:
            self._cancel(self)

    async def take(self, within: float) -> list[Reply]:
        """All replies that are here, after waiting up to `within` seconds for the first.

        One of a fifth of the time that a neuron may be silent, or longer, lasts up to that much longer.

        Returns:
            [] when none came in time, or when there is none to come any more. It never cancels the request.
        """
        replies = self._replies
        if not replies and not self.closed:
            loop = self._loop
            self._deadline = loop.time() + within
            if within < self._long_wait and (self._timer is None or self._timer_ends > self._deadline):
                self._set_timer()
            self._waiter = waiter = loop.create_future()
            await waiter
        taken = list(replies)
        replies.clear()
        return taken

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._on_time)
        self._timer_ends = self._deadline

    def _on_time(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._deadline > self._timer_ends:
            self._set_timer()
        else:
            _wake(self._waiter)

    def look(self, now: float) -> None:
        """End a wait that was long enough."""
        if self._waiter is not None and self._deadline <= now:
            _wake(self._waiter)

    async def __aiter__(self) -> AsyncGenerator[Reply, None]:
        replies = self._replies
        try:
            while True:
                while replies:
                    yield replies.popleft()
                if self.closed:
                    return
                self._waiter = self._loop.create_future()
                await self._waiter
        finally:
            self.cancel()

    def push(self, reply: Reply) -> None:
        """One more of its replies is here."""
        if type(reply) in TERMINAL_TYPES:
            self.closed = True
            self.ended = time.monotonic()
            if self._timer is not None:
                self._timer.cancel()
        self._replies.append(reply)
        if self._waiter is not None:
            _wake(self._waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
