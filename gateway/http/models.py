"""The models of the whole fleet, as one list, in the shape that the client speaks: those that it may use."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import falcon.asgi
import msgspec
from msgspec import structs

from gateway.access.principal import Principal
from gateway.dialects.registry import model_shapes
from gateway.fleet import listing
from gateway.fleet.listing import ListedModel
from gateway.fleet.view import Fleet


class _Resource:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def _for(self, principal: Principal, listed: ListedModel) -> ListedModel:
        """The same, where it may not know of all that neurons say of others."""
        if principal.sees_all:
            return listed
        errors = [self._fleet.for_one(state.error, principal.may_use) for state in listed.states]
        told = zip(listed.places, errors, strict=True)
        return replace(
            listed, places=[(at, structs.replace(state, error=error)) for (at, state), error in told]
        )


class ModelsResource(_Resource):
    """`GET /v1/models`."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        shapes = model_shapes(req.get_header)
        principal: Principal = req.context.principal
        listed = [each for each in listing.every(self._fleet) if principal.may_use(each.model)]
        mine = [self._for(principal, each) for each in listed]
        # In a thread: thousands of models take some hundredths of a second to write.
        resp.data = await asyncio.to_thread(
            lambda: msgspec.json.encode(shapes.model_list(mine, req.get_param))
        )

    on_head = on_get


class ModelResource(_Resource):
    """`GET /v1/models/{id}`; ids contain slashes."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, model: str) -> None:
        shapes = model_shapes(req.get_header)
        principal: Principal = req.context.principal
        principal.require(self._fleet.resolve(model))
        found = listing.one(self._fleet, model, principal.may_use)
        resp.data = msgspec.json.encode(shapes.model(self._for(principal, found)))

    on_head = on_get
