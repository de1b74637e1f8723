"""All models of a neuron: found, opened, told of."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from ipc.errors import Code, CortexError
from ipc.messages.catalogue import Appraisal, FleetCatalogue
from ipc.messages.replies import CatalogueReply, Quoted
from ipc.messages.state import ModelState, ModelStatus, RankState
from neuron.catalogue.appraisal import appraise
from neuron.catalogue.catalogue import DEMO_FOLDER, Catalogue, Signature
from neuron.catalogue.succession import Succession
from neuron.config import ModelSettings, NeuronConfig
from neuron.description import ModelDescription, describe
from neuron.memory.devices import CpuProbe, Inventory
from neuron.memory.fit import Fit
from neuron.memory.ledger import Ledger
from neuron.memory.parking import Parking, automatic_budget
from neuron.memory.room import Room
from neuron.memory.text_memory import TextMemory
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

SCAN_SECONDS = 2.0  # between two looks for models that came or went
RELIEF_SECONDS = 1.0  # between two looks whether the host runs short of memory
SCAN_SHARE = 20.0  # times as long as one look takes, at least, but no longer than
MOST_SCAN_SECONDS = 30.0


class Refused(NamedTuple):
    """What a model could not be served with, and why."""

    signature: Signature
    settings: ModelSettings
    why: str

    def is_of(self, signature: Signature, settings: ModelSettings) -> bool:
        """Whether nothing is otherwise by now."""
        return (self.signature, self.settings) == (signature, settings)


class ModelManager:
    """Finds models, makes room for them, and ends them.

    A checkpoint is inspected when it is found or first asked for, and again when its files changed; one that
    could not be read is inspected again by the next who asks.

    Args:
        config: the neuron's.
        inventory: its devices.
        changed: called when a `ModelState` or a device's figures are not what they were; with True where the
            status of a model may be another.
        preparation: makes the text paths of models, in processes that hold memory, too.
        backoff: waits between restarts.

    Attributes:
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
        self._own = config
        self._fleet = Succession()
        self._catalogue = Catalogue(config, inventory.devices)
        self._configured = True  # by what is said now
        self._models: dict[str, ManagedModel] = {}
        self._broken: dict[str, str] = {}  # ids that are there and cannot be read, and why
        self._seen: dict[str, Signature] = {}  # of every model that was found, when it was inspected
        self._refused: dict[str, Refused] = {}  # models that could not be served as they are wanted
        self._finding = asyncio.Lock()
        self._scan_took = 0.0  # seconds
        self._watching: asyncio.Task[None] | None = None
        self._relieving: asyncio.Task[None] | None = None
        self._opening: dict[str, asyncio.Future[ManagedModel]] = {}
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
        self._residents = Residents(config, self.room, self._models, self.open)
        self._pulls = Pulls(config, self._cache, lambda: inventory.devices, self.open, self._changed)
        cores = CpuProbe().cores()
        cores = min(cores, config.cpu.cores or cores)
        self._launcher = Launcher(config, cores, self._standby, self.parking)

    # --- finding ----------------------------------------------------------------------------------------

    def known(self, model_id: str) -> ManagedModel | None:
        """A model that somebody asked for before, by its name or that of one of its adapters."""
        model = self._models.get(model_id) or self._models.get(self._catalogue.base(model_id))
        return None if model is not None and model.retired else model

    async def open(self, model_id: str) -> ManagedModel:
        """The model of that name, loaded or not; of an adapter's name its base.

        Raises:
            CortexError: MODEL_NOT_FOUND, or MODEL_LOAD_FAILED for a checkpoint that cannot be read.
        """
        if (model := self.known(model_id)) is not None:
            return model
        model_id = self._catalogue.base(model_id)
        if (opening := self._opening.get(model_id)) is None:
            opening = asyncio.ensure_future(self._describe(model_id))
            self._opening[model_id] = opening
            opening.add_done_callback(partial(self._opened, model_id))
        return await asyncio.shield(opening)

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

    def _cache(self) -> Path:
        return self._catalogue.cache

    def _opened(self, model_id: str, opening: asyncio.Future[ManagedModel]) -> None:
        del self._opening[model_id]
        if not opening.cancelled():
            opening.exception()  # those who waited have it, and may all be gone

    async def _describe(self, model_id: str) -> ManagedModel:
        settings = self._catalogue.settings(model_id)
        try:
            description = await asyncio.to_thread(self._inspect, settings)
        except CortexError as error:
            away = settings.pull and error.code == Code.MODEL_NOT_FOUND
            if self._catalogue.is_own(model_id) and not away:  # whose user waits to see it
                self._broken[model_id] = error.message
                self._changed()
            raise
        for note in description.notes:
            log.warning("model is not as its files have it model=%s note=%s", model_id, note)
        self._broken.pop(model_id, None)
        if (model := self._models.get(model_id)) is not None:  # it was to leave for good
            model.renew(settings, description)
            return model
        model = self._models[model_id] = ManagedModel(
            settings,
            description,
            self.room,
            self._launcher,
            self._backoff,
            self._changed,
            self._preparation.read_text,
            self._preparation.forget_text,
        )
        self._standby.tend()
        self._changed()
        return model

    def _inspect(self, settings: ModelSettings) -> ModelDescription:
        folder = DEMO_FOLDER if settings.simulated is not None else self._catalogue.find(settings.id)
        try:
            return describe(settings, folder)
        except CortexError:
            raise
        except Exception as error:  # whatever is in its files costs no other model
            log.exception("model cannot be inspected model=%s folder=%s", settings.id, folder)
            message = f"{folder} cannot be inspected: {type(error).__name__}: {error}; the log has more"
            raise CortexError(Code.MODEL_LOAD_FAILED, message) from error

    def pin(self, model: ManagedModel, pinned: bool) -> None:
        """Load `model` and keep it so, or keep it no longer."""
        self._catalogue.pin(model.id, pinned)
        model.pin(pinned)
        self._residents.call()
        if pinned:
            model.bring_up()  # it may have been called once, and have left since
        self._changed()

    async def configure(self, config: NeuronConfig) -> None:
        """Serve by what the neuron's own file says of models now; the rest of it counts from a start."""
        self._own = config
        self._configured = False
        await self._configure()

    async def take_catalogue(self, said: FleetCatalogue, request_id: int) -> CatalogueReply:
        """Serve by what a gateway says of models, where it is the one that counts; which one that is."""
        if self._fleet.take(said):
            log.info(
                "catalogue counts version=%s origin=%s models=%d", said.version, said.origin, len(said.models)
            )
            self._configured = False
        await asyncio.shield(asyncio.ensure_future(self._configure()))  # whoever said it may be gone by now
        counts = self._fleet.current
        unreadable = {m.id: self._refused[m.id].why for m in counts.models if m.id in self._refused}
        return CatalogueReply(
            id=request_id,
            version=counts.version,
            origin=counts.origin,
            own=self._catalogue.differs,
            refused=unreadable | self._catalogue.not_here,
        )

    async def appraise(self, said: FleetCatalogue) -> list[Appraisal]:
        """What would become of each model of that catalogue."""
        catalogue = Catalogue(self._own, self._inventory.devices)
        catalogue.configure(self._own, said)
        runtime = self.room.runtime
        return await asyncio.to_thread(appraise, catalogue, said, self._inventory.devices, runtime)

    async def _configure(self) -> None:
        """Go by what the neuron's own file and the gateways say by now, unless that is done."""
        async with self._finding:
            if self._configured:
                return
            self._catalogue.configure(self._own, self._fleet.current)
            self._configured = True
            found = await self._find_all()
            for model in [model for model in self._models.values() if model.id not in found]:
                model.retire()

    async def find_all(self) -> None:
        """Get to know every model that is on this host now, and forget those that are gone.

        A folder whose files changed is inspected again; one that is not whole is none, until it is.
        """
        async with self._finding:
            await self._find_all()

    async def _find_all(self) -> dict[str, Signature]:
        """The same; what was found."""
        began = monotonic()
        found = await asyncio.to_thread(self._catalogue.scan)
        self._scan_took = monotonic() - began  # without what it takes to inspect what is new, once
        for model_id in [*{**self._seen, **self._models, **self._broken}]:
            as_it_was = model_id in found and self._seen.get(model_id) in (None, found[model_id])
            if as_it_was and (refused := self._refused.get(model_id)) is not None:
                as_it_was = refused.is_of(found[model_id], self._catalogue.settings(model_id))
            if not as_it_was and self._forget(model_id):
                self._seen.pop(model_id, None)
        for model_id, signature in found.items():
            if (model := self._models.get(model_id)) is not None:
                await self._renew(model, signature)
            if model_id in self._seen:
                continue
            self._seen[model_id] = signature
            try:
                await self.open(model_id)
            except CortexError as error:
                self._refused[model_id] = Refused(
                    signature, self._catalogue.settings(model_id), error.message
                )
                log.warning("model cannot be used model=%s reason=%s", model_id, error)
        self._pulls.keep(self._catalogue.away)
        self._residents.call()
        return found

    async def _renew(self, model: ManagedModel, signature: Signature) -> None:
        """Have `model` served as it is wanted now."""
        settings = self._catalogue.settings(model.id)
        if settings == model.wanted and not model.retired:
            self._refused.pop(model.id, None)
            return
        if model.id in self._refused and self._refused[model.id].is_of(signature, settings):
            return
        try:
            description = await asyncio.to_thread(self._inspect, settings)
        except CortexError as error:
            self._refused[model.id] = Refused(signature, settings, error.message)
            log.warning("model stays as it was model=%s reason=%s", model.id, error)
            return
        self._refused.pop(model.id, None)
        self._seen[model.id] = signature
        model.renew(settings, description)

    def _forget(self, model_id: str) -> bool:
        """Know nothing of a model any more; False while somebody has to do with it."""
        model = self._models.get(model_id)
        if model is not None and model.in_use:
            return False
        if model is not None:
            model.drop_text()
        for known in (self._models, self._broken, self._refused):
            known.pop(model_id, None)
        self.parking.drop(model_id)
        log.info("model forgotten, or to be read again model=%s", model_id)
        self._changed()
        return True

    async def _watch(self) -> None:
        """Find models as they come and go."""
        while True:
            try:
                await self.find_all()
            except OSError as error:
                log.warning("models cannot be looked for reason=%s", error)
            except Exception:  # a later look may do better
                log.exception("models cannot be looked for")
            await asyncio.sleep(min(max(SCAN_SECONDS, SCAN_SHARE * self._scan_took), MOST_SCAN_SECONDS))

    async def _relieve(self) -> None:
        """Give what is parked back as soon as the host is short of it, though nobody asks this neuron."""
        while True:
            await asyncio.sleep(RELIEF_SECONDS)
            try:
                self.parking.relieve()
            except Exception:  # a later look may do better
                log.exception("the host's memory cannot be relieved of what is parked")

    async def start(self) -> None:
        """Find every model, and load those that shall be there."""
        if self.parking.budget:
            log.info("weights may stay in the host's memory bytes=%d", self.parking.budget)
        try:
            await self.find_all()
        except Exception:  # those that were found are served, and it is looked for others all the time
            log.exception("models cannot be looked for")
        finally:
            self.searched = True
            self._changed()
        await self._residents.start()
        self._watching = asyncio.create_task(self._watch())
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

    # --- telling ----------------------------------------------------------------------------------------

    def states(self) -> list[ModelState]:
        """Every model that is known, and those that are broken."""
        broken = [
            ModelState(id=model_id, status="failed", error=why) for model_id, why in self._broken.items()
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
        prospect = await self.room.prospect(model)
        if prospect.fit is None:
            error = prospect.refusal
            return quoted(verdict="refused", code=error.code, message=error.message)
        load = self._load_seconds(model, prospect.fit)
        return quoted(
            verdict=prospect.verdict,
            seconds=prospect.seconds + load if load is not None else None,
            evicts=list(prospect.fit.victims),
            bytes=sum(prospect.fit.reservations.values()),
            ahead=prospect.ahead,
            loss=prospect.loss,
            parked=model.bytes_parked > 0,
        )

    def _load_seconds(self, model: ManagedModel, fit: Fit) -> float | None:
        """How long a load of `model` should take; None where nothing like it was loaded yet."""
        if model.reload_seconds:
            return model.reload_seconds
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

    # --- for processes that wait ------------------------------------------------------------------------

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
        return model.worth_parked if model is not None and self.room.eviction.strategy != "lru" else 0.0

    def _used_parked(self, model_id: str) -> float:
        model = self._models.get(model_id)
        return model.last_used if model is not None else 0.0

    def _changed(self, now: bool = False) -> None:
        self._residents.look()
        self._tell_changed(now)

    def _any_is(self, *statuses: ModelStatus) -> bool:
        return any(model.status in statuses for model in self._models.values())
