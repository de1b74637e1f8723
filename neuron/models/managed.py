"""One model: loaded, served, restarted, ended, as the table in `neuron/models/life.py` has it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

from ipc.errors import Code, CortexError
from ipc.messages.state import ModelState, ModelStatus, RankState
from neuron.admission.request_queue import RequestQueue
from neuron.config import ModelSettings
from neuron.description import ModelDescription
from neuron.memory.room import Room
from neuron.models.keep_alive import KeepAlive
from neuron.models.life import TRANSITIONS, Event
from neuron.models.load_news import LoadNews
from neuron.models.model_state import model_state
from neuron.models.passage import Passage
from neuron.models.speed import Speed
from neuron.models.tenant import ModelTenant
from neuron.models.text_path import TextPath
from neuron.processes.backoff import Backoff
from neuron.refusals import replaced
from neuron.requests.progress import LoadProgress
from neuron.requests.request import OpenRequest
from neuron.tenancy.launcher import Launcher
from neuron.tenancy.prefixes import Prefixes
from neuron.tenancy.renewal import Renewal
from neuron.tenancy.tenancy import Tenancy
from neuron.text.answers import AnswerText
from neuron.text.frontend import TextFiles

log = logging.getLogger("neuron.models.managed")

UNLOAD_SECONDS = 600.0  # for running requests to end before an unload gives up


class ManagedModel:
    """A model that this neuron knows, whether it is loaded or not.

    What happens to it goes through `handle`: the table says what follows, and what is done. The room
    knows it as its `tenant`.

    Args:
        settings: what the user said about it.
        description: what it is, from its files.
        room: gives it memory.
        launcher: makes its worker groups.
        backoff: waits between restarts.
        changed: called when its `ModelState` is not what it was; with True where its status may be another.
        read_text: makes a text path.
        forget_text: told of one that it has no more.
    """

    def __init__(
        self,
        settings: ModelSettings,
        description: ModelDescription,
        room: Room,
        launcher: Launcher,
        backoff: Backoff,
        changed: Callable[..., None],
        read_text: Callable[[TextFiles], Awaitable[AnswerText]],
        forget_text: Callable[[AnswerText], None],
    ) -> None:
        self.id = settings.id
        self._renewal = Renewal(settings, description, self._leave_outdated)
        self.status: ModelStatus = "unloaded"
        self.error: str | None = None
        self._refusal = ""  # why it had no memory, since it was ready last
        self.requests = RequestQueue(
            launcher.config.queue, settings.max_sequences, description.whole, self._serves
        )
        self._preparing = 0  # requests that will be admitted
        self.displaced = False  # it left for another model, and has not been back since
        self._room = room
        self._launcher = launcher
        self._told: ModelState | None = None  # since the last change, if anybody has looked
        self._tell_change = changed
        self._news = LoadNews(self._changed, self.requests.tell)
        self._tenancy = Tenancy(
            self._renewal,
            room,
            launcher,
            backoff,
            self.requests,
            on_loading=self._news.on_loading,
            on_steps=self._on_steps,
            on_death=lambda error: self.handle(Event.DIED, error),
            changed=self._changed,
        )
        self.tenant = ModelTenant(
            self._renewal,
            self._tenancy,
            self.requests,
            self._news,
            launcher.config.memory.turn_seconds,
            status=lambda: self.status,
            leave=self._leave_for_another,
            interrupt=self._interrupt,
            stay=self._stay,
        )
        self._passage = Passage(self.tenant, self._tenancy, self._news, backoff, self.handle)
        self._text = TextPath(read_text, forget_text)
        self._unloads = 0  # users who wait for its end
        self._leaves_for: Literal["another model", "other settings"] | None = None  # if it leaves for any
        self._evictions = 0
        self._keep_alive = KeepAlive(self._default_keep_alive, self._expire)
        self._drained = False  # it takes nothing new, as a client said
        self._speed = Speed()

    def handle(self, event: Event, error: CortexError | None = None) -> None:
        """Enter the state that `event` leads to from this one, and do what belongs to that.

        Args:
            error: what went wrong, for REFUSED, FAILED and DIED.
        """
        if (transition := TRANSITIONS[self.status].get(event)) is None:
            return
        status, action = transition
        epoch = self._tenancy.epochs.number
        if error is not None:
            level = logging.ERROR
            if event is Event.REFUSED:  # one that is pinned is tried again and again: a warning says it once
                level = logging.INFO if error.message == self._refusal else logging.WARNING
                self._refusal = error.message
            log.log(level, "model %s model=%s epoch=%d reason=%s", status, self.id, epoch, error)
            self.error = error.message
        elif status != self.status:
            log.info("model %s model=%s epoch=%d", status, self.id, epoch)
        if status == "ready":
            self._refusal = ""
        if status in ("ready", "waiting") or (status == "unloaded" and error is None):
            self.error = None
        self.status = status
        getattr(self, f"_{action}")(error)
        self._changed(True)

    # --- facts ------------------------------------------------------------------------------------------

    @property
    def settings(self) -> ModelSettings:
        """By which it is served now."""
        return self._renewal.settings

    @property
    def description(self) -> ModelDescription:
        """The same."""
        return self._renewal.description

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together: what was wished for, and once loaded what the pool allows."""
        fit = self._tenancy.fit
        return fit.context_length if fit is not None else self.description.context_length

    @property
    def seconds_left(self) -> float | None:
        """Of its load, at the rate so far; None where that is not known."""
        return self._news.progress.seconds_left

    @property
    def load_seconds(self) -> float | None:
        """That its last load from files took, from the start of its processes."""
        return self._tenancy.epochs.load_seconds

    @property
    def loaded_on(self) -> str:
        """Kind of the device of that load."""
        return self._tenancy.epochs.loaded_on

    @property
    def in_use(self) -> bool:
        """Whether it is loaded, or somebody has to do with it."""
        drained = self._drained and not self.retired
        return self.status not in ("unloaded", "failed") or not self.is_idle or drained

    @property
    def is_idle(self) -> bool:
        """Whether it has no request, and none is on its way."""
        return self.requests.idle and not self._preparing

    @property
    def is_away(self) -> bool:
        """Whether it left for another model, and may come back."""
        return self.displaced and self.status == "unloaded" and not (self.retired or self._drained)

    @property
    def drained(self) -> bool:
        """It takes nothing new, as a client said."""
        return self._drained

    def drain(self, drained: bool) -> None:
        """Tell that it takes nothing new, or does so again. Whoever takes requests sees to that."""
        self._drained = drained
        self._changed(True)

    def ranks(self) -> list[RankState]:
        """Its processes, from their heartbeat page."""
        return self._tenancy.epochs.ranks()

    @property
    def is_in_line(self) -> bool:
        """Whether it waits for memory that others hold."""
        return self.status == "waiting" and self._news.progress.stage == "queued"

    def state(self) -> ModelState:
        """What the neuron tells of it."""
        if self._told is not None and self._tenancy.epochs.group is None:
            return self._told
        self._told = self._state()
        return self._told

    def tell_parked(self) -> None:
        """What is parked of it is not what it was."""
        self._changed()

    def _changed(self, now: bool = False) -> None:
        if now or self._told is not None:  # else that was said already, and nobody has looked since
            self._told = None
            self._tell_change(now)

    def _state(self) -> ModelState:
        return model_state(
            self.settings,
            self.description,
            self._tenancy,
            self.requests,
            self._speed,
            status=self.status,
            error=self.error,
            context_length=self.context_length,
            progress=self._news.progress.fraction,
            seconds_left=self._news.progress.seconds_left,
            evictions=self._evictions,
            keep_alive=None if self.settings.pin else self._keep_alive.told,
            drained=self._drained,
            retired=self.retired,
        )

    def page_hashes(self) -> list[bytes]:
        """Of the pages that its worker has computed and can share, 16 bytes each."""
        statistics = self._tenancy.statistics
        return list(statistics.page_hashes) if statistics is not None else []

    @property
    def prefixes(self) -> Prefixes | None:
        """Of prompts whose pages its worker holds; None while there is none."""
        return self._tenancy.prefixes

    async def text(self) -> AnswerText:
        """The tokenizer and template, read once, and also while the model is not loaded. Where they cannot be
        read it has failed: nobody should take it for one that can be had.

        Raises:
            CortexError: MODEL_LOAD_FAILED naming the file.
        """
        try:
            return await self._text.get(self.description.text)
        except CortexError as error:
            if self.status == "unloaded":  # else whoever loads it says so
                self.handle(Event.FAILED, error)
            raise

    @property
    def text_now(self) -> AnswerText | None:
        """The same, if it is there already."""
        return self._text.now

    def drop_text(self) -> None:
        """Nobody will read or write by this tokenizer and template any more."""
        self._text.drop()

    # --- other settings ---------------------------------------------------------------------------------

    @property
    def wanted(self) -> ModelSettings:
        """The settings that it has, or will have from its next load on."""
        return self._renewal.wanted

    @property
    def retired(self) -> bool:
        """It leaves for good, once nobody has to do with it."""
        return self._renewal.retired

    def renew(self, settings: ModelSettings, description: ModelDescription) -> None:
        """Be served like this: at once in what needs no other load, and in the rest when nothing runs.

        A model that is never without requests leaves after a minute; those that come then wait for its next
        load.
        """
        self._renewal.renew(settings, description)
        self._passage.renew()
        if self.status in ("unloaded", "waiting", "failed"):
            self._adopt()
        if self.status == "failed":
            self.handle(Event.LEAVE)
        self._look()
        self._changed()

    def pin(self, pinned: bool) -> None:
        """Stay loaded, or no longer, whatever the settings said."""
        self._renewal.pin(pinned)
        self._look()

    def retire(self) -> None:
        """Leave for good, once what runs and what waits is done."""
        self._renewal.retire()
        self._changed(True)
        self._look()

    def forget(self) -> None:
        """Nobody knows it any more: it is not tried again, and nothing is kept for it."""
        self._passage.stop_retry()
        self._renewal.stop()
        self.drop_text()

    def _leave_outdated(self) -> None:
        """It leaves for its other settings: it is idle, or was never without requests for too long."""
        if self.status == "ready" or self.retired:
            self._leaves_for = None if self.retired else "other settings"
            self.handle(Event.LEAVE)

    def _adopt(self) -> None:
        """Nothing of it is loaded: other settings count from now on."""
        before = self.description
        if not self._renewal.adopt():
            return
        self.requests.adopt(self.settings.max_sequences, self.description.whole)
        if self.description.text != before.text:  # what waits was read by another tokenizer
            self.drop_text()
            self.requests.fail_all(replaced(self.id))

    # --- requests ---------------------------------------------------------------------------------------

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """A request for it is prepared meanwhile, which may come to nothing."""
        self._preparing += 1
        try:
            yield
        finally:
            self._preparing -= 1
            self._look()

    def admit(self, request: OpenRequest) -> None:
        """Take a prepared request; it waits for the model, or for its turn.

        Raises:
            CortexError: QUEUE_FULL; a load that is to come first counts in its `retry_after`.
                MODEL_LOAD_FAILED: it failed just now.
        """
        if self.status == "failed" and (refusal := self._passage.pause.refusal) is not None:
            raise refusal
        self._use_now(request.request.keep_alive)
        request.model = self
        if number := self.description.adapter(request.request.model):
            request.adapter = number
            for part in request.parts:
                part.submit.adapter = number
        try:
            first = self.requests.admit(request)
        except CortexError as error:
            if self.status != "ready" and error.retry_after is not None:
                error.retry_after += self._news.progress.seconds_left or self.tenant.reload_seconds
            raise
        if first:
            self.bring_up()
            stage = "loading" if self.status in ("loading", "restarting") else "queued"
            request.progress(
                replace(self._news.progress, message=self._news.progress.message or self.status, stage=stage)
            )
        self._changed()

    def begin(self, request: OpenRequest) -> None:
        self.requests.begin(request)

    def _serves(self, request: OpenRequest) -> bool:
        """Whether the worker has the adapter of a request; else it is got."""
        return self._tenancy.adapters.serves(request)

    def hold(self, mark: bytes, tokens: int, page: bytes) -> None:
        if self.prefixes is not None:
            self.prefixes.note(mark, tokens, page)

    def held(self, mark: bytes) -> int:
        return self.prefixes.tokens(mark) if self.prefixes is not None else 0

    def reuse(self, request: OpenRequest, tokens: int) -> None:
        self.requests.reuse(request, tokens)

    def leave(self, request: OpenRequest) -> None:
        """Forget a request that ended, and end it in the worker where it still runs there."""
        self.tenant.use()
        self.requests.leave(request)
        if (group := self._tenancy.epochs.group) is not None:
            for part in request.parts:
                group.abort(part.submit.request_id)
        if request.outcome == "finished":
            self._tenancy.epochs.prove()
            self._speed.measure(request)
        elif request.pages and self._tenancy.statistics is not None:
            self._tenancy.statistics.doubt(request.pages)
        self._tenancy.adapters.look()
        if self.status != "ready" or self.requests.idle:
            self._look()
        if self._room.contested:
            self._room.look()
        self._changed()

    def abort(self, key: int) -> None:
        """End one sequence in the worker, if it still has it."""
        if self._tenancy.epochs.group is not None:
            self._tenancy.epochs.group.abort(key)

    # --- up and down, for users -------------------------------------------------------------------------

    async def load(self, listener: Callable[[LoadProgress], None], keep_alive: float | None = None) -> None:
        """Return when the model is ready. The load goes on when the caller does not wait for it.

        Args:
            listener: told how it goes.
            keep_alive: seconds that it stays though nobody uses it; below 0: for ever; None: as its
                settings say.

        Raises:
            CortexError: why it cannot be loaded.
        """
        self._use_now(keep_alive)
        self.tenant.use()
        try:
            with self._news.telling(listener):
                while self.status != "ready":
                    await asyncio.shield(self.bring_up())
        finally:
            self._look()

    def bring_up(self) -> asyncio.Future[None]:
        """See that the model gets ready, and return the future that ends when it is or cannot be."""
        up = self._passage.up.ask()
        if self.status == "ready":
            self._passage.up.come()
        else:
            self.handle(Event.WANTED)
        return up

    def come_back(self) -> None:
        """The same though nobody asks for it: where its last load failed, once nobody has to leave for it."""
        if self._tenancy.doubtful:
            self._passage.retry(lambda: self.is_away)
        else:
            self.bring_up()

    async def unload(self, force: bool = False) -> None:
        """End the workers and give the memory back.

        Requests that run are waited for, or with `force` ended. Those that still wait for their turn, and
        those that come meanwhile, have the model loaded again.

        Raises:
            CortexError: QUEUE_TIMEOUT when requests still run after ten minutes; the model stays.
        """
        if force:
            self.requests.fail_all(
                CortexError(Code.SHUTTING_DOWN, f"{self.id} was unloaded by force", retry_after=1.0)
            )
        down = self._passage.down.ask()
        self._unloads += 1
        self.displaced, self._leaves_for = False, None
        try:
            self.handle(Event.LEAVE)
            await asyncio.wait([down], timeout=UNLOAD_SECONDS)
        finally:
            self._unloads -= 1
        if not down.done():
            self.handle(Event.STAY)
            raise CortexError(
                Code.QUEUE_TIMEOUT,
                f"{self.requests.running} requests of {self.id} still run after {UNLOAD_SECONDS:g} seconds",
            )
        down.result()

    async def close(self) -> None:
        """The neuron ends: no task and no process may stay. Requests have been answered before."""
        self._keep_alive.close()
        self._renewal.stop()
        self.requests.shut()
        await self._passage.close()
        self._tenancy.adapters.close()

    # --- actions ----------------------------------------------------------------------------------------

    def _wish(self, error: CortexError | None) -> None:
        """Ask for memory, and load when it is there."""
        self._passage.bring_up(self.text())

    def _tell_load(self, error: CortexError | None) -> None:
        self._news.say("starting")

    def _serve(self, error: CortexError | None) -> None:
        """Hand over what waits. It may be the group that is just ready, or the one that was to end."""
        self._news.end()
        self.tenant.begin_turn()
        self.displaced, self._leaves_for = False, None
        self._passage.up.come()
        self.requests.open(self._tenancy.epochs.group, self._tenancy.fit.context_length)
        self._look()
        self._room.look()

    def _give_up(self, error: CortexError | None) -> None:
        """It cannot be had now: everybody who waits is told, and nothing is held."""
        self._tenancy.epochs.count_failure()
        self._passage.let_go()
        self._adopt()
        self._fail_waiting(error)
        if self._is_resident:
            self._passage.retry(lambda: self._is_resident)

    def _restart(self, error: CortexError | None) -> None:
        """Begin another epoch, once the dead one is gone."""
        self._tenancy.lose_workers(error)
        self._passage.bring_up_again(error)  # first: a request that fails may be all that keeps the model
        self.requests.lose_worker(error)

    def _finish(self, error: CortexError | None) -> None:
        """Let what runs end; all else waits for the next load."""
        self.requests.take_back()
        self._tenancy.adapters.pause()
        self._look()

    def _lose_and_end(self, error: CortexError | None) -> None:
        """It died while it drained."""
        self._tenancy.lose_workers(error)
        self.requests.lose_worker(error)
        self._end(None)

    def _end(self, error: CortexError | None) -> None:
        """End the processes."""
        self._tenancy.adapters.stop()
        self._passage.take_down()

    def _cancel(self, error: CortexError | None) -> None:
        """End what brings it up, whoever waits for that, and the processes that there are."""
        self._fail_waiting(
            CortexError(Code.MODEL_LOAD_FAILED, f"the load of {self.id} was ended by an unload")
        )
        self._passage.take_down()

    def _rest(self, error: CortexError | None) -> None:
        """Nothing of it is left, or never was; whoever came meanwhile has it loaded again."""
        self._passage.stop_retry()
        self._adopt()
        self._passage.down.come()
        left_for, self._leaves_for = self._leaves_for, None
        if left_for == "another model":
            self.displaced = True
            self._evictions += 1
        wanted = self._news.has_listeners or self.settings.pin or left_for == "other settings"
        if not self.requests.idle or (wanted and not self.retired):
            self.bring_up()
        elif self._passage.up.is_awaited and self.retired:
            self._fail_waiting(CortexError(Code.MODEL_NOT_FOUND, f"{self.id} is no longer served here"))
        elif self._passage.up.is_awaited:  # whoever wanted it has left meanwhile
            self._fail_waiting(CortexError(Code.MODEL_LOAD_FAILED, f"nobody waits for {self.id} any more"))

    # --- parts of these ---------------------------------------------------------------------------------

    def _leave_for_another(self) -> None:
        if self.status in ("ready", "restarting"):
            self._leaves_for = "another model"
            self.handle(Event.LEAVE)

    def _interrupt(self) -> None:
        """Another model waits for what runs here, and has done so for too long."""
        if self.status == "draining":
            log.info("model is interrupted model=%s", self.id)
            self.requests.interrupt(self._tenancy.epochs.group)
            self._look()

    def _stay(self) -> None:
        """No other model needs its memory any more."""
        if not self._unloads:
            self.handle(Event.STAY)

    def _on_steps(self) -> None:
        self.requests.on_steps(self._tenancy.statistics.sequences_waiting)
        self._changed()

    def _fail_waiting(self, error: CortexError) -> None:
        self._passage.up.fail(error)
        self.requests.fail_all(error)

    def _look(self) -> None:
        """See what follows where it has fewer users than it had, or other settings."""
        deserted = self.is_idle and not self._news.has_listeners and not self._is_resident
        if self.status == "draining" and self.requests.quiet:
            self.handle(Event.QUIET)
        elif self.status == "waiting" and deserted:
            self.handle(Event.DESERTED)
        elif self._renewal.is_due and self.is_idle:
            self._leave_outdated()
        if self.status == "ready" and self.is_idle and not self.settings.pin:
            self._keep_alive.start()
        else:
            self._keep_alive.stop()

    @property
    def _is_resident(self) -> bool:
        """Whether it is loaded though nobody asks for it."""
        return self.settings.pin and not self.retired

    def _default_keep_alive(self) -> float:
        own = self.settings.keep_alive
        return self._launcher.config.keep_alive if own is None else own

    def _use_now(self, keep_alive: float | None) -> None:
        """Somebody asks for it."""
        self.tenant.ask()
        self._keep_alive.ask(keep_alive)
        self._keep_alive.stop()

    def _expire(self) -> None:
        if self.status == "ready" and self.is_idle:
            log.info("model was idle model=%s keep_alive=%g", self.id, self._keep_alive.told)
            self.handle(Event.LEAVE)
