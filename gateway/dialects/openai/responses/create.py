"""`POST /v1/responses`."""

from __future__ import annotations

from functools import partial

import falcon.asgi

from gateway.dialects import Services
from gateway.dialects.event_streams import send
from gateway.dialects.fields import renamed
from gateway.dialects.large import leaving, put
from gateway.dialects.openai.responses.background import Background
from gateway.dialects.openai.responses.replay import follow
from gateway.dialects.openai.responses.request import NAMES, read
from gateway.dialects.openai.responses.run import Run
from gateway.dialects.parsing import parsed
from ipc.errors import CortexError


class CreateResource:
    """Answers at once, in pieces, or in the background."""

    def __init__(self, services: Services, background: Background) -> None:
        self._services, self._background = services, background

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        body = await self._services.read(req)
        asker, exchange = self._services.open(req)
        store = self._services.store
        creation = await parsed(partial(read, store=store), body, asker)
        await self._services.images.fill(creation.generate, req.scope, exchange.admit, asker.account)
        if creation.fields.background:
            queued = await self._background.start(creation, exchange)
            if creation.fields.stream:
                send(resp, follow(store, self._background.changes, asker.account, creation.id))
            else:
                resp.data = queued
            return
        run = Run(self._services.fleet, exchange, creation, store)
        try:
            if creation.fields.stream:
                await run.start()
                send(resp, leaving(run.events()))
            else:
                put(resp, await run.whole())
        except CortexError as error:
            raise renamed(error, NAMES) from None
