"""Requests for vectors, in any dialect."""

from __future__ import annotations

import falcon.asgi

from gateway.dialects import ParseEmbed
from gateway.fleet.exchange import Exchange
from gateway.fleet.view import Fleet
from gateway.http.body import Bodies
from gateway.http.caller import caller
from gateway.http.generation import EXCHANGE
from ipc.errors import CortexError


class EmbeddingsResource:
    """One address of one dialect."""

    def __init__(self, fleet: Fleet, parse: ParseEmbed, bodies: Bodies) -> None:
        self._fleet, self._parse, self._bodies = fleet, parse, bodies

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        data = await self._bodies.read(req)
        exchange = req.scope[EXCHANGE] = Exchange(self._fleet, req.context.request_id, caller(req))
        request, answer = await self._parse(data, exchange.request_id)
        try:
            await exchange.send(request)
            vectors = await exchange.vectors()
        except CortexError as error:
            raise answer.in_client_words(error) from None
        resp.content_type = "application/json"
        resp.data = answer.whole(vectors)
        exchange.ready()
