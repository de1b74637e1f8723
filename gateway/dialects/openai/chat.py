"""`POST /v1/chat/completions`, as OpenAI has it, with the extensions of others that agents use."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway.dialects import RequestContext
from gateway.dialects.fields import bad_request, decode, keep_alive, refuser, refusing
from gateway.dialects.openai.chat_answer import ChatRenderer
from gateway.dialects.openai.conversation import ContinueFields, Turn, continues, conversation
from gateway.dialects.openai.fields import NEUTRAL, Fields, LogprobCount, MaxTokens, limit, sampling
from gateway.dialects.openai.structured import structured
from gateway.dialects.openai.thinking import ThinkingFields, is_hidden, template_args, thinking
from gateway.dialects.openai.tools import ToolFields, tool_choice
from ipc.messages.conversation import MAX_TURNS
from ipc.messages.requests import Generate

CHAT_NEUTRAL = NEUTRAL | {
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
    "chat_template": (),
    "documents": ([],),
    "add_special_tokens": (False,),
    "echo": (False,),
    "suffix": ("",),
    "reasoning_format": ("auto", "deepseek", "parsed"),  # of llama.cpp and Groq
}


class ChatFields(refusing(Fields, CHAT_NEUTRAL, ToolFields, ThinkingFields, ContinueFields), kw_only=True):
    messages: Annotated[list[Turn], Meta(min_length=1, max_length=MAX_TURNS)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: LogprobCount | None = None
    chat_template_kwargs: dict[str, Any] | None = None


_refuse = refuser(CHAT_NEUTRAL)
_decoder = msgspec.json.Decoder(ChatFields)


async def parse(body: bytes, context: RequestContext) -> tuple[Generate, ChatRenderer]:
    """Read a request.

    Raises:
        CortexError: a field is wrong or asks for what we cannot do; `param` names it.
    """
    fields = decode(_decoder, body)
    _refuse(fields)
    if fields.top_logprobs and not fields.logprobs:
        raise bad_request("top_logprobs", "needs logprobs to be true")
    form, names = structured(fields)
    tools = tool_choice(fields)
    is_continued, continued_names = continues(fields, fields.messages)
    max_tokens = limit(fields.max_tokens, "max_tokens")
    if fields.max_completion_tokens is not None:
        max_tokens = limit(fields.max_completion_tokens, "max_completion_tokens")
    generate = Generate(
        id=0,
        model=fields.model,
        messages=conversation(fields.messages),
        tools=tools.tools,
        must_call=tools.must_call,
        template_args=template_args(fields.chat_template_kwargs),
        thinking=thinking(fields),
        sampling=sampling(fields, max_tokens, (fields.top_logprobs or 0) if fields.logprobs else None),
        structured=form,
        stream=bool(fields.stream),
        return_token_ids=bool(fields.return_token_ids),
        priority=fields.priority or 0,
        cache_salt=fields.cache_salt or "",
        keep_alive=keep_alive(fields.keep_alive),
        parallel_tool_calls=tools.parallel,
        continue_final_message=is_continued,
        session=fields.prompt_cache_key or "",
    )
    names |= {"must_call": tools.param, "template_args": "chat_template_kwargs"} | continued_names
    if tools.is_old:
        names["tools"] = "functions"
    if fields.max_completion_tokens:
        names["max_tokens"] = "max_completion_tokens"
    answer = ChatRenderer(
        fields,
        context.request_id,
        names,
        tools,
        with_logprobs=bool(fields.logprobs),
        hides_reasoning=is_hidden(fields),
    )
    return generate, answer
