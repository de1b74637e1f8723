"""`POST /v1/responses/input_tokens`: how many tokens a model would read."""

from __future__ import annotations

import msgspec

from gateway.dialects import ParseOne, RequestContext
from gateway.dialects.fields import decode, renamed
from gateway.dialects.openai.responses import context, items
from gateway.dialects.openai.responses.configuration import updated
from gateway.dialects.openai.responses.fields import CreateFields, refuse
from gateway.dialects.openai.responses.request import NAMES, thinking
from gateway.dialects.openai.responses.tools import Tools
from gateway.dialects.writing import encode
from gateway.store.response_store import ResponseStore
from ipc.errors import CortexError
from ipc.messages.replies import TokenCount
from ipc.messages.requests import CountTokens

_decoder = msgspec.json.Decoder(CreateFields)


def parse_for(store: ResponseStore | None) -> ParseOne:
    """How requests are read that may continue what is in `store`."""

    async def parse(body: bytes, asker: RequestContext) -> tuple[CountTokens, TokensRenderer]:
        fields = decode(_decoder, body)
        refuse(fields)
        known = await context.read(fields, store, asker.account)
        fields = updated(fields, known.entries)
        tools = Tools(fields, items.additional_tools(known.entries)).told
        count = CountTokens(
            id=0, model=fields.model, messages=known.messages, tools=tools, thinking=thinking(fields)
        )
        return count, TokensRenderer()

    return parse


class TokensRenderer:
    """Writes the count."""

    def whole(self, reply: TokenCount) -> bytes:
        return encode({"object": "response.input_tokens", "input_tokens": reply.tokens})

    def in_client_words(self, error: CortexError) -> CortexError:
        return renamed(error, NAMES)
