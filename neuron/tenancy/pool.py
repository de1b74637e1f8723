"""The pool of a loaded model: it shrinks for another model that needs room, and grows again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from ipc.errors import CortexError
from ipc.worker_messages import PoolReport
from neuron.memory.eviction import PoolShare
from neuron.memory.fit import ONE_CONTEXT, Fit

log = logging.getLogger("neuron.tenancy.pool")

RESIZE_SECONDS = 10.0  # that others wait for it: it is done between two steps
# That it keeps over one whole context: a rank that restarts may hold a little more, and leaves free on a GPU
# what drivers take on their way.
SLACK_BYTES = {"cpu": 16 << 20, "cuda": 128 << 20}


class Group(Protocol):
    """The worker group, as far as its pool goes (`neuron.processes.group.WorkerGroup`)."""

    def resize(self, kept: int, usable: int) -> asyncio.Future[list[PoolReport]]: ...


class Pool:
    """That of one model. It is there from `open` to `close`, which is as long as a worker group serves.

    Args:
        resized: told the pages that there are now, and by how many bytes on each device the booking changes.
    """

    def __init__(self, resized: Callable[[int, Mapping[str, int]], None]) -> None:
        self._resized = resized
        self._group: Group | None = None  # None: it is of one size, or there is none
        self._pages = self._least = self._wanted = 0
        self._page_bytes: Mapping[str, int] = {}
        self._task: asyncio.Task[None] | None = None
        self._coming = 0  # pages that are given up now
        self._growth = 0  # pages that it takes now: they are booked, and not there yet
        self._since = 0.0  # monotonic: when it began to change

    def open(self, fit: Fit, group: Group, resizable: bool) -> None:
        """The model is loaded, with the pages and the context of `fit`."""
        self.close()
        self._page_bytes = fit.page_bytes
        one_context = int(ONE_CONTEXT * fit.caches.pages_for(fit.context_length))
        slack = SLACK_BYTES[fit.devices[0].partition(":")[0]] // max(1, min(fit.rank_page_bytes))
        self._pages, self._least = fit.kv_pages, one_context + slack
        self._wanted = min(max(self._wanted, fit.kv_pages, fit.wanted_pages), fit.most_pages)
        self._group = group if resizable and all(self._page_bytes.values()) else None

    def close(self) -> None:
        """The group ends, or has ended; another may follow, with as many pages as this one had in the end.
        What it was to grow by is told as booked no more."""
        growth, self._growth = self._growth, 0
        self._group, self._coming = None, 0
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if growth:
            self._resized(self._pages, self._bytes(-growth))

    def forget(self) -> None:
        """The model is not loaded any more, and its booking ends as a whole."""
        self._wanted = self._growth = 0
        self.close()

    @property
    def share(self) -> PoolShare | None:
        """What it could give up, or take; None while it cannot change."""
        if self._group is None or self._task is not None:
            return None
        spare, lacking = max(0, self._pages - self._least), max(0, self._wanted - self._pages)
        return PoolShare(self._page_bytes, spare, lacking)

    @property
    def changes(self) -> bool:
        """Whether it shrinks or grows now, and not for longer than others wait for that."""
        recent = time.monotonic() - self._since < RESIZE_SECONDS
        return self._group is not None and self._task is not None and recent

    @property
    def coming(self) -> dict[str, int]:
        """Bytes by device that are free in a moment."""
        return self._bytes(self._coming)

    def resize(self, pages: int) -> None:
        """Take so many pages more, which are booked already, or give so many up."""
        if self._group is None or self._task is not None:
            raise ValueError("the pool cannot change now")
        self._since = time.monotonic()
        self._coming, self._growth = max(0, -pages), max(0, pages)
        self._task = asyncio.create_task(self._change(pages))

    async def _change(self, pages: int) -> None:
        try:
            booked = await (self._grow(pages) if pages > 0 else self._shrink(-pages))
        except CortexError as error:  # the group has ended
            log.info("a pool has not changed reason=%s", error)
            return
        self._task, self._growth = None, 0
        self._resized(self._pages, booked)

    async def _shrink(self, pages: int) -> dict[str, int]:
        rest = self._pages - pages
        answered = self._group.resize(rest, rest)
        await asyncio.wait([answered], timeout=RESIZE_SECONDS)
        if not answered.done():  # whoever needs the room does not wait for a step that takes so long
            log.warning("a pool has not shrunk within %g seconds pages=%d", RESIZE_SECONDS, pages)
            self._coming = 0
        reports = await answered
        self._pages, self._coming = rest, 0
        if failed := [report for report in reports if report.code]:  # nobody has those pages, then
            log.warning("a pool gave no memory back pages=%d reason=%s", pages, failed[0].message)
            self._wanted = rest
            return {}
        return self._bytes(-pages)

    async def _grow(self, pages: int) -> dict[str, int]:
        before, more = self._pages, self._pages + pages
        reports = await self._group.resize(more, before)
        if failed := [report for report in reports if report.code]:
            log.warning("a pool has not grown pages=%d reason=%s", pages, failed[0].message)
            await self._group.resize(before, before)
            self._wanted = before  # it would come to nothing again
            return self._bytes(-pages)
        await self._group.resize(more, more)
        self._pages = more
        return {}

    def _bytes(self, pages: int) -> dict[str, int]:
        return {name: pages * size for name, size in self._page_bytes.items()} if pages else {}
