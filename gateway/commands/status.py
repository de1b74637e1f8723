"""`cortex status`: the fleet as its gateway sees it, as tables."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.text import Text

from gateway.commands.clients import KEY_VARIABLE
from gateway.commands.remote import Unreachable
from gateway.commands.tables import row, size, table
from ipc.messages.state import Device, ModelState


class NeuronHealth(Struct):
    name: str
    endpoint: str
    healthy: bool
    reason: str
    draining: bool
    version: str
    devices: list[Device]
    models: list[ModelState]
    avoided: list[str] = []  # models that failed here, and that requests are kept away from for a while
    text_memory: int = 0  # bytes
    parked_memory: int = 0  # the same
    parking: int = 0  # that it may come to


class CatalogueHealth(Struct):
    path: str
    error: str | None = None


class Brief(Struct):
    """The same, for who may not see it."""

    status: str
    neurons: Any = None


class FleetHealth(Struct):
    """What `GET /health` says, as far as it is shown."""

    status: str
    neurons: list[NeuronHealth]
    catalogue: CatalogueHealth | None = None


def read(body: bytes, endpoint: str) -> FleetHealth:
    """What `GET /health` gave, understood; Unreachable when it is no gateway's, or not for us."""
    try:
        if msgspec.json.decode(body, type=Brief).neurons is None:
            raise Unreachable(
                f"the gateway at {endpoint} shows its fleet to holders of a key for all models; "
                f"put one into {KEY_VARIABLE}"
            )
        return msgspec.json.decode(body, type=FleetHealth)
    except msgspec.DecodeError as error:
        raise Unreachable(f"what answers at {endpoint} is no cortex gateway: {error}") from error


def show(fleet: FleetHealth, console: Console) -> None:
    """Print neurons, devices and models."""
    neurons = table("neuron", "state", "endpoint", "version", "text", "parked")
    devices = table("device", "neuron", "name", "used", "reserved", "total", "load", "temperature")
    models = table(
        "model", "neuron", "status", "memory", "devices", "context", "cached", "running", "waiting", "served"
    )
    for neuron in fleet.neurons:
        row(
            neurons,
            neuron.name,
            _state(neuron),
            neuron.endpoint,
            neuron.version,
            size(neuron.text_memory),
            f"{size(neuron.parked_memory)} of {size(neuron.parking)}" if neuron.parking else "",
        )
        for device in neuron.devices:
            row(
                devices,
                device.id,
                neuron.name,
                device.name,
                size(device.memory_total - device.memory_free),
                size(device.memory_reserved),
                size(device.memory_total),
                "" if device.utilization is None else f"{device.utilization:.0%}",
                "" if device.temperature is None else f"{device.temperature:.0f} °C",
            )
        for model in neuron.models:
            row(
                models,
                model.id,
                neuron.name,
                _status(model) + (", avoided" if model.id in neuron.avoided else ""),
                _memory(model),
                " ".join(model.devices),
                _context(model),
                f"{model.cached_tokens / model.prompt_tokens:.0%}" if model.prompt_tokens else "",
                str(model.running),
                str(model.waiting),
                str(model.finished),
            )
    for each in (neurons, devices, models):
        if each.row_count:
            console.print(each)
            console.print()
    if fleet.catalogue is not None and fleet.catalogue.error is not None:
        console.print(Text(f"the catalogue stays as it was: {fleet.catalogue.error}"))


def _state(neuron: NeuronHealth) -> str:
    if not neuron.healthy:
        return f"lost: {neuron.reason}"
    return "draining" if neuron.draining else "ready"


def _status(model: ModelState) -> str:
    parked = f", parked ({size(model.bytes_parked)})" if model.bytes_parked and not model.devices else ""
    drained = ", drained" if model.drained else ""
    adapters = f", with {', '.join(model.adapters_loaded)}" if model.adapters_loaded else ""
    retired = ", no longer served" if model.retired else ""
    return _phase(model) + retired + adapters + parked + drained + (", pinned" if model.pinned else "")


def _phase(model: ModelState) -> str:
    if model.progress is not None:
        left = f", {model.seconds_left:.0f} s left" if model.seconds_left is not None else ""
        return f"{model.status} {model.progress:.0%}{left}"
    return f"{model.status}: {model.error}" if model.error else model.status


def _memory(model: ModelState) -> str:
    """What is held, and where that is another amount, what was planned."""
    held, planned = model.bytes_measured, model.bytes_reserved
    if not held or size(held) == size(planned):
        return size(held or planned or model.bytes_weights)
    return f"{size(held)} ({size(planned)} planned)"


def _context(model: ModelState) -> str:
    """Tokens that fit, and where memory is short, how many might."""
    clamped = model.context_wanted > model.context_length
    return f"{model.context_length} of {model.context_wanted}" if clamped else str(model.context_length or "")
