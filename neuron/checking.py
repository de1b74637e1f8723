"""Whether a neuron could start with its configuration, and which models would fit where: `neuron check`
without a path."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ipc.errors import CortexError
from ipc.settings import ConfigError
from neuron.catalogue.appraisal import place
from neuron.catalogue.catalogue import Catalogue
from neuron.config import ModelSettings, NeuronConfig
from neuron.description import ModelDescription
from neuron.inspection import notes_on
from neuron.keys import read_keys
from neuron.memory.devices import Inventory
from neuron.memory.fit import Fit
from neuron.memory.ledger import Ledger
from neuron.memory.need import rates_of
from neuron.memory.step_bytes import UNMEASURED_BYTES
from neuron.processes.worker import Worker
from neuron.tenancy.launcher import weight_cache
from neuron.text.outline import added_tokens


class Placed(NamedTuple):
    """A model that fits."""

    settings: ModelSettings
    description: ModelDescription
    fit: Fit


@dataclass(slots=True)
class Placement:
    """What became of the models of a configuration.

    Args:
        notes: what an operator may want to know.
        problems: what of the configuration cannot be served.
    """

    placed: list[Placed] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def place_all(config: NeuronConfig) -> Placement:
    """Read the keys; place pinned models together, in their order, and every other one beside those alone.

    Raises:
        ConfigError: it names a device that is not here.
    """
    inventory = Inventory(config)
    catalogue = Catalogue(config, inventory.devices)
    ledger, copies = Ledger(inventory.devices), weight_cache(config.quantised_cache)
    found = Placement()
    try:
        read_keys(config, "")
    except ConfigError as error:
        found.problems.append(str(error))
    configured = {model.id for model in config.models}
    models = sorted(map(catalogue.settings, catalogue.list_models()), key=lambda model: not model.pin)
    runtime, measured = dict(UNMEASURED_BYTES), ledger.devices != ["cpu"]
    for model in models:
        try:
            if not measured and model.simulated is None:
                runtime["cpu"], measured = Worker.measure("cpu"), True
            free = {device: ledger.free(device) for device in ledger.devices}
            folder, card = catalogue.take(model)
            description, fit = place(model, folder, free, rates_of(inventory.devices), runtime, card=card)
        except OSError as error:
            found.problems.append(f"{model.id}: {error}")
            continue
        except CortexError as error:
            found.problems.append(f"{model.id}: {error.message}")
            continue
        try:
            absent = _absent(model, description)
        except CortexError as error:
            # Known when it is loaded, and until then it is offered.
            unread = found.problems if model.id in configured else found.notes
            unread.append(f"{model.id} cannot be loaded: {error.message}")
            continue
        if model.pin:
            ledger.reserve(model.id, fit.reservations)
        found.placed.append(Placed(model, description, fit))
        found.notes += [f"{model.id}: {note}" for note in (*description.notes, *notes_on(absent))]
        if copies is not None and model.quantization is not None:
            kept = f"what {model.quantization} makes of it is kept in {copies.folder}"
            found.notes.append(f"{model.id}: {kept}")
        if fit.context_length < description.context_length:
            found.notes.append(
                f"{model.id}: the context is cut from {description.context_length} to fit the memory"
            )
    default = config.default_model and catalogue.base(config.default_model)
    if default and default not in (*(model.id for model in models), *catalogue.away):
        found.notes.append(f"default_model: {_why_absent(catalogue, default)}")
    folders = (Path(folder) for folder in config.model_folders)
    absent = [folder for folder in folders if not folder.expanduser().is_dir()]
    found.notes += [f"model_folders: {folder} is no folder, and nothing is found there" for folder in absent]
    found.notes += [f"{name} is not served here: it {reason}" for name, reason in catalogue.not_here.items()]
    found.notes += [f"{name} is not offered: {reason}" for name, reason in catalogue.refused.items()]
    found.notes += [f"{name} is not here, and pulled when it is asked for" for name in catalogue.away]
    return found


def _why_absent(catalogue: Catalogue, model_id: str) -> str:
    """Why a model that is not among those found is not offered; it may come while the neuron runs."""
    try:
        return f"{model_id} is at {catalogue.find(model_id)} and not offered"
    except CortexError as error:
        return error.message


def _absent(model: ModelSettings, description: ModelDescription) -> list[str]:
    """Those tokens of its tokenizer that it does not have.

    Raises:
        CortexError: its texts cannot be read.
    """
    if model.simulated is not None:
        return []
    files = description.text
    tried = files.try_templates()
    return files.absent(added_tokens(Path(files.tokenizer), files.vocabulary_size), tried)
