"""What a model is to read for a response: what the request continues, and what came with it."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from gateway.dialects.fields import MISSING, bad_request
from gateway.dialects.openai.responses import items
from gateway.dialects.openai.responses.fields import ContextFields
from gateway.dialects.openai.responses.items import Entry
from gateway.dialects.openai.responses.kept import kept
from gateway.refusals import shown
from gateway.store import conversations, responses
from gateway.store.response_store import ResponseStore
from ipc.messages.conversation import Message

MANY = 500  # items: to read them takes some milliseconds


class Context(NamedTuple):
    """A conversation that ends in what is to be answered.

    Attributes:
        entries: all its items.
        messages: what they are to a model.
        own: those that came with the request, as they are kept.
    """

    entries: list[Entry]
    messages: list[Message]
    own: list[dict[str, Any]]


async def read(fields: ContextFields, store: ResponseStore | None, account: str) -> Context:
    """Put a conversation together.

    Raises:
        CortexError: an item is wrong, something is not there for `account`, or there is nothing to answer.
    """
    before = await _continued(fields, store, account)
    own = await _resolved(_own(fields), store, account)
    every = [*before, *own]
    if len(every) < MANY:
        messages = items.messages(every)
    else:
        messages = await asyncio.to_thread(items.messages, every)
    if not messages:
        text = MISSING if fields.input is None else "there is nothing in it to answer"
        raise bad_request("input", text)
    if fields.instructions:
        messages.insert(0, Message(role="system", content=fields.instructions))
    return Context(every, messages, kept(own))


def _own(fields: ContextFields) -> list[Entry]:
    given = fields.input
    if given is None:
        return []
    if isinstance(given, str):
        return [Entry("input", {"type": "message", "role": "user", "content": given})]
    return [Entry(f"input[{i}]", item) for i, item in enumerate(given)]


async def _continued(fields: ContextFields, store: ResponseStore | None, account: str) -> list[Entry]:
    previous, conversation = fields.previous_response_id, fields.conversation_id
    if previous is not None and conversation is not None:
        text = "it and previous_response_id contradict each other: send one of them"
        raise bad_request("conversation", text)
    if previous is not None:
        param = "previous_response_id"
        chain = (
            await store.write(responses.chain, account, previous)
            if store
            else responses.Chain([], "", previous)
        )
        if chain.missing is not None:
            continues = "" if chain.missing == previous else f", which {shown(previous)} continues"
            raise bad_request(param, f"there is no response {shown(chain.missing)}{continues}")
        if chain.status not in responses.CONTINUABLE:
            text = f"the response {shown(previous)} is {chain.status}, and cannot be continued"
            raise bad_request(param, text)
        return [Entry(param, item) for item in chain.items]
    if conversation is not None:
        param = "conversation"
        found = await store.write(conversations.use, account, conversation) if store else None
        if found is None:
            raise bad_request(param, f"there is no conversation {shown(conversation)}")
        return [Entry(param, item) for item in found]
    return []


async def _resolved(given: list[Entry], store: ResponseStore | None, account: str) -> list[Entry]:
    """The items themselves, where the client sent references to them."""
    wanted = {item_id for entry in given if (item_id := items.referred(entry)) is not None}
    found = await store.read(responses.items, account, wanted) if store and wanted else {}
    resolved = []
    for entry in given:
        item_id = items.referred(entry)
        if item_id is not None and item_id not in found:
            raise bad_request(f"{entry.param}.id", f"there is no item {shown(item_id)}")
        resolved.append(entry if item_id is None else Entry(entry.param, found[item_id]))
    return resolved
