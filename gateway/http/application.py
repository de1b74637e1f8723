"""The ASGI application: Falcon with our resources, the receipt of each request, the metrics port.

It relies on what gunicorn's `asgi` worker does when a client leaves: it cancels the handler. What that worker
leaves out is in `gateway.http.connections`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import falcon.asgi

from gateway import signals
from gateway.access.keyring import Keyring
from gateway.config import GatewayConfig, StoreSettings, keys_path, split_address
from gateway.dialects import MakeDialect, Services
from gateway.dialects.registry import DIALECTS, refuse_shape
from gateway.fetching.images import Images
from gateway.fleet.exchange import EXCHANGE, Exchange
from gateway.fleet.view import Fleet
from gateway.http import errors
from gateway.http.access import Access
from gateway.http.aside import Aside, SentAside
from gateway.http.body import Bodies
from gateway.http.browsers import Browsers
from gateway.http.generation import GenerationResource, context_of, open_exchange
from gateway.http.health import HealthResource, ReadyResource, VersionResource
from gateway.http.models import ModelResource, ModelsResource
from gateway.http.openapi import OpenAPIResource
from gateway.http.replies import ReplyResource
from gateway.http.request import Request
from gateway.http.request_id import HEADERS, request_id
from gateway.page import resources as page
from gateway.refusals import Refusal, one_line
from gateway.store.database import default_path
from gateway.store.response_store import RESPONSES, ResponseStore
from gateway.store.retention import Limits
from gateway.telemetry import traces
from gateway.telemetry.exposition import Exposition
from gateway.telemetry.history import History

SECONDS_OF_A_DAY = 86400.0
START_PATIENCE = 2.0  # seconds that a process waits for its neurons before it takes requests

EXPLAIN = "x-cortex-explain"  # a request that has this header, with any value,
PLACEMENT = "x-cortex-placement"  # is told in this one which neuron got it, and why

Refuse = Callable[[Refusal], tuple[int, bytes]]


class Gateway:
    """What gunicorn serves.

    Args:
        sends_aside: bodies that are dear to read are for another process.

    Raises:
        CortexError: a key of the configuration cannot be used.
    """

    def __init__(
        self,
        settings: GatewayConfig,
        dialects: Sequence[MakeDialect] = DIALECTS,
        *,
        sends_aside: bool = True,
    ) -> None:
        fleet = Fleet(settings)
        listen = settings.gateway.metrics_listen
        self._metrics_port = split_address(listen)[1] if listen is not None else None
        ours = settings.gateway
        browsers = Browsers(ours.cors_origins, ours.hosts)
        self._metrics = Exposition(fleet.neurons, fleet.knows, browsers.leads_here)
        self._bodies = bodies = Bodies(ours.body_limit, ours.body_memory, sends_aside)
        store = _store(settings.store)
        history = History()
        keyring = Keyring(keys_path(settings.access), settings.anonymous, settings.local)
        opened = partial(open_exchange, fleet)
        images = Images(settings.images, bodies.hold)
        services = Services(fleet, bodies.read, context_of, opened, store, keyring, history, images)
        routes: dict[str, object] = {
            "/v1/models": ModelsResource(fleet),
            "/v1/models/{model:path}": ModelResource(fleet),
            "/health": HealthResource(fleet),
            "/ready": ReadyResource(fleet),
            "/version": VersionResource(),
            "/openapi.json": OpenAPIResource(),
        }
        routes |= page.resources(otherwise=VersionResource())
        refuse: dict[str, Refuse] = {}
        for make in dialects:
            dialect = make(services)
            own: dict[str, object] = dict(dialect.resources)
            for path, parse in dialect.generations.items():
                own[path] = GenerationResource(fleet, parse, bodies, images)
            for path, parse_one in dialect.replies.items():
                own[path] = ReplyResource(fleet, parse_one, bodies, images)
            routes |= own
            refuse |= dict.fromkeys(own, dialect.refuse)
        aside = Aside(settings)
        self._falcon = falcon.asgi.App(
            request_type=Request,
            middleware=[
                _Lifetime(fleet, store, keyring, history, aside),
                _Identity(refuse),
                browsers,
                Access(keyring),
            ],
        )
        self._falcon.req_options.strip_url_path_trailing_slash = True
        errors.install(self._falcon, frozenset(routes))
        self._falcon.add_error_handler(SentAside, aside.answer)
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
            if (exchange := _own_exchange(scope)) is not None:
                exchange.receipt.on_left()
            raise
        finally:
            self._bodies.release(scope)
            if (exchange := _own_exchange(scope)) is not None:
                exchange.close()


def _own_exchange(scope: Mapping[str, Any]) -> Exchange | None:
    """The exchange that ends with an HTTP request."""
    exchange = scope.get(EXCHANGE)
    return None if exchange is None or exchange.goes_on else exchange


def _store(settings: StoreSettings) -> ResponseStore | None:
    if not settings.enabled:
        return None
    limits = Limits(settings.max_age_days * SECONDS_OF_A_DAY, settings.max_size)
    return ResponseStore(settings.path or default_path(RESPONSES), limits)


class _Lifetime:
    """Ties the fleet's connections, the files of the stores, and the process for large bodies to this one."""

    def __init__(
        self, fleet: Fleet, store: ResponseStore | None, keyring: Keyring, history: History, aside: Aside
    ) -> None:
        self._fleet, self._store, self._keyring, self._history = fleet, store, keyring, history
        self._aside = aside

    async def process_startup(self, scope: dict[str, Any], event: dict[str, Any]) -> None:
        signals.release()
        traces.start()
        self._history.start()
        await self._keyring.start()
        await self._fleet.start(START_PATIENCE)

    async def process_shutdown(self, scope: dict[str, Any], event: dict[str, Any]) -> None:
        await self._aside.stop()
        await self._fleet.stop()
        await self._keyring.stop()
        await self._history.stop()
        await asyncio.to_thread(traces.stop)  # it sends what is left
        if self._store is not None:
            self._store.close()


class _Identity:
    """Gives every request an id, the client's own where it has one, and says it in the answer; and tells in
    which dialect its errors are.

    Args:
        refuse: how errors look, by path as it is routed.
    """

    def __init__(self, refuse: Mapping[str, Refuse]) -> None:
        self._refuse = refuse

    async def process_request(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        req.context.request_id = request_id(req.get_header("x-request-id"))
        req.context.refuse = self._write

    def _write(self, refusal: Refusal, req: falcon.asgi.Request) -> tuple[int, bytes]:
        """The status and the body of an error."""
        refuse = self._refuse.get(req.uri_template) or self._refuse.get(req.path)
        return (refuse or refuse_shape(req.get_header))(refusal)

    async def process_response(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, resource: object, succeeded: bool
    ) -> None:
        for name in HEADERS:
            resp.set_header(name, req.context.request_id)
        if (exchange := req.scope.get(EXCHANGE)) is not None and req.get_header(EXPLAIN):
            await exchange.placed()
            if placement := one_line(exchange.placement):
                resp.set_header(PLACEMENT, placement.encode("ascii", "replace").decode())
        if (exchange := _own_exchange(req.scope)) is not None:
            exchange.receipt.status = resp.status_code
