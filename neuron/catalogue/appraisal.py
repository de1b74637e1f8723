"""What would become of the models of a catalogue on this host, before it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ipc.errors import Code, CortexError
from ipc.messages.catalogue import Appraisal, FleetCatalogue
from ipc.messages.state import Device
from neuron.catalogue.catalogue import Catalogue
from neuron.config import ModelSettings
from neuron.description import ModelDescription, describe
from neuron.memory.fit import Fit, find_fit
from neuron.memory.need import rates_of
from workers.checkpoints.card import ModelCard

_VERDICTS = {Code.MODEL_NOT_FOUND: "missing", Code.MODEL_TOO_LARGE: "too_large"}


def appraise(
    catalogue: Catalogue, said: FleetCatalogue, devices: Sequence[Device], runtime: Mapping[str, int]
) -> list[Appraisal]:
    """One for each model of `said`, those that only other hosts serve included. Reads headers; for a thread.

    Args:
        catalogue: of this host, with `said` in it.
        runtime: bytes of a process without a model, by kind of device.
    """
    free, rates = {device.id: device.memory_total for device in devices}, rates_of(devices)
    names = [*(model.id for model in said.models), *said.elsewhere]
    return [_appraise(name, catalogue, free, rates, runtime) for name in names]


def _appraise(
    name: str,
    catalogue: Catalogue,
    free: dict[str, int],
    rates: Mapping[str, int],
    runtime: Mapping[str, int],
) -> Appraisal:
    if name in catalogue.differs:
        keys = ", ".join(catalogue.differs[name])
        message = f"its own file has it, with another {keys}" if keys else "its own file has the same"
        return Appraisal(model=name, verdict="own", message=message)
    if (why := catalogue.not_here.get(name)) is not None:
        return Appraisal(model=name, verdict="refused", message=f"it {why}")
    path = ""
    try:
        settings = catalogue.settings(name)
        folder = catalogue.folder(settings)
        path = "" if settings.simulated is not None else str(folder)
        description, fit = place(settings, folder, free, rates, runtime, total=free)
    except CortexError as error:
        verdict = _VERDICTS.get(error.code, "broken")
        if verdict == "missing" and settings.pull:
            verdict = "pulled"
        return Appraisal(model=name, verdict=verdict, message=error.message, path=path)
    return Appraisal(
        model=name,
        verdict="fits",
        message="; ".join(description.notes),
        path=path,
        devices=list(fit.devices),
        bytes=sum(fit.reservations.values()),
        context_length=fit.context_length,
        context_wanted=description.context_length,
    )


def place(
    settings: ModelSettings,
    folder: Path,
    free: Mapping[str, int],
    rates: Mapping[str, int],
    runtime: Mapping[str, int],
    total: Mapping[str, int] | None = None,
    card: ModelCard | None = None,
) -> tuple[ModelDescription, Fit]:
    """What a model is, and where it would go.

    Args:
        folder: where it is.
        free: bytes, by device.
        rates: of the devices' memory (`rates_of`).
        runtime: bytes of a process without a model, by kind of device.
        total: as `find_fit` takes it.
        card: as `describe` takes it.

    Raises:
        CortexError: MODEL_LOAD_FAILED, MODEL_TOO_LARGE or INSUFFICIENT_MEMORY, and why.
    """
    description = describe(settings, folder, card)
    need = replace(description.need(settings, runtime), rates=rates)
    return description, find_fit(need, free, [], "lru", total=total)
