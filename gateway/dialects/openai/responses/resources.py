"""Stored responses, by their ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import falcon.asgi
import msgspec

from gateway.dialects import Services
from gateway.dialects.event_streams import send
from gateway.dialects.fields import bad_request
from gateway.dialects.large import put
from gateway.dialects.openai.responses.background import Background
from gateway.dialects.openai.responses.pages import flag, integer, page
from gateway.dialects.openai.responses.replay import follow
from gateway.dialects.writing import encode
from gateway.refusals import NOT_FOUND, shown
from gateway.store import responses
from gateway.store.responses import ACTIVE, Given, Written
from ipc.errors import Code, CortexError

T = TypeVar("T", Written, Given)


class _Kind(msgspec.Struct):
    background: bool


class _Resource:
    def __init__(self, services: Services, background: Background) -> None:
        self._services, self._background = services, background

    async def _look(self, look: Callable[..., T | None], account: str, response_id: str) -> T:
        """The response as it is now, as `look` reads it; one whose process is gone has failed."""
        store = self._services.store
        found = await store.read(look, account, response_id) if store is not None else None
        if found is not None and found.status in ACTIVE:
            await store.write(responses.bury)
            found = await store.read(look, account, response_id)
        if found is None:
            raise _unknown(response_id)
        return found


class ResponseResource(_Resource):
    """`/v1/responses/{id}`."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, response_id: str) -> None:
        account = self._services.context(req).account
        if not flag(req, "stream"):
            put(resp, (await self._look(responses.written, account, response_id)).body)
            return
        await self._look(responses.written, account, response_id)
        after = integer(req, "starting_after", -1, lowest=0)
        store = self._services.store
        if not await store.read(responses.has_events, response_id):
            text = "only a response that was made with background and stream can be read as one again"
            raise bad_request("stream", text)
        send(resp, follow(store, self._background.changes, account, response_id, after))

    async def on_delete(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, response_id: str) -> None:
        store = self._services.store
        account = self._services.context(req).account
        if store is None or not await store.write(responses.delete, account, response_id):
            raise _unknown(response_id)
        self._background.stop(response_id)
        resp.data = encode({"id": response_id, "object": "response", "deleted": True})


class CancelResource(_Resource):
    """`/v1/responses/{id}/cancel`. It has no body to be read."""

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, response_id: str) -> None:
        account = self._services.context(req).account
        found = await self._look(responses.written, account, response_id)
        if not msgspec.json.decode(found.body, type=_Kind).background:
            text = "only a response that is made with background can be cancelled"
            raise CortexError(Code.BAD_REQUEST, text, param="response_id")
        store = self._services.store
        found = await store.write(responses.cancel, account, response_id)
        if found is None:  # deleted in between
            raise _unknown(response_id)
        self._background.stop(response_id)
        put(resp, found.body)


class InputItemsResource(_Resource):
    """`/v1/responses/{id}/input_items`: those that came with its request, not what it continues."""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, response_id: str) -> None:
        account = self._services.context(req).account
        given = await self._look(responses.given, account, response_id)
        put(resp, encode(page(req, [(item["id"], item) for item in given.items])))


def _unknown(response_id: str) -> CortexError:
    """What is said of an id that is nobody's, or somebody else's."""
    return CortexError(NOT_FOUND, f"there is no response {shown(response_id)}", param="response_id")
