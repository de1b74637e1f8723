"""The models of the whole fleet, as one list."""

from __future__ import annotations

import falcon.asgi
import msgspec

from gateway.dialects.openai import models
from gateway.fleet import listing
from gateway.fleet.view import Fleet


class ModelsResource:
    """`GET /v1/models`."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.data = msgspec.json.encode(models.model_list(listing.every(self._fleet)))

    on_head = on_get


class ModelResource:
    """`GET /v1/models/{id}`; ids contain slashes."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, model: str) -> None:
        resp.data = msgspec.json.encode(models.model(listing.one(self._fleet, model)))

    on_head = on_get
