"""Adapters of a loaded model: read when somebody asks for one, and gone when others need their place.

Each is a tenant of memory as a model is: it makes a wish, is booked, and leaves for others, the one that was
used longest ago first. A request whose adapter is not there waits for it, while all others go on. What runs
in one whose turn is over is interrupted for one that has been wanted for long, and goes on when it is back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Literal, Protocol

from ipc.errors import Code, CortexError
from ipc.worker_messages import AdapterReport, DropAdapter, LoadAdapter, MemoryUse
from neuron.config import ModelSettings, NeuronConfig
from neuron.description import ModelDescription
from neuron.memory.eviction import Holder, RecentUse, residency
from neuron.memory.fit import Fit
from neuron.memory.need import Need, RankNeed
from neuron.memory.room import FINISHING_SHARE, Room
from neuron.memory.wish import Place
from neuron.processes.backoff import Backoff, Pause
from neuron.requests.progress import LoadProgress
from neuron.requests.request import OpenRequest

log = logging.getLogger("neuron.tenancy.adapters")


class Group(Protocol):
    """The worker group, as far as adapters go (`neuron.processes.group.WorkerGroup`)."""

    def adapt(self, order: LoadAdapter | DropAdapter) -> asyncio.Future[list[AdapterReport]]: ...


class Line(Protocol):
    """The requests of the model (`neuron.admission.request_queue.RequestQueue`)."""

    def with_adapter(self, number: int, *phases: str) -> Sequence[OpenRequest]: ...

    def waits_since(self, adapter: int) -> float:
        """When the request for it came that has waited longest, as `neuron.memory.wish.Tenant` has it."""
        ...

    def refuse(self, since: float, error: CortexError, adapter: int) -> bool:
        """Have those for it fail that have waited since then, as `neuron.memory.wish.Tenant` has it."""
        ...

    def interrupt_adapter(self, number: int) -> None:
        """Have all that uses it in the worker wait for it, to go on where it was."""
        ...

    def resume(self) -> None:
        """Hand over what waited for an adapter that is there now."""
        ...


class Adapter:
    """One adapter, as the room sees it: a `neuron.memory.wish.Tenant`.

    Args:
        number: among the adapters of its model, from 1.
        need: what it asks of the devices of that.
        turn_seconds: that it serves before it leaves though it is in use.
        pause: in which nobody leaves for it, where it could not be read.
        line: the requests of the model.
        asked: called when it is to leave, or to stay.
    """

    def __init__(
        self,
        number: int,
        name: str,
        need: Need,
        turn_seconds: float,
        pause: Pause,
        line: Line,
        asked: Callable[[], None],
    ) -> None:
        self.id = need.model
        self.number, self.name = number, name
        # not there; in the line for memory; being read; there; there, and taking nothing new; being removed
        self.status: Literal["absent", "waiting", "loading", "ready", "leaving", "dropping"] = "absent"
        self.ready_at = 0.0
        self.reload_seconds = 0.0
        self.last_used = 0.0
        self.pause = pause
        self._need = need
        self._turn_seconds = turn_seconds
        self._line = line
        self._asked = asked
        self._use = RecentUse()

    @property
    def wanted(self) -> bool:
        """Whether a request waits for it."""
        return bool(self._line.with_adapter(self.number, "waiting"))

    @property
    def in_use(self) -> bool:
        """Whether the worker has a sequence that uses it."""
        return bool(self._line.with_adapter(self.number, "queued", "running"))

    def use(self) -> None:
        """A request is handed over that uses it."""
        self.last_used = time.monotonic()
        self._use.add(self.last_used)

    # --- for the room -----------------------------------------------------------------------------------

    def need(self, runtime: Mapping[str, int]) -> Need:
        return self._need

    def holder(self, reserved: dict[str, int]) -> Holder:
        now = time.monotonic()
        return Holder(
            model=self.id,
            reserved=reserved,
            priority=self._need.priority,
            last_used=self.last_used,
            busy=self.status in ("waiting", "loading") or self.in_use,
            leaving=self.status in ("leaving", "dropping"),
            reload_seconds=self.reload_seconds,
            recent_use=self._use.at(now),
            recent_requests=self._use.requests(now),
        )

    @property
    def turn_ends(self) -> float | None:
        if self.status not in ("ready", "leaving"):
            return None
        return self.ready_at + self.turn_seconds

    @property
    def turn_seconds(self) -> float:
        return residency(self._turn_seconds, self.reload_seconds)

    @property
    def waits_since(self) -> float:
        return self._line.waits_since(self.number)

    def refuse(self, since: float, error: CortexError) -> bool:
        return self._line.refuse(since, error, self.number)

    @property
    def turn_left(self) -> float:
        if (ends := self.turn_ends) is not None:
            return max(0.0, ends - time.monotonic())
        return self.reload_seconds + self.turn_seconds

    @property
    def seconds_to_leave(self) -> float:
        return self.turn_left if self.in_use else 0.0

    def give_way(self) -> None:
        if self.status == "ready":
            self.status = "leaving"
            self._asked()

    def interrupt(self) -> None:
        if self.status == "leaving":
            self._line.interrupt_adapter(self.number)
            self._asked()

    def stay(self) -> None:
        if self.status == "leaving":
            self.status = "ready"
            self._line.resume()
            self._asked()


class Adapters:
    """Those of one model. They are there from `open` to `stop`, which is as long as a worker group serves.

    Args:
        config: the neuron's.
        room: gives memory.
        line: the requests of the model.
        backoff: how long one that cannot be read is let be.
    """

    def __init__(self, config: NeuronConfig, room: Room, line: Line, backoff: Backoff) -> None:
        self._config = config
        self._room = room
        self._line = line
        self._backoff = backoff
        self._group: Group
        self._most = 0  # in memory at once
        self._all: dict[int, Adapter] = {}  # by number
        # By requests that wait, in the order in which they came, and since when, monotonic.
        self._wanted: dict[Adapter, float] = {}
        # For which one is wanted, until what runs in those that leave for it is interrupted.
        self._patience = FINISHING_SHARE * min(config.memory.wait_seconds, config.queue.wait_seconds)
        self._tasks: dict[Adapter, asyncio.Task[None]] = {}  # bring one up, or remove it
        self._timer: asyncio.TimerHandle | None = None  # until a turn ends, or the patience for it

    def open(self, settings: ModelSettings, description: ModelDescription, fit: Fit, group: Group) -> None:
        """The model is loaded as `fit` says; none of its adapters is."""
        self.close()
        self._group = group
        self._most = settings.max_adapters
        by_rank = map(description.adapter_bytes, fit.split.shares())
        beside = zip(description.adapters, zip(*by_rank, strict=True), strict=True)
        for number, (card, sizes) in enumerate(beside, 1):
            need = Need(
                model=f"{settings.id}:{card.name}",
                ranks=tuple(RankNeed(weights=size) for size in sizes),
                split=fit.split,
                context_length=1,
                max_sequences=1,
                devices=tuple(dict.fromkeys(fit.devices)),
                priority=settings.priority,
                base=settings.id,
            )
            turn = self._config.memory.turn_seconds
            pause = Pause(self._backoff)
            self._all[number] = Adapter(number, card.name, need, turn, pause, self._line, self._look_soon)

    def stop(self) -> None:
        """The group ends. What waits for an adapter waits for the next group."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in self._tasks.values():
            task.cancel()
        self._wanted.clear()
        self._most = 0
        for adapter in self._all.values():
            if adapter.status != "absent":
                adapter.status = "dropping"

    def close(self) -> None:
        """The group has ended, and its memory is free."""
        self.stop()
        for adapter in self._all.values():
            if adapter.status != "absent":
                self._free(adapter)
        self._all.clear()

    # --- telling ----------------------------------------------------------------------------------------

    @property
    def loaded(self) -> list[str]:
        """Names of those that are in memory."""
        return [each.name for each in self._all.values() if each.status in ("ready", "leaving")]

    @property
    def nbytes(self) -> int:
        """Bytes that are booked for them, on all devices."""
        return sum(self._room.held_by(each.id) for each in self._all.values() if each.status != "absent")

    # --- requests ---------------------------------------------------------------------------------------

    def serves(self, request: OpenRequest) -> bool:
        """Whether a request can be handed over; else its adapter is got, and the request waits."""
        adapter = self._all[request.adapter]
        if adapter.status == "ready":
            adapter.use()
            return True
        self._wanted.setdefault(adapter, time.monotonic())
        request.progress(LoadProgress(f"waiting for the adapter {adapter.name}", stage="loading"))
        self._look_soon()
        return False

    def look(self) -> None:
        """Something is not what it was: see who can be read now, and who makes way for that."""
        if not self._all:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wanted = {adapter: since for adapter, since in self._wanted.items() if adapter.wanted}
        self._refuse_failed()
        held = [adapter for adapter in self._all.values() if adapter.status != "absent"]
        for adapter in held:
            if adapter.status == "waiting" and adapter not in self._wanted:
                self._tasks[adapter].cancel()
                self._free(adapter)
            elif adapter.status == "leaving" and not adapter.in_use:
                self._begin(adapter, "dropping", self._drop(adapter))
        absent = [adapter for adapter in self._wanted if adapter.status == "absent"]
        places = max(0, self._most - len(held))
        for adapter in absent[:places]:
            self._begin(adapter, "waiting", self._bring_up(adapter))
        going = [adapter for adapter in held if adapter.status in ("leaving", "dropping")]
        moments: list[float] = []
        for adapter, wanted in zip(sorted(going, key=lambda a: a.ready_at), absent[places:], strict=False):
            moments.append(self._wanted[wanted] + self._patience)
            if moments[-1] <= time.monotonic():
                adapter.interrupt()
        if (short := len(absent) - places - len(going)) > 0:
            moments += self._make_places(short, [adapter for adapter in held if adapter.status == "ready"])
        now = time.monotonic()
        if later := [moment for moment in moments if moment > now]:
            self._timer = asyncio.get_running_loop().call_later(min(later) - now, self.look)

    def pause(self) -> None:
        """The model takes nothing new: nobody waits for memory any more."""
        self._wanted.clear()
        self.look()

    # --- parts of these ---------------------------------------------------------------------------------

    def _refuse_failed(self) -> None:
        """Tell those who want one that could not be read just now, for which others would have to leave."""
        for adapter in list(self._wanted):
            if adapter.status == "absent" and (refusal := adapter.pause.refusal) is not None:
                self._wanted.pop(adapter, None)  # what is told may look, too
                self._fail(adapter, refusal)

    def _look_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self.look)

    def _make_places(self, count: int, ready: list[Adapter]) -> list[float]:
        """Have so many leave: who is not in use, and used longest ago, first; then who has had its turn.
        Returns when the turns of those end that are in use."""
        now = time.monotonic()
        idle = sorted((a for a in ready if not a.in_use), key=lambda a: a.last_used)
        busy = sorted((a for a in ready if a.in_use), key=lambda a: a.ready_at)
        for adapter in [*idle, *(a for a in busy if a.turn_ends <= now)][:count]:
            log.info("adapter makes way model=%s busy=%s", adapter.id, adapter in busy)
            adapter.give_way()
        return [adapter.turn_ends for adapter in busy]

    def _begin(
        self, adapter: Adapter, status: Literal["waiting", "dropping"], work: Coroutine[None, None, None]
    ) -> None:
        adapter.status = status
        self._tasks[adapter] = asyncio.create_task(work)

    async def _bring_up(self, adapter: Adapter) -> None:
        """From a wish for memory to an adapter that every rank has."""
        try:
            fit = await self._room.take(adapter, lambda place: self._tell_place(adapter, place))
            adapter.status = "loading"
            began = time.monotonic()
            reports = await self._read(adapter)
            self._room.correct(
                adapter.id, fit, [MemoryUse(weights=report.nbytes) for report in reports], learn=False
            )
            adapter.ready_at = time.monotonic()
            adapter.reload_seconds = adapter.ready_at - began
            adapter.status = "ready"
            adapter.pause.end()
            log.info(
                "adapter loaded model=%s seconds=%.3f bytes=%d",
                adapter.id,
                adapter.reload_seconds,
                sum(report.nbytes for report in reports),
            )
        except CortexError as error:
            log.warning("adapter cannot be used model=%s reason=%s", adapter.id, error)
            if adapter.status == "loading" and error.code != Code.INSUFFICIENT_MEMORY:
                adapter.pause.begin(error)
            self._fail(adapter, error)
            self._free(adapter)
        except Exception as error:
            log.exception("adapter failed unexpectedly model=%s", adapter.id)
            self._fail(adapter, CortexError(Code.INTERNAL, f"loading {adapter.id} failed: {error!r}"))
            self._free(adapter)
        self._line.resume()
        self.look()

    async def _read(self, adapter: Adapter) -> list[AdapterReport]:
        """Have every rank read it.

        Raises:
            CortexError: what a rank says is wrong with it; none has it then.
        """
        deadline = self._config.load_deadline_seconds
        answered = self._group.adapt(LoadAdapter(adapter.number))
        await asyncio.wait([answered], timeout=deadline)
        if not answered.done():  # whoever comes later may be luckier
            late = f"the adapter {adapter.id} was not read within {deadline:g} seconds"
            self._fail(adapter, CortexError(Code.MODEL_LOAD_FAILED, late))
        reports = await answered
        for report in reports:
            if report.code:
                await self._group.adapt(DropAdapter(adapter.number))
                raise CortexError(report.code, f"the adapter {adapter.id} cannot be loaded: {report.message}")
        return reports

    async def _drop(self, adapter: Adapter) -> None:
        """Have every rank give its memory back."""
        await self._group.adapt(DropAdapter(adapter.number))
        log.info("adapter dropped model=%s", adapter.id)
        self._free(adapter)
        self.look()

    def _free(self, adapter: Adapter) -> None:
        adapter.status = "absent"
        self._room.release(adapter.id)

    def _fail(self, adapter: Adapter, error: CortexError) -> None:
        """Whoever waits for it waits in vain."""
        for request in self._line.with_adapter(adapter.number, "waiting"):
            request.fail(error)

    def _tell_place(self, adapter: Adapter, place: Place) -> None:
        message = f"number {place.position} in the line for memory, for the adapter {adapter.name}"
        for request in self._line.with_adapter(adapter.number, "waiting"):
            request.progress(LoadProgress(message, stage="queued", position=place.position))
