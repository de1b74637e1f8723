"""The models of the whole fleet, as one list, in the shape that the client speaks: those that it may use."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace

import falcon.asgi
import msgspec
from msgspec import structs

from gateway.access.principal import Principal
from gateway.dialects.large import put
from gateway.dialects.registry import model_shapes
from gateway.fleet import listing
from gateway.fleet.discretion import discreet
from gateway.fleet.listing import ListedModel
from gateway.fleet.view import Fleet


class _Resource:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet


def _for(principal: Principal, listed: ListedModel, models: Collection[str]) -> ListedModel:
    """The same, where it may not know of all that neurons say of others.

    Args:
        models: all of the fleet.
    """
    if principal.sees_all or not any(state.error for state in listed.states):
        return listed
    places = [
        (neuron, structs.replace(state, error=discreet(state.error, models, principal.may_use)))
        for neuron, state in listed.places
    ]
    return replace(listed, places=places)


class ModelsResource(_Resource):
    """`GET /v1/models`."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        shapes = model_shapes(req.get_header)
        principal: Principal = req.context.principal
        listed = [each for each in listing.every(self._fleet) if principal.may_use(each.model)]
        models = list(self._fleet.directory)

        def written() -> bytes:
            mine = [_for(principal, each, models) for each in listed]
            return msgspec.json.encode(shapes.model_list(mine, req.get_param))

        # In a thread: thousands of models take some hundredths of a second to write.
        put(resp, await asyncio.to_thread(written))

    on_head = on_get


class ModelResource(_Resource):
    """`GET /v1/models/{id}`; ids contain slashes."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, model: str) -> None:
        shapes = model_shapes(req.get_header)
        principal: Principal = req.context.principal
        principal.require(self._fleet.resolve(model))
        found = listing.one(self._fleet, model, principal.may_use)
        resp.data = msgspec.json.encode(shapes.model(_for(principal, found, self._fleet.directory)))

    on_head = on_get
