"""Which models there are: looked for on this host's disks, inspected, known, renewed and forgotten."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from ipc.errors import Code, CortexError
from ipc.messages.catalogue import Appraisal, FleetCatalogue
from ipc.messages.replies import CatalogueReply
from neuron.catalogue.appraisal import appraise
from neuron.catalogue.catalogue import Catalogue, Signature
from neuron.catalogue.succession import Succession
from neuron.config import ModelSettings, NeuronConfig
from neuron.description import ModelDescription, describe
from neuron.memory.devices import Inventory
from neuron.models.managed import ManagedModel

log = logging.getLogger("neuron.models.finder")

SCAN_SECONDS = 2.0  # between two looks for models that came or went
SCAN_SHARE = 20.0  # times as long as one look takes, at least,
WORK_SHARE = 125.0  # and as what it takes of a core, but no longer than
MOST_SCAN_SECONDS = 30.0
READ_SECONDS = 0.5  # for which new models are read before those are known; longer by so much each time


class Refused(NamedTuple):
    """What a model could not be served with, and why."""

    signature: Signature
    settings: ModelSettings
    why: str

    def is_of(self, signature: Signature, settings: ModelSettings) -> bool:
        """Whether nothing is otherwise by now."""
        return (self.signature, self.settings) == (signature, settings)


class Finder:
    """Keeps the models that are known in step with this host's disks and with what is said of them.

    A checkpoint is inspected when it is found or first asked for, and again when its files changed; one that
    could not be read is inspected again by the next who asks.

    Args:
        config: the neuron's.
        catalogue: where its models are.
        inventory: its devices.
        models: all that are known, by id. They are added and taken away here.
        build: makes a model of its settings and what its files are.
        drop: called with the id of a model that is forgotten.
        looked: called after each look.
        changed: called when a `ModelState` is not what it was, or one came or went.

    Attributes:
        broken: models that are there and cannot be read, by id, and why.
    """

    def __init__(
        self,
        config: NeuronConfig,
        catalogue: Catalogue,
        inventory: Inventory,
        models: dict[str, ManagedModel],
        build: Callable[[ModelSettings, ModelDescription], ManagedModel],
        drop: Callable[[str], None],
        looked: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        self.broken: dict[str, str] = {}
        self._catalogue = catalogue
        self._inventory = inventory
        self._models = models
        self._build = build
        self._drop = drop
        self._looked = looked
        self._changed = changed
        self._own = config
        self._fleet: Succession[FleetCatalogue] = Succession("catalogue")
        self._configured = True  # by what is said now
        self._seen: dict[str, Signature] = {}  # of every model that was found, when it was inspected
        self._missed: set[str] = set()  # models in use whose files were not there at the last look
        self._refused: dict[str, Refused] = {}  # models that could not be served as they are wanted
        self._finding = asyncio.Lock()
        self._opening: dict[str, asyncio.Future[ManagedModel]] = {}

    @property
    def catalogue_version(self) -> str:
        """Of the gateways' catalogue that counts; "" before there is one."""
        return self._fleet.current.version if self._fleet.current is not None else ""

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
                self.broken[model_id] = error.message
                self._changed()
            if error.code == Code.MODEL_NOT_FOUND and model_id in self._models:
                text = f"the model {model_id!r} is no longer served here; what it has begun ends"
                details = {"model": model_id}
                raise CortexError(Code.MODEL_NOT_FOUND, text, param="model", details=details) from error
            raise
        for note in description.notes:
            log.warning("model is not as its files have it model=%s note=%s", model_id, note)
        self.broken.pop(model_id, None)
        if (model := self._models.get(model_id)) is not None:  # it was to leave for good
            model.renew(settings, description)
            return model
        model = self._models[model_id] = self._build(settings, description)
        self._changed()
        return model

    def _inspect(self, settings: ModelSettings) -> ModelDescription:
        folder, card = self._catalogue.take(settings)
        try:
            return describe(settings, folder, card)
        except CortexError:
            raise
        except Exception as error:  # whatever is in its files costs no other model
            log.exception("model cannot be inspected model=%s folder=%s", settings.id, folder)
            message = f"{folder} cannot be inspected: {type(error).__name__}: {error}; the log has more"
            raise CortexError(Code.MODEL_LOAD_FAILED, message) from error

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
            self._changed()  # other gateways hear whose catalogue counts
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

    async def appraise(self, said: FleetCatalogue, runtime: Mapping[str, int]) -> list[Appraisal]:
        """What would become of each model of that catalogue; `runtime` as `appraisal.appraise` has it."""
        catalogue = Catalogue(self._own, self._inventory.devices)
        catalogue.configure(self._own, said)
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
        """The same; what was found. It is known part by part, where there is much to read."""
        found = await self._find_some(seconds := READ_SECONDS)
        while self._catalogue.unread:
            found = await self._find_some(seconds := seconds + READ_SECONDS)
        await self._retire_gone()
        self._looked()
        return found

    async def _find_some(self, seconds: float) -> dict[str, Signature]:
        """What was found, but for what could not be read in that time."""
        found = await asyncio.to_thread(self._catalogue.scan, seconds)
        for model_id in [*{**self._seen, **self._models, **self.broken}]:
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
        return found

    async def _retire_gone(self) -> None:
        """Have those in use leave for good whose files were deleted: they were missed twice, for somebody may
        just be putting others in their place."""
        in_use = [model for model in self._models.values() if model.in_use and not model.retired]
        gone = await asyncio.to_thread(lambda: {model.id for model in in_use if self._is_gone(model.wanted)})
        for model_id in gone & self._missed:
            log.warning("model leaves, for its files were deleted model=%s", model_id)
            self._models[model_id].retire()
        self._missed = gone - self._missed

    def _is_gone(self, settings: ModelSettings) -> bool:
        try:
            self._catalogue.folder(settings)
        except CortexError:
            return True
        return False

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
            model.forget()
        for known in (self._models, self.broken, self._refused):
            known.pop(model_id, None)
        self._drop(model_id)
        log.info("model forgotten, or to be read again model=%s", model_id)
        self._changed()
        return True

    async def watch(self) -> None:
        """Find models as they come and go, until it is cancelled."""
        while True:
            try:
                await self.find_all()
            except OSError as error:
                log.warning("models cannot be looked for reason=%s", error)
            except Exception:  # a later look may do better
                log.exception("models cannot be looked for")
            await asyncio.sleep(pause(self._catalogue.looked, self._catalogue.worked))


def pause(looked: float, worked: float) -> float:
    """Seconds until the next look, after one that took so many, and so many of CPU time."""
    return min(max(SCAN_SECONDS, SCAN_SHARE * looked, WORK_SHARE * worked), MOST_SCAN_SECONDS)
