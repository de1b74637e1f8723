"""`POST /v1/messages`, as Anthropic has it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.dialects import RequestContext
from gateway.dialects.anthropic.compaction import CompactionField, CompactionRenderer, compacting
from gateway.dialects.anthropic.conversation import Conversation, PromptFields
from gateway.dialects.anthropic.renderer import MessageRenderer, Thoughts
from gateway.dialects.fields import (
    MAX_INT,
    MAX_STOPS,
    NonNegative,
    Short,
    Stop,
    bad_request,
    decode,
    keep_alive,
)
from ipc.messages.requests import Generate
from ipc.messages.sampling import Sampling

# A beta: thoughts between calls, whose budget is of all of them together.
INTERLEAVED = "interleaved-thinking"


class MessageFields(PromptFields, kw_only=True):
    max_tokens: NonNegative
    stream: bool | None = None
    stop_sequences: Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=MAX_INT)] | None = None
    keep_alive: float | Short | None = None  # as Ollama has it
    compaction: CompactionField | None = None


_decoder = msgspec.json.Decoder(MessageFields)


async def parse(body: bytes, context: RequestContext) -> tuple[Generate, MessageRenderer]:
    """Read a request.

    Raises:
        CortexError: a field is wrong or asks for what we cannot do; `param` names it.
    """
    fields = decode(_decoder, body)
    conversation = Conversation(fields)
    budget = conversation.thinking.budget
    if budget is not None and budget >= fields.max_tokens and not _has_beta(context, INTERLEAVED):
        text = f"{budget} is not below max_tokens, which is {fields.max_tokens}"
        raise bad_request("thinking.budget_tokens", text)
    generate = Generate(
        id=0,
        model=fields.model,
        messages=conversation.messages,
        tools=conversation.tools,
        must_call=conversation.must_call,
        thinking=conversation.thinking,
        sampling=_sampling(fields),
        structured=conversation.structured,
        stream=bool(fields.stream),
        parallel_tool_calls=conversation.parallel,
        continue_final_message=conversation.continues,
        keep_alive=keep_alive(fields.keep_alive),
    )
    thoughts: Thoughts = "left out"  # of who does not ask for them
    if conversation.thinking.enabled and fields.thinking is not None:
        thoughts = "hidden" if fields.thinking.display == "omitted" else "shown"
    render = MessageRenderer
    if fields.compaction is not None:
        generate = compacting(generate, fields.compaction)
        render = CompactionRenderer
    return generate, render(fields.model, context.request_id, thoughts, conversation.in_client_words)


def _has_beta(context: RequestContext, name: str) -> bool:
    return name in (context.header("anthropic-beta") or "")


def _sampling(fields: MessageFields) -> Sampling:
    # The most probable token alone is what a share of 0 leaves.
    nothing = fields.top_p == 0
    return Sampling(
        temperature=fields.temperature,
        top_k=1 if nothing else fields.top_k,
        top_p=None if nothing else fields.top_p,
        max_tokens=fields.max_tokens,
        stop=fields.stop_sequences or [],
    )
