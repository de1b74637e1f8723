"""`POST /v1/messages/count_tokens`, as Anthropic has it: from tokenizer and template, without a model."""

from __future__ import annotations

import msgspec

from gateway.dialects import RequestContext
from gateway.dialects.anthropic.conversation import Conversation, PromptFields
from gateway.dialects.fields import decode
from gateway.dialects.writing import encode
from ipc.errors import CortexError
from ipc.messages.replies import TokenCount
from ipc.messages.requests import CountTokens

_decoder = msgspec.json.Decoder(PromptFields)


async def parse(body: bytes, context: RequestContext) -> tuple[CountTokens, CountRenderer]:
    """Read a request.

    Raises:
        CortexError: a field is wrong or asks for what we cannot do; `param` names it.
    """
    fields = decode(_decoder, body)
    conversation = Conversation(fields)
    count = CountTokens(
        id=0,
        model=fields.model,
        messages=conversation.messages,
        tools=conversation.tools,
        thinking=conversation.thinking,
        continue_final_message=conversation.continues,
    )
    return count, CountRenderer(conversation)


class CountRenderer:
    """Writes the count."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def whole(self, reply: TokenCount) -> bytes:
        return encode({"input_tokens": reply.tokens})

    def in_client_words(self, error: CortexError) -> CortexError:
        return self._conversation.in_client_words(error)
