"""All models of a neuron, and the memory that they share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from ipc.errors import Code, CortexError
from ipc.messages import Device, Eviction, ModelState, ModelStatus, Quoted, RankState
from ipc.worker_messages import Ready
from neuron.config import ModelSettings, NeuronConfig
from neuron.memory.devices import CpuProbe, Inventory
from neuron.memory.fit import Fit, Holder, find_fit
from neuron.memory.ledger import Ledger
from neuron.memory.step_bytes import RUNTIME_BYTES
from neuron.models.catalogue import DEMO_FOLDER, Catalogue
from neuron.models.description import ModelDescription, describe
from neuron.models.house import Backoff, House
from neuron.models.managed import ManagedModel
from neuron.processes.standby import Standby

log = logging.getLogger("neuron.models.manager")

MAKE_ROOM_ATTEMPTS = 3  # what was evicted may not be free at once, and others use the devices, too
CUDA_RANK_THREADS = 4  # enough to read and copy weights


class ModelManager:
    """Finds models, makes room for them, and ends them.

    A checkpoint is inspected once, when somebody first asks for it; one that could not be read is inspected
    again by the next who asks.

    Args:
        config: the neuron's.
        inventory: its devices.
        changed: called when a `ModelState` or a device's figures are not what they were.
        backoff: waits between restarts.

    Attributes:
        eviction: how, as the gateway wants it.
        searched: whether this host was searched for models once, so that `states` are complete.
    """

    def __init__(
        self,
        config: NeuronConfig,
        inventory: Inventory,
        changed: Callable[[], None],
        backoff: Backoff | None = None,
    ) -> None:
        self.eviction = Eviction()
        self.searched = False
        self._config = config
        self._inventory = inventory
        self._changed = changed
        self._catalogue = Catalogue(config)
        self._ledger = Ledger(inventory.devices)
        self._models: dict[str, ManagedModel] = {}
        self._broken: dict[str, str] = {}  # ids that are there and cannot be read, and why
        self._drawing: dict[str, asyncio.Future[ModelDescription]] = {}
        self._runtime = dict(RUNTIME_BYTES)  # by kind of device, as the last load measured it
        self._rates: dict[str, float] = {}  # bytes of weights a second, by kind of device, as loads measured
        self._making_room = asyncio.Lock()
        self._refreshing: asyncio.Task[list[Device]] | None = None
        self._cores = min(CpuProbe().cores(), config.cpu.cores or CpuProbe().cores())
        backoff = backoff or Backoff()
        self._standby = Standby(
            self._ledger,
            enabled=config.standby,
            wanted=self._standby_devices,
            loading=lambda: self._any_is("loading", "restarting", "unloading"),
            working=lambda: any(model.requests.running for model in self._models.values()),
            cycles=lambda: self.eviction.defrag_after_cycles,
            backoff=backoff,
        )
        self._house = House(
            config=config,
            reserve=self._reserve,
            correct=self._correct,
            release=self._release,
            threads=self._threads,
            changed=changed,
            backoff=backoff,
            standby=self._standby,
        )

    # --- finding ----------------------------------------------------------------------------------------

    def known(self, model_id: str) -> ManagedModel | None:
        """A model that somebody asked for before."""
        return self._models.get(model_id)

    async def open(self, model_id: str) -> ManagedModel:
        """The model of that name, loaded or not.

        Raises:
            CortexError: MODEL_NOT_FOUND, or MODEL_LOAD_FAILED for a checkpoint that cannot be read.
        """
        if (model := self._models.get(model_id)) is not None:
            return model
        if (drawing := self._drawing.get(model_id)) is None:
            drawing = asyncio.ensure_future(self._draw(model_id))
            self._drawing[model_id] = drawing
            drawing.add_done_callback(lambda _: self._drawing.pop(model_id))
        return await asyncio.shield(drawing)

    async def _draw(self, model_id: str) -> ManagedModel:
        settings = self._catalogue.settings(model_id)
        try:
            description = await asyncio.to_thread(self._inspect, settings)
        except CortexError as error:
            configured = any(model.id == model_id for model in self._config.models)
            if configured or error.code != Code.MODEL_NOT_FOUND:
                self._broken[model_id] = error.message
                self._changed()
            raise
        self._broken.pop(model_id, None)
        model = self._models[model_id] = ManagedModel(settings, description, self._house)
        self._standby.tend()
        self._changed()
        return model

    def _inspect(self, settings: ModelSettings) -> ModelDescription:
        folder = DEMO_FOLDER if settings.simulated is not None else self._catalogue.find(settings.id)
        return describe(settings, folder)

    async def find_all(self) -> None:
        """Get to know every model that is on this host now."""
        for model_id in await asyncio.to_thread(self._catalogue.list_models):
            try:
                await self.open(model_id)
            except CortexError as error:
                log.warning("model cannot be used model=%s reason=%s", model_id, error)

    async def start(self) -> None:
        """Find every model, and load the pinned ones."""
        try:
            await self.find_all()
        finally:
            self.searched = True
            self._changed()
        for model in self._models.values():
            if model.settings.pin:
                model.bring_up()

    async def close(self) -> None:
        """End every worker process."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        await self._standby.close()
        await asyncio.gather(*(model.close() for model in self._models.values()))

    # --- telling ----------------------------------------------------------------------------------------

    def states(self) -> list[ModelState]:
        """Every model that is known, and those that are broken."""
        broken = [
            ModelState(id=model_id, status="failed", error=why) for model_id, why in self._broken.items()
        ]
        return [model.state() for model in self._models.values()] + broken

    def ranks(self) -> dict[str, list[RankState]]:
        """The processes of every model that has any."""
        return {model.id: ranks for model in self._models.values() if (ranks := model.ranks())}

    def devices(self) -> list[Device]:
        """Devices with the newest figures that are there, and what the ledger has booked."""
        return [
            msgspec.structs.replace(device, memory_reserved=self._ledger.reserved(device.id))
            for device in self._inventory.devices
        ]

    @property
    def cuda_unavailable(self) -> str | None:
        """Why a GPU that is here cannot be used."""
        return self._inventory.cuda_unavailable

    async def refresh_devices(self) -> list[Device]:
        """`devices` with new figures; read in a thread, for a driver may take its time."""
        self._ledger.observe(await asyncio.to_thread(self._inventory.refresh))
        self._changed()
        return self.devices()

    async def quote(self, model: ManagedModel, request_id: int) -> Quoted:
        """What it would take to serve `model` now."""
        queue = model.requests.waiting
        if model.status in ("ready", "loading", "waiting", "restarting"):
            verdict = "ready" if model.status == "ready" else "loading"
            seconds = 0.0 if verdict == "ready" else model.seconds_left
            size = sum(self._ledger.held_by(model.id).values())
            return Quoted(id=request_id, verdict=verdict, seconds=seconds, bytes=size, queue=queue)
        await self.refresh_devices()
        need = model.description.need(model.settings, self._runtime)
        holders = self._holders()
        leaving = [
            replace(holder, evictable=not self._models[holder.model].settings.pin) for holder in holders
        ]
        for verdict, candidates in (("fits", []), ("evicts", holders), ("waits", leaving)):
            try:
                fit = find_fit(need, self._free(), candidates, self.eviction.strategy)
            except CortexError as error:
                refusal = error
            else:
                kind = fit.devices[0].partition(":")[0]
                return Quoted(
                    id=request_id,
                    verdict=verdict,
                    seconds=self._load_seconds(model, kind),
                    evicts=list(fit.victims),
                    bytes=sum(fit.reservations.values()),
                    queue=queue,
                )
        return Quoted(
            id=request_id, verdict="refused", code=refusal.code, message=refusal.message, queue=queue
        )

    def _load_seconds(self, model: ManagedModel, kind: str) -> float | None:
        """How long a load of `model` would take; None where nothing like it was loaded yet."""
        if model.load_seconds is not None:
            return model.load_seconds
        rate = self._rates.get(kind)
        return model.description.bytes_weights / rate if rate else None

    # --- room -------------------------------------------------------------------------------------------

    async def _reserve(self, model: ManagedModel) -> Fit:
        """Book what `model` needs, after others left for it where they must."""
        async with self._making_room:
            for _ in range(MAKE_ROOM_ATTEMPTS):
                await self.refresh_devices()
                need = model.description.need(model.settings, self._runtime)
                fit = find_fit(need, self._free(), self._holders(), self.eviction.strategy)
                if not fit.victims:
                    reuse = model.description.engine == "transformer"
                    await self._standby.make_way(fit.reservations, reuse=reuse)
                    self._ledger.reserve(model.id, fit.reservations)
                    return fit
                log.info("evicting models=%s for=%s", ",".join(fit.victims), model.id)
                await asyncio.gather(*[self._models[victim].unload() for victim in fit.victims])
        raise CortexError(
            Code.INSUFFICIENT_MEMORY,
            f"the memory of {', '.join(fit.victims)} did not come back for {model.id}",
            retry_after=5.0,
        )

    def _free(self) -> dict[str, int]:
        """Bytes by device that a model could have: processes that wait make way for it."""
        return {
            device: self._ledger.free(device) + self._standby.booked(device)
            for device in self._ledger.devices
        }

    def _holders(self) -> list[Holder]:
        return [
            Holder(
                model=model.id,
                reserved=held,
                evictable=model.idle and not model.settings.pin,
                priority=model.settings.priority,
                last_used=model.last_used,
            )
            for model in self._models.values()
            if (held := self._ledger.held_by(model.id))
        ]

    def _correct(self, model: ManagedModel, ready: Sequence[Ready]) -> None:
        kind = model.fit.devices[0].partition(":")[0]
        if model.load_seconds and model.description.bytes_weights:
            self._rates[kind] = model.description.bytes_weights / model.load_seconds
        if model.description.overhead is not None:
            self._runtime[kind] = max(report.memory.runtime for report in ready)
        for device in dict.fromkeys(model.fit.devices):
            measured = sum(
                report.memory.total
                for name, report in zip(model.fit.devices, ready, strict=True)
                if name == device
            )
            self._ledger.correct(model.id, device, measured)
        self._standby.tend()
        self._refresh_soon()

    def _release(self, model: ManagedModel) -> None:
        self._ledger.release(model.id)
        self._standby.settle()
        self._standby.tend()
        self._refresh_soon()

    def _refresh_soon(self) -> None:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self.refresh_devices())

    def _standby_devices(self) -> list[str]:
        """Where some model may be loaded that a waiting process is of use for."""
        everywhere = self._ledger.devices
        default = [device for device in everywhere if device != "cpu"] or everywhere
        chosen = [
            device
            for model in self._models.values()
            if model.description.engine == "transformer"
            for device in model.settings.devices or default
        ]
        return [device for device in everywhere if device in chosen]

    def _any_is(self, *statuses: ModelStatus) -> bool:
        return any(model.status in statuses for model in self._models.values())

    def _threads(self, fit: Fit) -> int:
        """CPU threads of each rank."""
        share = max(1, self._cores // len(fit.devices))
        return share if fit.devices[0] == "cpu" else min(share, CUDA_RANK_THREADS)
