"""Requests that one reply answers, such as those for vectors, in any dialect."""

from __future__ import annotations

import falcon.asgi

from gateway.dialects import ParseOne
from gateway.fetching.images import Images
from gateway.fleet.view import Fleet
from gateway.http.body import Bodies
from gateway.http.generation import open_exchange
from ipc.errors import CortexError


class ReplyResource:
    """One address of one dialect."""

    def __init__(self, fleet: Fleet, parse: ParseOne, bodies: Bodies, images: Images) -> None:
        self._fleet, self._parse, self._bodies, self._images = fleet, parse, bodies, images

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        data = await self._bodies.read(req)
        context, exchange = open_exchange(self._fleet, req)
        request, answer = await self._parse(data, context)
        await self._images.fill(request, req.scope, exchange.admit)
        try:
            await exchange.send(request)
            reply = await exchange.one()
        except CortexError as error:
            raise answer.in_client_words(error) from None
        resp.content_type = "application/json"
        resp.data = answer.whole(reply)
        exchange.account.on_ready()
