"""Requests for generated text, in any dialect."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import falcon.asgi

from gateway.access.principal import Principal
from gateway.dialects import Parse, ParseOne, Renderer, RequestContext
from gateway.dialects.event_streams import send
from gateway.dialects.large import put
from gateway.dialects.parsing import parsed
from gateway.dialects.rendering import rendered
from gateway.fetching.images import Images
from gateway.fleet.exchange import EXCHANGE, Exchange
from gateway.fleet.view import Fleet
from gateway.http.body import Bodies
from gateway.http.caller import session
from gateway.http.sse import EventStream
from gateway.telemetry import traces
from ipc.errors import CortexError
from ipc.messages.replies import Started
from ipc.messages.requests import Generate


def context_of(req: falcon.asgi.Request) -> RequestContext:
    """What is known of a request beside its body."""
    principal: Principal = req.context.principal
    return RequestContext(req.context.request_id, principal.account, req.get_header, principal)


def open_exchange(fleet: Fleet, req: falcon.asgi.Request) -> tuple[RequestContext, Exchange]:
    """What is known of a request, and its receipt, which `Gateway` closes."""
    context = context_of(req)
    exchange = Exchange(fleet, context.request_id, context.principal, session(req))
    if traces.is_on():
        exchange.receipt.parent = req.get_header("traceparent")
    req.scope[EXCHANGE] = exchange
    return context, exchange


class ExchangeResource(ABC):
    """One address of one dialect, at which a neuron answers."""

    def __init__(self, fleet: Fleet, parse: Parse | ParseOne, bodies: Bodies, images: Images) -> None:
        self._fleet, self._parse, self._bodies, self._images = fleet, parse, bodies, images

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        data = await self._bodies.read(req)
        context, exchange = open_exchange(self._fleet, req)
        request, answer = await parsed(self._parse, data, context)
        await self._images.fill(request, req.scope, exchange.admit, context.principal.account)
        try:
            await self._answer(exchange, request, answer, resp)
        except CortexError as error:
            raise answer.in_client_words(error) from None

    @abstractmethod
    async def _answer(
        self, exchange: Exchange, request: Any, answer: Any, resp: falcon.asgi.Response
    ) -> None:
        """Have the request answered, and write that as `answer` has it."""


class GenerationResource(ExchangeResource):
    """One for generated text."""

    async def _answer(
        self, exchange: Exchange, request: Generate, answer: Renderer, resp: falcon.asgi.Response
    ) -> None:
        await exchange.send(request)
        if request.stream:
            early = await exchange.verdict()
            send(resp, EventStream(exchange, answer, early, dear=request.sampling.tells))
        else:
            finished = await exchange.whole()
            # Unstreamed, a neuron says `Started` only where the prompt's ids were asked for.
            started = exchange.started or Started(id=0, prompt_tokens=finished.usage.prompt_tokens)
            resp.content_type = "application/json"
            account = exchange.receipt.principal.account
            put(resp, await rendered(partial(answer.whole, started, finished), [finished], account))
            exchange.receipt.on_ready()
