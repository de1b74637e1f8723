"""The models of the whole fleet, as one list, in the shape that the client speaks: those that it may use."""

from __future__ import annotations

import falcon.asgi
import msgspec

from gateway.access.principal import Principal
from gateway.dialects.registry import model_shapes
from gateway.fleet import listing
from gateway.fleet.view import Fleet


class ModelsResource:
    """`GET /v1/models`."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        shapes = model_shapes(req.get_header)
        mine = [each for each in listing.every(self._fleet) if req.context.principal.may_use(each.model)]
        resp.data = msgspec.json.encode(shapes.model_list(mine, req.get_param))

    on_head = on_get


class ModelResource:
    """`GET /v1/models/{id}`; ids contain slashes."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, model: str) -> None:
        shapes = model_shapes(req.get_header)
        principal: Principal = req.context.principal
        principal.require(self._fleet.resolve(model))
        found = listing.one(self._fleet, model, principal.may_use)
        resp.data = msgspec.json.encode(shapes.model(found))

    on_head = on_get
