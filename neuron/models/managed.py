"""One model's life: unloaded, loading, ready, restarting, unloading, failed."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from ipc.errors import Code, CortexError
from ipc.messages import ModelState, ModelStatus, RankState
from ipc.worker_messages import PAGE_SIZE, StepReport
from neuron.config import ModelSettings
from neuron.memory.fit import Fit
from neuron.models.description import ModelDescription, step_tokens
from neuron.models.house import House
from neuron.models.queue import RequestQueue
from neuron.models.statistics import Statistics
from neuron.processes.group import WorkerGroup
from neuron.processes.spawn import GroupSpec
from neuron.requests.progress import LoadProgress
from neuron.requests.request import OpenRequest
from neuron.text.frontend import TextFrontEnd

log = logging.getLogger("neuron.models.managed")

BAD_STARTS = 5  # in a row, until a model counts as failed
STEADY_SECONDS = 60.0  # a group that lived so long was well started
UNLOAD_SECONDS = 600.0  # for running requests to end before an unload gives up
PROGRESS_INTERVAL = 0.25  # seconds between two `Progress` of one load


class ManagedModel:
    """A model that this neuron knows, whether it is loaded or not.

    One task at a time brings it up or takes it down, whoever asked and however many did; it outlives them.

    Args:
        settings: what the user said about it.
        blueprint: what it is, from its files.
        house: the neuron.
    """

    def __init__(self, settings: ModelSettings, description: ModelDescription, house: House) -> None:
        self.settings = settings
        self.description = description
        self.id = settings.id
        self.status: ModelStatus = "unloaded"
        self.error: str | None = None
        self.requests = RequestQueue(house.config.queue, settings.max_sequences)
        self.fit: Fit | None = None
        self.last_used = time.monotonic()
        self._house = house
        self._group: WorkerGroup | None = None
        self._text: asyncio.Future[TextFrontEnd] | None = None
        self._task: asyncio.Task[None] | None = None  # brings it up, or takes it down
        self._outcome: asyncio.Future[None] | None = None  # of the bringing up
        self._listeners: set[Callable[[LoadProgress], None]] = set()
        self._told_progress = 0.0
        self._progress = LoadProgress()
        self._epochs = itertools.count(1)
        self._epoch = 0
        self._restarts = 0
        self._bad_starts = 0
        self._ready_at = 0.0
        self.load_seconds: float | None = None  # that its last load took, from the start of its processes
        self._served_epoch = 0  # the last epoch that finished a request
        self._statistics: Statistics | None = None  # while it is loaded
        self._retry_timer: asyncio.TimerHandle | None = None

    # --- facts ------------------------------------------------------------------------------------------

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together: what was wished for, and once loaded what the pool allows."""
        return self.fit.context_length if self.fit is not None else self.description.context_length

    @property
    def idle(self) -> bool:
        """Nobody would notice if it left."""
        return self.status in ("ready", "restarting") and self.requests.idle

    @property
    def seconds_left(self) -> float | None:
        """Of its load, at the rate so far; None where that is not known."""
        return self._progress.seconds_left

    def ranks(self) -> list[RankState]:
        """Its processes, from their heartbeat page."""
        return self._group.ranks() if self._group is not None else []

    def state(self) -> ModelState:
        """What the neuron tells of it."""
        ranks = self.ranks()
        plan, fit = self.description, self.fit
        return ModelState(
            id=self.id,
            status=self.status,
            architecture=plan.architecture,
            engine=plan.engine,
            dtype=plan.dtype,
            context_length=self.context_length,
            context_wanted=plan.context_length,
            chat=plan.chat,
            tools=plan.tools,
            reasoning=plan.reasoning,
            devices=list(fit.devices) if fit is not None else [],
            bytes_weights=plan.bytes_weights,
            bytes_reserved=sum(fit.reservations.values()) if fit is not None else 0,
            pinned=self.settings.pin,
            priority=self.settings.priority,
            progress=self._progress.fraction,
            seconds_left=self._progress.seconds_left,
            error=self.error,
            epoch=self._epoch,
            restarts=self._restarts,
            running=len(self.requests.running),
            waiting=self.requests.waiting,
            finished=self.requests.counts["finished"],
            cancelled=self.requests.counts["cancelled"],
            failed=self.requests.counts["failed"],
            created=plan.created,
            load_seconds=self.load_seconds,
            collectives=ranks[0].collectives if ranks else 0,
            collective_seconds=[rank.collective_seconds for rank in ranks] if len(ranks) > 1 else [],
            **(self._statistics.state() if self._statistics is not None else {}),
        )

    def page_hashes(self) -> list[bytes]:
        """Of the pages that its worker has computed and can share, 16 bytes each."""
        return list(self._statistics.page_hashes) if self._statistics is not None else []

    async def text(self) -> TextFrontEnd:
        """The tokenizer and template, read once, in a thread, and also while the model is not loaded.

        Raises:
            CortexError: MODEL_LOAD_FAILED naming the file.
        """
        if self._text is None or (self._text.done() and self._text.exception() is not None):
            self._text = asyncio.ensure_future(asyncio.to_thread(self.description.load_text))
        return await asyncio.shield(self._text)

    @property
    def text_now(self) -> TextFrontEnd | None:
        """The same, if it is there already."""
        done = self._text is not None and self._text.done() and self._text.exception() is None
        return self._text.result() if done else None

    # --- requests ---------------------------------------------------------------------------------------

    def admit(self, work: OpenRequest) -> None:
        """Take a prepared request; it waits for the model, or for its turn.

        Raises:
            CortexError: QUEUE_FULL.
        """
        self.last_used = time.monotonic()
        if self.requests.admit(work) and self.status != "ready":
            work.progress("loading", replace(self._progress, message=self.status))
            self.bring_up()
        self._house.changed()

    def leave(self, work: OpenRequest) -> None:
        """Forget a request that ended, and end it in the worker where it still runs there."""
        self.last_used = time.monotonic()
        if self.requests.leave(work):
            for part in work.parts:
                self.abort(part.submit.request_id)
        if work.outcome == "finished":
            self._served_epoch = self._epoch
        self._house.changed()

    def abort(self, key: int) -> None:
        """End one sequence in the worker, if it still has it."""
        if self._group is not None:
            self._group.abort(key)

    def _on_steps(self, steps: list[StepReport]) -> None:
        self._statistics.take(steps)
        self._house.changed()

    # --- up ---------------------------------------------------------------------------------------------

    async def load(self, listener: Callable[[LoadProgress], None]) -> None:
        """Return when the model is ready. The load goes on when the caller does not wait for it.

        Args:
            listener: told how it goes.

        Raises:
            CortexError: why it cannot be loaded.
        """
        self.last_used = time.monotonic()
        self._listeners.add(listener)
        try:
            while self.status != "ready":
                await asyncio.shield(self.bring_up())
        finally:
            self._listeners.discard(listener)

    def bring_up(self) -> asyncio.Future[None]:
        """See that the model gets ready, and return the future that ends when it is or cannot be."""
        if self._outcome is None:
            self._outcome = asyncio.get_running_loop().create_future()
            self._outcome.add_done_callback(lambda outcome: outcome.exception())  # nobody has to ask
        if self.status in ("unloaded", "failed"):
            self._cancel_retry()
            self._set("loading")
            self._task = asyncio.create_task(self._load())
        return self._outcome

    async def _load(self) -> None:
        try:
            self._tell("making room", None)
            self.fit = await self._house.reserve(self)
            if self.fit.context_length < self.description.context_length:
                log.warning(
                    "context clamped to the memory there is model=%s context_length=%d wanted=%d",
                    self.id,
                    self.fit.context_length,
                    self.description.context_length,
                )
            await self.text()  # what can refuse the model comes before its processes
            await self._start_group()
        except CortexError as error:
            self._give_up(error)
        except Exception as error:
            log.exception("load failed unexpectedly model=%s", self.id)
            self._give_up(CortexError(Code.INTERNAL, f"loading {self.id} failed: {error!r}"))
        else:
            self._bad_starts = 0
            self._on_ready()

    async def _start_group(self) -> None:
        """Start one epoch and wait until it is ready; nothing of it stays when it does not get there."""
        config, settings, fit = self._house.config, self.settings, self.fit
        spec = GroupSpec(
            model=self.id,
            engine=self.description.engine,
            devices=fit.devices,
            threads=self._house.threads(fit),
            context_length=fit.context_length,
            max_sequences=settings.max_sequences,
            max_step_tokens=step_tokens(settings, fit.devices[0]),
            kv_pages=fit.most_pages,
            rank_budgets=fit.rank_budgets,
            folder=self.description.folder,
            dtype=self.description.dtype,
            simulated=self.description.simulated,
            log_level=config.log_level,
        )
        while True:
            self._epoch = next(self._epochs)
            began = time.monotonic()
            group = WorkerGroup(
                spec,
                self._epoch,
                step_deadline=config.step_deadline_seconds,
                on_loading=lambda fraction, message: self._tell(message, fraction),
                on_steps=self._on_steps,
                on_death=self._on_death,
                standby=self._house.standby if self.description.engine == "transformer" else None,
            )
            self._group = group
            try:
                group.start()
                ready = await group.ready(config.load_deadline_seconds)
            except BaseException as error:
                await group.stop()
                if not (group.died_waiting and isinstance(error, CortexError)):
                    raise
                log.warning("load begins again model=%s reason=%s", self.id, error)
            else:
                break
        self.load_seconds = time.monotonic() - began
        log.info(
            "model loaded model=%s seconds=%.2f weights_seconds=%.2f bytes=%d",
            self.id,
            self.load_seconds,
            max(report.load_seconds for report in ready),
            self.description.bytes_weights,
        )
        self._statistics = Statistics(ready)
        pages = self._statistics.kv_pages  # of a pool that may be smaller or larger than planned
        self.fit = replace(fit, kv_pages=pages, context_length=min(fit.context_length, pages * PAGE_SIZE))
        self._house.correct(self, ready)

    def _on_ready(self) -> None:
        self._ready_at = time.monotonic()
        self._progress = LoadProgress()
        self._set("ready")
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            outcome.set_result(None)
        self.requests.open(self._group, self.fit.context_length)

    def _give_up(self, error: CortexError) -> None:
        """It cannot be loaded now: everybody who waits is told, and nothing is held."""
        self._group = None
        self._let_go()
        self._bad_starts += 1
        self._set("failed", error)
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            outcome.set_exception(error)
        self.requests.fail_all(error)
        if self.settings.pin:
            self._retry_timer = asyncio.get_running_loop().call_later(
                self._house.backoff.seconds(self._bad_starts), self.bring_up
            )

    def _tell(self, message: str, fraction: float | None) -> None:
        """Tell all who wait how the load goes."""
        now = time.monotonic()
        self._progress = self._progress.then(message, fraction, now)
        self._house.changed()
        if now - self._told_progress < PROGRESS_INTERVAL:
            return
        self._told_progress = now
        for listener in list(self._listeners):
            listener(self._progress)
        self.requests.tell(self._progress)

    # --- down -------------------------------------------------------------------------------------------

    def _on_death(self, error: CortexError) -> None:
        if self.status not in ("ready", "unloading"):
            return  # it died before it was ready for us: whoever starts it sees that
        self._restarts += 1
        self._statistics = None
        steady = time.monotonic() - self._ready_at >= STEADY_SECONDS or self._served_epoch == self._epoch
        self._bad_starts = 0 if steady else self._bad_starts + 1
        self.requests.lose_worker(error)
        if self.status == "ready":  # else it is being unloaded, which goes on
            self._set("restarting", error)
            self._task = asyncio.create_task(self._restart(error))

    async def _restart(self, error: CortexError) -> None:
        try:
            while True:
                await self._group.wait_gone()
                if self._bad_starts >= BAD_STARTS:
                    raise CortexError(error.code, f"{error.message}; given up after {BAD_STARTS} bad starts")
                seconds = self._house.backoff.seconds(self._bad_starts)
                self._tell(f"restarting in {seconds:g} seconds: {error.message}", None)
                await asyncio.sleep(seconds)
                try:
                    await self._start_group()
                except CortexError as failure:
                    error = failure
                    self._bad_starts += 1
                else:
                    self._on_ready()
                    return
        except CortexError as failure:
            self._bad_starts = 0
            self._give_up(failure)
        except Exception as failure:
            log.exception("restart failed unexpectedly model=%s", self.id)
            self._give_up(CortexError(Code.INTERNAL, f"restarting {self.id} failed: {failure!r}"))

    def unload(self, force: bool = False) -> asyncio.Future[None]:
        """Begin to end the workers and to give the memory back; the future is done when that is done.

        Requests that run are waited for, or with `force` ended. Those that still wait for their turn, and
        those that come meanwhile, have the model loaded again.

        Raises:
            CortexError: QUEUE_TIMEOUT when requests still run after ten minutes; the model stays.
        """
        if force:
            self.requests.fail_all(
                CortexError(Code.SHUTTING_DOWN, f"{self.id} was unloaded by force", retry_after=1.0)
            )
        if self.status in ("unloaded", "failed"):
            self._cancel_retry()
            self._set("unloaded")
            done = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
        if self.status != "unloading":
            bringing_up = self._task if self.status != "ready" else None
            self._set("unloading")
            self.requests.shut()
            self._task = asyncio.create_task(self._unload(bringing_up))
        return asyncio.shield(self._task)

    async def _unload(self, bringing_up: asyncio.Task[None] | None) -> None:
        if bringing_up is not None:
            bringing_up.cancel()
            await asyncio.wait([bringing_up])
            ended = CortexError(Code.MODEL_LOAD_FAILED, f"the load of {self.id} was ended by an unload")
            outcome, self._outcome = self._outcome, None
            if outcome is not None:
                outcome.set_exception(ended)
            self.requests.fail_all(ended)
        waiting = asyncio.ensure_future(self.requests.quiet.wait())
        await asyncio.wait([waiting], timeout=UNLOAD_SECONDS)
        if not waiting.done():
            waiting.cancel()
            self._on_ready()
            still = len(self.requests.running)
            raise CortexError(
                Code.QUEUE_TIMEOUT,
                f"{still} requests of {self.id} still run after {UNLOAD_SECONDS:g} seconds",
            )
        try:
            if self._group is not None:
                await self._group.stop()
        finally:
            self._group = None
            self._let_go()
            self._set("unloaded")
        if self._outcome is not None or self.requests.waiting:
            self.bring_up()

    async def close(self) -> None:
        """The neuron ends: no task and no process may stay. Requests have been answered before."""
        self._cancel_retry()
        self.requests.shut()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._group is not None:
            await self._group.stop()

    def _let_go(self) -> None:
        self.fit = None
        self._statistics = None
        self._progress = LoadProgress()
        self._house.release(self)

    def _cancel_retry(self) -> None:
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None

    def _set(self, status: ModelStatus, error: CortexError | None = None) -> None:
        """Enter a state; an error is shown until the model is ready or unloaded."""
        if error is not None:
            log.error("model %s model=%s epoch=%d reason=%s", status, self.id, self._epoch, error)
            self.error = error.message
        elif status != self.status:
            log.info("model %s model=%s epoch=%d", status, self.id, self._epoch)
        if status in ("ready", "unloaded"):
            self.error = None
        self.status = status
        self._house.changed()
