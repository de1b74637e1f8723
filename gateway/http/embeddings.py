"""`POST /v1/embeddings`."""

from __future__ import annotations

import falcon.asgi

from gateway.dialects.openai import embeddings as openai_embeddings
from gateway.fleet.exchange import Exchange
from gateway.fleet.view import Fleet
from gateway.http.body import Bodies
from gateway.http.caller import caller
from gateway.http.generation import EXCHANGE
from ipc.errors import CortexError


class EmbeddingsResource:
    """Texts to vectors."""

    def __init__(self, fleet: Fleet, bodies: Bodies) -> None:
        self._fleet, self._bodies = fleet, bodies

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        data = await self._bodies.read(req)
        exchange = req.scope[EXCHANGE] = Exchange(self._fleet, req.context.request_id, caller(req))
        request, answer = openai_embeddings.parse(data)
        try:
            await exchange.send(request)
            vectors = await exchange.vectors()
        except CortexError as error:
            raise answer.in_client_words(error) from None
        resp.content_type = "application/json"
        resp.data = answer.whole(vectors)
        exchange.ready()
