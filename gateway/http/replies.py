"""Requests that one reply answers, such as those for vectors, in any dialect."""

from __future__ import annotations

from functools import partial

import falcon.asgi

from gateway.dialects import AskedOnce, ReplyRenderer
from gateway.dialects.large import put
from gateway.dialects.rendering import rendered
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
        account = exchange.receipt.principal.account
        put(resp, await rendered(partial(answer.whole, reply), [reply], account))
        exchange.receipt.on_ready()
