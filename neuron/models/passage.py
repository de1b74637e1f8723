"""The way of a model from nothing to workers that are ready, and back: all of its life that takes time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ipc.errors import Code, CortexError
from neuron.memory.wish import Tenant
from neuron.models.awaited import Awaited, nobody_has_to_ask
from neuron.models.life import Event
from neuron.models.load_news import LoadNews
from neuron.processes.backoff import Backoff, Pause
from neuron.tenancy.tenancy import SHORTAGE_SECONDS, Tenancy

log = logging.getLogger("neuron.models.passage")

SHORT_LOADS = 3  # tries of one load, where a device ran out of memory: each time more is asked for


class Passage:
    """That of one model. One task at a time brings it up or takes it down, whoever asked for that and however
    many did; it outlives them.

    Args:
        tenant: the model, as the room sees it.
        tenancy: what it has while it is loaded.
        news: of how a load goes.
        backoff: how long requests are refused for it, where it failed.
        handle: told what came of it, and what went wrong if anything did.

    Attributes:
        up: that the model is ready.
        down: that it is unloaded.
        pause: in which no request has it tried again.
    """

    def __init__(
        self,
        tenant: Tenant,
        tenancy: Tenancy,
        news: LoadNews,
        backoff: Backoff,
        handle: Callable[[Event, CortexError | None], None],
    ) -> None:
        self.up = Awaited()
        self.down = Awaited()
        self.pause = Pause(backoff)
        self._tenant = tenant
        self._tenancy = tenancy
        self._news = news
        self._handle = handle
        self._task: asyncio.Task[None] | None = None
        self._retry: asyncio.Task[None] | None = None

    def bring_up(self, text: Awaitable[object]) -> None:
        """Ask for memory, and load when it is there.

        Args:
            text: read meanwhile; a model whose text cannot be read is not loaded.
        """
        self.stop_retry()
        reading = asyncio.ensure_future(text)
        reading.add_done_callback(nobody_has_to_ask)
        self._task = asyncio.create_task(self._bring_up(reading))

    def bring_up_again(self, error: CortexError) -> None:
        """Load in the memory that it has, once the group that died of `error` is gone."""
        self._task = asyncio.create_task(self._bring_up_again(error))

    def take_down(self) -> None:
        """End what brings it up, if anything does, and its processes."""
        self._task = asyncio.create_task(self._take_down(self._task))

    def let_go(self) -> None:
        """It has no processes: nor shall it have memory."""
        self._tenancy.end()
        self._news.end()

    def retry(self, wanted: Callable[[], bool]) -> None:
        """It could not be had: try again after a while, longer after each failure, unless it is brought up or
        `stop_retry` is called before, or it is not `wanted` any more. Nobody leaves for a doubtful one."""
        if self._retry is None or self._retry.done():
            self._retry = asyncio.create_task(self._retry_later(wanted))

    def stop_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def renew(self) -> None:
        """It will be served by other settings: what failed before counts no more."""
        self._tenancy.trust()
        self.pause.end()

    async def close(self) -> None:
        """The neuron ends: no task and no process may stay."""
        self.stop_retry()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._tenancy.epochs.stop()

    # --- tasks ------------------------------------------------------------------------------------------

    async def _retry_later(self, wanted: Callable[[], bool]) -> None:
        told = ""
        while wanted():
            await asyncio.sleep(self._tenancy.epochs.seconds_to_wait)
            try:
                fits = not self._tenancy.doubtful or await self._tenancy.fits(self._tenant)
            except Exception as error:  # a later look may do better
                if repr(error) != told:
                    log.exception("memory for a model cannot be looked for model=%s", self._tenant.id)
                told = repr(error)
            else:
                if fits and wanted():
                    self._handle(Event.WANTED, None)
                    return

    async def _bring_up(self, reading: asyncio.Future[object]) -> None:
        """From a wish for memory to workers that are ready."""
        spare = 0
        try:
            for tries_left in reversed(range(SHORT_LOADS)):
                await self._tenancy.book(self._tenant, self._news.on_place, spare)
                self._handle(Event.GRANTED, None)
                try:
                    await reading  # what can refuse the model comes before its processes
                    await self._tenancy.start()
                    break
                except CortexError as error:
                    if error.code != Code.INSUFFICIENT_MEMORY or not tries_left:
                        raise
                    log.warning(
                        "load needs more memory model=%s spare=%d reason=%s", self._tenant.id, spare, error
                    )
                    spare += self._tenancy.spare
                    self.let_go()
                    self._handle(Event.SHORT, None)
                    by_itself = self._tenancy.doubtful and not self.up.is_awaited
                    if by_itself and not await self._tenancy.fits(self._tenant, spare):
                        raise  # another would leave for it
        except CortexError as error:
            if spare and error.code == Code.MODEL_TOO_LARGE:
                error.code = Code.INSUFFICIENT_MEMORY  # a guess made it so large, for others took what it had
            refused = error.code in (Code.INSUFFICIENT_MEMORY, Code.MODEL_TOO_LARGE)
            if not refused:
                self._fail(error)
                return
            if spare and not self._tenancy.doubtful:  # else it would be so for good
                self._tenancy.doubt(SHORTAGE_SECONDS)
            self._handle(Event.REFUSED, error)
        except Exception as error:
            self._break("load", error)
        else:
            self._serve()

    async def _bring_up_again(self, error: CortexError) -> None:
        """From a death to workers that are ready."""
        try:
            await self._tenancy.start_again(error, self._news.say)
        except CortexError as failure:
            self._fail(failure)
        except Exception as failure:
            self._break("restart", failure)
        else:
            self._serve()

    async def _take_down(self, bringing_up: asyncio.Task[None] | None) -> None:
        """End the processes, and before them what brings them up. Cancelled, it leaves that to `close`."""
        try:
            if bringing_up is not None:
                bringing_up.cancel()
                await asyncio.wait([bringing_up])
            await self._tenancy.epochs.stop()
        except CortexError as error:
            log.error("processes of a model did not end model=%s reason=%s", self._tenant.id, error)
            self.down.fail(error)
        except Exception:
            log.exception("end of a model failed unexpectedly model=%s", self._tenant.id)
        self.let_go()
        self._handle(Event.GONE, None)

    def _serve(self) -> None:
        self.pause.end()
        self._handle(Event.READY, None)

    def _fail(self, error: CortexError) -> None:
        """It cannot be had. Where it had memory for that, others may have left for it."""
        if self._tenancy.fit is not None:
            self._tenancy.doubt()
            self.pause.begin(error)
        self._handle(Event.FAILED, error)

    def _break(self, what: str, error: Exception) -> None:
        """It is a fault of ours."""
        log.exception("%s failed unexpectedly model=%s", what, self._tenant.id)
        self._fail(CortexError(Code.INTERNAL, f"the {what} of {self._tenant.id} failed: {error!r}"))
