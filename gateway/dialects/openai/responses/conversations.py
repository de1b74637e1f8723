"""`/v1/conversations`: items that responses with the same `conversation` read, and add to."""

from __future__ import annotations

import os
import time
from typing import Annotated, Any

import falcon.asgi
import msgspec
from msgspec import Meta, Struct

from gateway.dialects import RequestContext, Services
from gateway.dialects.fields import decode, unsupported
from gateway.dialects.large import put
from gateway.dialects.openai.responses import items as items_of
from gateway.dialects.openai.responses.fields import Metadata
from gateway.dialects.openai.responses.items import Entry
from gateway.dialects.openai.responses.kept import kept
from gateway.dialects.openai.responses.pages import page
from gateway.dialects.writing import encode
from gateway.refusals import NOT_FOUND, shown
from gateway.store import conversations
from gateway.store.response_store import ResponseStore
from gateway.store.retention import make_room
from ipc.errors import CortexError

MAX_ITEMS = 20  # of one request, as OpenAI has it

NewItems = Annotated[list[dict[str, Any]], Meta(max_length=MAX_ITEMS)]


class NewConversation(Struct):
    items: NewItems | None = None
    metadata: Metadata | None = None


class ChangedConversation(Struct):
    metadata: Metadata


class MoreItems(Struct):
    items: Annotated[NewItems, Meta(min_length=1)]


_new = msgspec.json.Decoder(NewConversation)
_changed = msgspec.json.Decoder(ChangedConversation)
_more = msgspec.json.Decoder(MoreItems)


class _Resource:
    def __init__(self, services: Services) -> None:
        self._services = services

    def _open(self, req: falcon.asgi.Request) -> tuple[ResponseStore, RequestContext]:
        """The store, and who asks."""
        if self._services.store is None:
            raise unsupported("conversation", "this gateway keeps nothing (store.enabled is false)")
        return self._services.store, self._services.context(req)

    def _checked(self, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The items as they are kept; CortexError where one could not be read."""
        entries = [Entry(f"items[{i}]", item) for i, item in enumerate(given)]
        for entry in entries:
            if items_of.referred(entry) is not None:
                raise unsupported(f"{entry.param}.type", "a reference cannot be kept; send the item itself")
        self._services.images.check(items_of.alone(entries))
        return kept(entries)


class ConversationsResource(_Resource):
    """The address where they are made."""

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        fields = decode(_new, await self._services.read(req))
        store, asker = self._open(req)
        items = self._checked(fields.items or [])
        conversation = {
            "id": f"conv_{os.urandom(20).hex()}",
            "object": "conversation",
            "created_at": int(time.time()),
            "metadata": fields.metadata or {},
        }

        def work(db: Any) -> None:
            conversations.create(db, asker.account, conversation, items)
            make_room(db, store.limits, keep=conversation["id"])

        await store.write(work)
        resp.data = encode(conversation)


class ConversationResource(_Resource):
    """`/v1/conversations/{id}`."""

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, conversation_id: str
    ) -> None:
        store, asker = self._open(req)
        found = await store.read(conversations.get, asker.account, conversation_id)
        resp.data = encode(_there(found, conversation_id))

    async def on_post(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, conversation_id: str
    ) -> None:
        fields = decode(_changed, await self._services.read(req))
        store, asker = self._open(req)
        changed = await store.write(conversations.update, asker.account, conversation_id, fields.metadata)
        resp.data = encode(_there(changed, conversation_id))

    async def on_delete(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, conversation_id: str
    ) -> None:
        store, asker = self._open(req)
        if not await store.write(conversations.delete, asker.account, conversation_id):
            raise _unknown(conversation_id)
        resp.data = encode({"id": conversation_id, "object": "conversation.deleted", "deleted": True})


class ItemsResource(_Resource):
    """`/v1/conversations/{id}/items`."""

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, conversation_id: str
    ) -> None:
        store, asker = self._open(req)
        found = await store.read(conversations.items, asker.account, conversation_id)
        put(resp, encode(page(req, _there(found, conversation_id))))

    async def on_post(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, conversation_id: str
    ) -> None:
        fields = decode(_more, await self._services.read(req))
        store, asker = self._open(req)
        items = self._checked(fields.items)

        def work(db: Any) -> None:
            _there(conversations.get(db, asker.account, conversation_id), conversation_id)
            conversations.append(db, asker.account, conversation_id, items)
            make_room(db, store.limits, keep=conversation_id)

        await store.write(work)
        ids = {"first_id": items[0]["id"], "last_id": items[-1]["id"]}
        resp.data = encode({"object": "list", "data": items, "has_more": False} | ids)


class ItemResource(_Resource):
    """`/v1/conversations/{id}/items/{item}`."""

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, conversation_id: str, item_id: str
    ) -> None:
        store, asker = self._open(req)
        found = await store.read(conversations.items, asker.account, conversation_id)
        item = dict(_there(found, conversation_id)).get(item_id)
        put(resp, bytes(_there(item, item_id, "item")))

    async def on_delete(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, conversation_id: str, item_id: str
    ) -> None:
        store, asker = self._open(req)

        def work(db: Any) -> Any:
            if conversations.remove(db, asker.account, conversation_id, item_id):
                return conversations.get(db, asker.account, conversation_id)
            _there(conversations.get(db, asker.account, conversation_id), conversation_id)
            raise _unknown(item_id, "item")

        resp.data = encode(await store.write(work))


def _there(found: Any, asked: str, kind: str = "conversation") -> Any:
    if found is None:
        raise _unknown(asked, kind)
    return found


def _unknown(asked: str, kind: str = "conversation") -> CortexError:
    return CortexError(NOT_FOUND, f"there is no {kind} {shown(asked)}", param=f"{kind}_id")
