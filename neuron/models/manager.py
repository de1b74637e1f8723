"""All models of a neuron: put together with what they share, started, told of, ended."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from functools import partial

from ipc.messages.catalogue import Appraisal, FleetCatalogue
from ipc.messages.replies import Quoted
from ipc.messages.state import ModelState, ModelStatus, RankState
from neuron.catalogue.catalogue import Catalogue
from neuron.config import ModelSettings, NeuronConfig
from neuron.description import ModelDescription
from neuron.memory.devices import CpuProbe, Inventory
from neuron.memory.fit import Fit
from neuron.memory.ledger import Ledger
from neuron.memory.parking import Parking, automatic_budget
from neuron.memory.room import Room
from neuron.memory.text_memory import TextMemory
from neuron.models.finder import Finder
from neuron.models.managed import ManagedModel
from neuron.models.residents import Residents
from neuron.preparation.preparation import Preparation
from neuron.processes.backoff import Backoff
from neuron.processes.standby import Standby
from neuron.pulling.pull import Pull
from neuron.pulling.pulls import Pulls
from neuron.requests.progress import LoadProgress
from neuron.tenancy.launcher import Launcher

log = logging.getLogger("neuron.models.manager")

RELIEF_SECONDS = 1.0  # between two looks whether the host runs short of memory


class ModelManager:
    """Owns the models that were found, and what they share: memory, processes, and what is to be fetched.

    Args:
        config: the neuron's.
        inventory: its devices.
        changed: called when a `ModelState` or a device's figures are not what they were; with True where the
            status of a model may be another.
        preparation: makes the text paths of models, in processes that hold memory, too.
        backoff: waits between restarts.

    Attributes:
        finder: knows which models there are.
        room: the memory that they share.
        parking: what stays in the host's memory of those that left.
        searched: whether this host was searched for models once, so that `states` are complete.
    """

    def __init__(
        self,
        config: NeuronConfig,
        inventory: Inventory,
        changed: Callable[..., None],
        preparation: Preparation,
        backoff: Backoff | None = None,
    ) -> None:
        self.searched = False
        self._inventory = inventory
        self._tell_changed = changed
        self._preparation = preparation
        self._models: dict[str, ManagedModel] = {}
        self._watching: asyncio.Task[None] | None = None
        self._relieving: asyncio.Task[None] | None = None
        self._backoff = backoff or Backoff()
        ledger = Ledger(inventory.devices)
        self._standby = Standby(
            ledger,
            enabled=config.standby,
            wanted=self._standby_devices,
            loading=lambda: self._any_is("loading", "restarting", "unloading"),
            working=lambda: any(model.requests.running for model in self._models.values()),
            cycles=lambda: self.room.eviction.defrag_after_cycles,
            backoff=self._backoff,
        )
        memory = CpuProbe().memory
        budget = config.parking
        if budget is None:
            budget = automatic_budget(ledger.devices, min(memory()[1], config.cpu.memory or math.inf))
        self.parking = Parking(budget, ledger, memory, self._on_parked, self._worth_parked, self._used_parked)
        texts = TextMemory(ledger, preparation)
        self.room = Room(config.memory, ledger, inventory, self._standby, changed, self.parking, texts)
        self._catalogue = Catalogue(config, inventory.devices)
        self.finder = Finder(
            config,
            self._catalogue,
            inventory,
            self._models,
            self._build,
            self.parking.drop,
            self._looked,
            self._changed,
        )
        self._residents = Residents(config, self.room, self._models, self.open)
        self._pulls = Pulls(
            config, lambda: self._catalogue.cache, lambda: inventory.devices, self.open, self._changed
        )
        cores = CpuProbe().cores()
        cores = min(cores, config.cpu.cores or cores)
        self._launcher = Launcher(config, cores, self._standby, self.parking)

    def known(self, model_id: str) -> ManagedModel | None:
        """A model that somebody asked for before, by its name or that of one of its adapters."""
        return self.finder.known(model_id)

    def retired(self, model_id: str) -> ManagedModel | None:
        """One that is no longer served, and ends what it has begun."""
        model = self._models.get(model_id)
        return model if model is not None and model.retired else None

    async def open(self, model_id: str) -> ManagedModel:
        """The model of that name, loaded or not; raises as `Finder.open`."""
        return await self.finder.open(model_id)

    async def obtain(self, model_id: str, account: str, tell: Callable[[LoadProgress], None]) -> ManagedModel:
        """The same, for somebody who will have it loaded: its files come first where they may be pulled.

        Args:
            account: who asks.
            tell: told how that goes.
        """
        if (pull := await self.absent(model_id)) is not None:
            await pull.wait(account, tell)
        return await self.open(model_id)

    async def absent(self, model_id: str) -> Pull | None:
        """A model that may be pulled, and is not here."""
        if self.known(model_id) is not None:
            return None
        model_id = self._catalogue.base(model_id)
        settings = self._catalogue.settings(model_id)
        if not settings.pull:
            return None
        if (pull := self._pulls.get(model_id)) is not None:
            return pull
        is_here = await asyncio.to_thread(self._catalogue.is_here, model_id)
        return None if is_here else self._pulls.of(settings)

    def pin(self, model: ManagedModel, pinned: bool) -> None:
        """Load `model` and keep it so, or keep it no longer."""
        self._catalogue.pin(model.id, pinned)
        model.pin(pinned)
        self._residents.call()
        if pinned:
            model.bring_up()  # it may have been called once, and have left since
        self._changed()

    async def appraise(self, said: FleetCatalogue) -> list[Appraisal]:
        """What would become of each model of that catalogue."""
        return await self.finder.appraise(said, self.room.runtime)

    async def start(self) -> None:
        """Find every model, and load those that shall be there."""
        if self.parking.budget:
            log.info("weights may stay in the host's memory bytes=%d", self.parking.budget)
        await self._residents.start()  # the default need not wait until all others are found
        try:
            await self.finder.find_all()
        except Exception:  # those that were found are served, and it is looked for others all the time
            log.exception("models cannot be looked for")
        finally:
            self.searched = True
            self._changed(True)
        self._watching = asyncio.create_task(self.finder.watch())
        if self.parking.budget:
            self._relieving = asyncio.create_task(self._relieve())

    async def close(self) -> None:
        """End every worker process."""
        for task in (self._watching, self._relieving):
            if task is not None:
                task.cancel()
        self._residents.close()
        await self._pulls.close()
        await self.room.close()
        await self._standby.close()
        await asyncio.gather(*(model.close() for model in self._models.values()))
        self.parking.close()

    def states(self) -> list[ModelState]:
        """Every model that is known, and those that are broken."""
        broken = [
            ModelState(id=name, status="failed", error=why)
            for name, why in self.finder.broken.items()
            if name not in self._models
        ]
        away = [state for state in self._pulls.states() if state.id not in self._models]
        return [model.state() for model in self._models.values()] + broken + away

    def prefixes(self) -> dict[str, dict[bytes, int]]:
        """Of each model the marks of prompts that its worker holds, and their tokens."""
        return {
            model.id: whole
            for model in self._models.values()
            if model.prefixes is not None and (whole := model.prefixes.whole())
        }

    def take_prefix_news(self) -> dict[str, dict[bytes, int]]:
        """How that changed since the last call; 0 tokens: no longer."""
        return {
            model.id: news
            for model in self._models.values()
            if model.prefixes is not None and (news := model.prefixes.take_news())
        }

    def ranks(self) -> dict[str, list[RankState]]:
        """The processes of every model that has any."""
        return {model.id: ranks for model in self._models.values() if (ranks := model.ranks())}

    @property
    def cuda_unavailable(self) -> str | None:
        """Why a GPU that is here cannot be used."""
        return self._inventory.cuda_unavailable

    async def quote(self, model: ManagedModel, request_id: int) -> Quoted:
        """What it would take to serve `model` now."""
        quoted = partial(Quoted, id=request_id, queue=model.requests.waiting)
        if model.status == "ready":
            return quoted(verdict="ready", seconds=0.0, bytes=self.room.held_by(model.id))
        if model.status in ("waiting", "loading", "restarting"):
            verdict = "waits" if model.is_in_line else "loading"
            return quoted(verdict=verdict, seconds=model.seconds_left, bytes=self.room.held_by(model.id))
        prospect = await self.room.prospect(model.tenant)
        if prospect.fit is None:
            error = prospect.refusal
            return quoted(verdict="refused", code=error.code, message=error.message)
        wakes = model.tenant.wakes(prospect.fit)
        load = self._load_seconds(model, prospect.fit, wakes)
        return quoted(
            verdict=prospect.verdict,
            seconds=prospect.seconds + load if load is not None else None,
            evicts=list(prospect.fit.victims),
            bytes=sum(prospect.fit.reservations.values()),
            ahead=prospect.ahead,
            loss=prospect.loss,
            parked=wakes,
        )

    def _load_seconds(self, model: ManagedModel, fit: Fit, wakes: bool) -> float | None:
        """How long a load of `model` should take; None where nothing like it was loaded yet."""
        if seconds := model.tenant.seconds_of_load(wakes=wakes):
            return seconds
        kind = fit.devices[0].partition(":")[0]
        like = [
            other
            for other in self._models.values()
            if other.load_seconds and other.description.bytes_weights and other.loaded_on == kind
        ]
        if not like:
            return None
        rate = sum(o.description.bytes_weights for o in like) / sum(o.load_seconds for o in like)
        return model.description.bytes_weights / rate

    def _build(self, settings: ModelSettings, description: ModelDescription) -> ManagedModel:
        self._standby.tend()
        return ManagedModel(
            settings,
            description,
            self.room,
            self._launcher,
            self._backoff,
            self._changed,
            self._preparation.read_text,
            self._preparation.forget_text,
        )

    def _looked(self) -> None:
        """It was seen which models there are."""
        self._pulls.keep(self._catalogue.away)
        self._residents.call()

    async def _relieve(self) -> None:
        """Give what is parked back as soon as the host is short of it, though nobody asks this neuron."""
        while True:
            await asyncio.sleep(RELIEF_SECONDS)
            try:
                self.parking.relieve()
            except Exception:  # a later look may do better
                log.exception("the host's memory cannot be relieved of what is parked")

    def _standby_devices(self) -> list[str]:
        """Where some model may be loaded next that a waiting process is of use for.

        One that is loaded leaves its own process when it goes.
        """
        everywhere = [device.id for device in self._inventory.devices]
        default = [device for device in everywhere if device != "cpu"] or everywhere
        chosen = [
            device
            for model in self._models.values()
            if model.description.engine == "transformer" and model.status not in ("ready", "draining")
            for device in model.settings.devices or default
        ]
        return [device for device in everywhere if device in chosen]

    def _on_parked(self, model_id: str) -> None:
        if (model := self._models.get(model_id)) is not None:
            model.tell_parked()

    def _worth_parked(self, model_id: str) -> float:
        model = self._models.get(model_id)
        return (
            model.tenant.worth_parked if model is not None and self.room.eviction.strategy != "lru" else 0.0
        )

    def _used_parked(self, model_id: str) -> float:
        model = self._models.get(model_id)
        return model.tenant.last_used if model is not None else 0.0

    def _changed(self, now: bool = False) -> None:
        self._residents.look()
        self._tell_changed(now)

    def _any_is(self, *statuses: ModelStatus) -> bool:
        return any(model.status in statuses for model in self._models.values())
