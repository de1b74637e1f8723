"""The ASGI application: Falcon with our resources, the account of each request, the metrics port.

It relies on what gunicorn's `asgi` worker does when a client leaves: it cancels the handler. What that worker
leaves out is in `gateway.http.connections`.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import falcon.asgi

from gateway import signals
from gateway.config import GatewayConfig, split_address
from gateway.dialects import Dialect
from gateway.dialects.registry import DEFAULT, DIALECTS
from gateway.fleet.view import Fleet
from gateway.http import errors
from gateway.http.body import Bodies
from gateway.http.browsers import Browsers
from gateway.http.embeddings import EmbeddingsResource
from gateway.http.generation import EXCHANGE, GenerationResource
from gateway.http.health import HealthResource, ReadyResource, VersionResource
from gateway.http.models import ModelResource, ModelsResource
from gateway.telemetry.exposition import Exposition

START_PATIENCE = 2.0  # seconds that a process waits for its neurons before it takes requests

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Gateway:
    """What gunicorn serves.

    Raises:
        CortexError: a key of the configuration cannot be used.
    """

    def __init__(self, settings: GatewayConfig, dialects: Sequence[Dialect] = DIALECTS) -> None:
        fleet = Fleet(settings)
        listen = settings.gateway.metrics_listen
        self._metrics_port = split_address(listen)[1] if listen is not None else None
        self._metrics = Exposition(fleet.neurons)
        ours = settings.gateway
        self._bodies = bodies = Bodies(ours.body_limit, ours.body_memory)
        spoken: dict[str, Dialect] = {}
        routes: dict[str, object] = {
            "/v1/models": ModelsResource(fleet),
            "/v1/models/{model:path}": ModelResource(fleet),
            "/health": HealthResource(fleet),
            "/ready": ReadyResource(fleet),
            "/version": VersionResource(),
        }
        for dialect in dialects:
            spoken |= dict.fromkeys((*dialect.generations, *dialect.embeddings), dialect)
            for path, parse in dialect.generations.items():
                routes[path] = GenerationResource(fleet, parse, bodies)
            for path, parse in dialect.embeddings.items():
                routes[path] = EmbeddingsResource(fleet, parse, bodies)
        browsers = Browsers(ours.cors_origins, ours.hosts)
        self._falcon = falcon.asgi.App(middleware=[_Lifetime(fleet), _Identity(spoken), browsers])
        errors.install(self._falcon)
        for path, resource in routes.items():
            self._falcon.add_route(path, resource)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":  # nothing here speaks it
            await send({"type": "websocket.close"})  # refuses the handshake, with a 403
            return
        if scope["type"] != "http":
            await self._falcon(scope, receive, send)
            return
        server = scope["server"]
        if self._metrics_port is not None and server is not None and server[1] == self._metrics_port:
            await self._metrics(scope, receive, send)
            return
        try:
            await self._falcon(scope, receive, send)
        except asyncio.CancelledError:
            if EXCHANGE in scope:
                scope[EXCHANGE].leave()
            raise
        finally:
            self._bodies.release(scope)
            if EXCHANGE in scope:
                scope[EXCHANGE].close()


class _Lifetime:
    """Ties the fleet's connections to the process."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def process_startup(self, scope: dict[str, Any], event: dict[str, Any]) -> None:
        signals.release()
        await self._fleet.start(START_PATIENCE)

    async def process_shutdown(self, scope: dict[str, Any], event: dict[str, Any]) -> None:
        await self._fleet.stop()


class _Identity:
    """Gives every request an id, the client's own where it has one, and says it in the answer; and tells in
    which dialect its errors are.

    Args:
        dialects: by path.
    """

    def __init__(self, dialects: Mapping[str, Dialect]) -> None:
        self._dialects = dialects

    async def process_request(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        given = req.get_header("x-request-id")
        if given is None or not _REQUEST_ID.fullmatch(given):
            given = os.urandom(12).hex()
        req.context.request_id = given
        req.context.dialect = self._dialects.get(req.path, DEFAULT)

    async def process_response(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, resource: object, succeeded: bool
    ) -> None:
        resp.set_header("x-request-id", req.context.request_id)
        if EXCHANGE in req.scope:
            req.scope[EXCHANGE].status = resp.status_code
