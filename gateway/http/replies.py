"""Requests that one reply answers, such as those for vectors, in any dialect."""

from __future__ import annotations

import falcon.asgi

from gateway.dialects import AskedOnce, ReplyRenderer
from gateway.fleet.exchange import Exchange
from gateway.http.generation import ExchangeResource


class ReplyResource(ExchangeResource):
    """One address of one dialect."""

    async def _answer(
        self, exchange: Exchange, request: AskedOnce, answer: ReplyRenderer, resp: falcon.asgi.Response
    ) -> None:
        await exchange.send(request)
        reply = await exchange.one()
        resp.content_type = "application/json"
        resp.data = answer.whole(reply)
        exchange.account.on_ready()
