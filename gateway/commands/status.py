"""`cortex status`: the fleet as its gateway sees it, as tables."""

from __future__ import annotations

import os
import urllib.request
from http.client import HTTPException
from urllib.error import HTTPError

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.commands.clients import KEY_VARIABLE
from ipc.messages import Device, ModelState

ANSWER_SECONDS = 30.0  # of a gateway that is there, on a busy host


class Unreachable(Exception):
    """Why there is no status, in one sentence."""


class NeuronHealth(Struct):
    name: str
    endpoint: str
    healthy: bool
    reason: str
    draining: bool
    version: str
    devices: list[Device]
    models: list[ModelState]


class CatalogueHealth(Struct):
    path: str
    error: str | None = None


class FleetHealth(Struct):
    """What `GET /health` says, as far as it is shown."""

    status: str
    neurons: list[NeuronHealth]
    catalogue: CatalogueHealth | None = None


def fetch(endpoint: str, path: str = "/health", option: str = "--endpoint") -> bytes:
    """What a GET gives.

    Args:
        endpoint: the gateway's address, e.g. "http://127.0.0.1:31313".
        path: what is asked for.
        option: of the command line, by which people name another gateway.

    Raises:
        Unreachable: nothing answers there, or something else.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    if key := os.environ.get(KEY_VARIABLE):
        opener.addheaders.append(("Authorization", f"Bearer {key}"))
    try:
        with opener.open(f"{endpoint.rstrip('/')}{path}", timeout=ANSWER_SECONDS) as response:
            return response.read()
    except HTTPError as error:
        if error.code == 401:
            raise Unreachable(
                f"the gateway at {endpoint} wants an API key; put one into {KEY_VARIABLE}"
            ) from error
        raise Unreachable(
            f"the gateway at {endpoint} answers {path} with {error.code} {error.reason}"
        ) from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise Unreachable(
            f"no gateway answers at {endpoint} ({reason}); start one with `cortex up` or `cortex serve`, "
            f"or name another with {option}"
        ) from error


def read(body: bytes, endpoint: str) -> FleetHealth:
    """What `fetch` gave, understood; Unreachable when it is no gateway's."""
    try:
        return msgspec.json.decode(body, type=FleetHealth)
    except msgspec.DecodeError as error:
        raise Unreachable(f"what answers at {endpoint} is no cortex gateway: {error}") from error


def show(fleet: FleetHealth, console: Console) -> None:
    """Print neurons, devices and models."""
    neurons = _table("neuron", "state", "endpoint", "version")
    devices = _table("device", "neuron", "name", "used", "reserved", "total", "load", "temperature")
    models = _table(
        "model", "neuron", "status", "memory", "devices", "context", "cached", "running", "waiting", "served"
    )
    for neuron in fleet.neurons:
        _row(neurons, neuron.name, _state(neuron), neuron.endpoint, neuron.version)
        for device in neuron.devices:
            _row(
                devices,
                device.id,
                neuron.name,
                device.name,
                _size(device.memory_total - device.memory_free),
                _size(device.memory_reserved),
                _size(device.memory_total),
                "" if device.utilization is None else f"{device.utilization:.0%}",
                "" if device.temperature is None else f"{device.temperature:.0f} °C",
            )
        for model in neuron.models:
            _row(
                models,
                model.id,
                neuron.name,
                _status(model),
                _memory(model),
                " ".join(model.devices),
                _context(model),
                f"{model.cached_tokens / model.prompt_tokens:.0%}" if model.prompt_tokens else "",
                str(model.running),
                str(model.waiting),
                str(model.finished),
            )
    for table in (neurons, devices, models):
        if table.row_count:
            console.print(table)
            console.print()
    if fleet.catalogue is not None and fleet.catalogue.error is not None:
        console.print(Text(f"the catalogue stays as it was: {fleet.catalogue.error}"))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*map(Text, cells))  # names and reasons may hold what rich takes for markup


def _state(neuron: NeuronHealth) -> str:
    if not neuron.healthy:
        return f"lost: {neuron.reason}"
    return "draining" if neuron.draining else "ready"


def _status(model: ModelState) -> str:
    parked = f", parked ({_size(model.bytes_parked)})" if model.bytes_parked and not model.devices else ""
    return _phase(model) + parked + (", pinned" if model.pinned else "")


def _phase(model: ModelState) -> str:
    if model.progress is not None:
        left = f", {model.seconds_left:.0f} s left" if model.seconds_left is not None else ""
        return f"{model.status} {model.progress:.0%}{left}"
    return f"{model.status}: {model.error}" if model.error else model.status


def _memory(model: ModelState) -> str:
    """What is held, and where that is another amount, what was planned."""
    held, planned = model.bytes_measured, model.bytes_reserved
    if not held or _size(held) == _size(planned):
        return _size(held or planned or model.bytes_weights)
    return f"{_size(held)} ({_size(planned)} planned)"


def _context(model: ModelState) -> str:
    """Tokens that fit, and where memory is short, how many might."""
    clamped = model.context_wanted > model.context_length
    return f"{model.context_length} of {model.context_wanted}" if clamped else str(model.context_length or "")


def _size(count: int) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
