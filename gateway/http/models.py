"""The models of the whole fleet, as one list."""

from __future__ import annotations

from typing import Any

import falcon.asgi
import msgspec

from gateway.fleet import router
from gateway.fleet.view import Fleet, Neuron
from ipc.messages import ModelState

# Of a model that is in several places the best status is shown.
_BEST_FIRST = (
    "ready",
    "restarting",
    "loading",
    "waiting",
    "draining",
    "unloaded",
    "unloading",
    "failed",
)


class ModelsResource:
    """`GET /v1/models`."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        ids = sorted({model for neuron in self._fleet.neurons if neuron.healthy for model in neuron.models})
        resp.data = msgspec.json.encode({"object": "list", "data": [describe(self._fleet, id) for id in ids]})

    on_head = on_get


class ModelResource:
    """`GET /v1/models/{id}`; ids contain slashes."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, model: str) -> None:
        if not router.able(self._fleet.neurons, model):
            raise router.absent(self._fleet.neurons, model)
        resp.data = msgspec.json.encode(describe(self._fleet, model))

    on_head = on_get


def describe(fleet: Fleet, model: str) -> dict[str, Any]:
    """A model as OpenAI lists it, with what else clients and people like to know.

    The context length, under the two names that clients look for, is the smallest of all places.
    """
    places = list(fleet.states(model))
    states = [state for _, state in places]
    contexts = [state.context_length for state in states if state.context_length]
    entry: dict[str, Any] = {
        "id": model,
        "object": "model",
        "created": max((state.created for state in states), default=0),
        "owned_by": "cortex",
        "status": min((state.status for state in states), key=_BEST_FIRST.index, default="unloaded"),
        "loaded": any(state.status == "ready" for state in states),
        "capabilities": _capabilities(states),
        "locations": [_location(neuron, state) for neuron, state in places],
    }
    if contexts:
        entry["max_model_len"] = entry["context_length"] = min(contexts)
        wanted = max(state.context_wanted for state in states)
        if wanted > min(contexts):
            entry["context_length_with_more_memory"] = wanted
    return entry


def _capabilities(states: list[ModelState]) -> list[str]:
    capabilities = ["completion"]
    capabilities += [name for name in ("chat", "tools", "reasoning") if any(getattr(s, name) for s in states)]
    return capabilities


def _location(neuron: Neuron, state: ModelState) -> dict[str, Any]:
    location: dict[str, Any] = {"neuron": neuron.name, "status": state.status, "devices": state.devices}
    if state.progress is not None:
        location["progress"] = state.progress
    if state.seconds_left is not None:
        location["seconds_left"] = round(state.seconds_left, 1)
    if state.error is not None:
        location["error"] = state.error
    return location
