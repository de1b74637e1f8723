"""Models as OpenAI lists them, with what else clients and people like to know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gateway.fleet.listing import ListedModel
from gateway.fleet.neuron import Neuron
from ipc.messages.state import ModelState


def model_list(models: Sequence[ListedModel], param: Callable[[str], str | None]) -> dict[str, Any]:
    """All of them: there are no pages."""
    return {"object": "list", "data": [model(each) for each in models]}


def model(listed: ListedModel) -> dict[str, Any]:
    """One entry. The context length has the three names that clients look for."""
    entry: dict[str, Any] = {
        "id": listed.id,
        "object": "model",
        "created": listed.created,
        "owned_by": "cortex",
        "display_name": listed.display_name,
        "status": listed.status,
        "loaded": listed.status == "ready",
        "capabilities": listed.capabilities,
        "locations": [_location(neuron, state) for neuron, state in listed.places],
    }
    if listed.id != listed.model:
        entry["alias_of"] = listed.model
    if listed.base is not None:
        entry["parent"] = listed.base
    if context := listed.context_length:
        entry["max_model_len"] = entry["context_length"] = entry["max_input_tokens"] = context
        if listed.context_wanted > context:
            entry["context_length_with_more_memory"] = listed.context_wanted
    if listed.max_output:
        entry["max_output_tokens"] = listed.max_output
    if listed.cost is not None:
        entry["cost"] = listed.cost
    return entry


def _location(neuron: Neuron, state: ModelState) -> dict[str, Any]:
    location: dict[str, Any] = {"neuron": neuron.name, "status": state.status, "devices": state.devices}
    if state.progress is not None:
        location["progress"] = state.progress
    if state.seconds_left is not None:
        location["seconds_left"] = round(state.seconds_left, 1)
    if state.bytes_parked and not state.devices:
        location["parked"] = True
    if state.bytes_to_pull is not None:
        location["bytes_to_pull"] = state.bytes_to_pull
    if state.error is not None:
        location["error"] = state.error
    return location
