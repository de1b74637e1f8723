"""From the body of a request to what a neuron is asked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.dialects import RequestContext, free_json
from gateway.dialects.fields import bad_request, decode, keep_alive, required, unsupported
from gateway.dialects.openai.responses import context, items, response
from gateway.dialects.openai.responses.configuration import updated
from gateway.dialects.openai.responses.fields import CreateFields, refuse
from gateway.dialects.openai.responses.output import Events, Output
from gateway.dialects.openai.responses.tools import Tools
from gateway.store.response_store import ResponseStore
from gateway.store.responses import Stored
from ipc.messages.conversation import Message
from ipc.messages.requests import Generate
from ipc.messages.sampling import Sampling, Structured, Thinking

ENCRYPTED, LOGPROBS = "reasoning.encrypted_content", "message.output_text.logprobs"

# What the client calls the fields that a neuron may complain of.
NAMES = {
    "messages": "input",
    "must_call": "tool_choice",
    "structured_outputs.json": "text.format.schema",
    "structured_outputs": "text.format",
    "structured": "text.format",
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
}

_decoder = msgspec.json.Decoder(CreateFields)


@dataclass(slots=True)
class Creation:
    """A response that is asked for.

    Attributes:
        account: whose it will be.
        generate: what a neuron is asked.
        response: the object; nothing has come of it yet.
        output: what collects the items of the answer.
        own: the items that came with the request, as they are kept.
    """

    fields: CreateFields
    account: str
    generate: Generate
    response: dict[str, Any]
    output: Output
    own: list[dict[str, Any]]

    @property
    def id(self) -> str:
        return self.response["id"]

    def stored(self) -> Stored:
        """It as it is kept, as far as it has come."""
        return Stored(self.response, self.own)


async def read(body: bytes | bytearray, asker: RequestContext, store: ResponseStore | None) -> Creation:
    """Read a request.

    Raises:
        CortexError: a field is wrong or asks for what we cannot do; `param` names it.
    """
    fields = decode(_decoder, body)
    refuse(fields)
    if store is None and (fields.store or fields.background):
        param = "store" if fields.store else "background"
        raise unsupported(param, "this gateway keeps nothing (store.enabled is false)")
    if fields.background and fields.store is False:
        raise bad_request("background", "needs store to be true")
    is_kept = store is not None and fields.store is not False
    if is_kept:
        await store.check()  # rather than after all the work
    known = await context.read(fields, store, asker.account)
    fields = updated(fields, known.entries)
    tools = Tools(fields, items.additional_tools(known.entries))
    stamp = os.urandom(20).hex()
    return Creation(
        fields=fields,
        account=asker.account,
        generate=_generate(fields, known.messages, tools),
        response=response.begun(fields, f"resp_{stamp}", store=is_kept),
        output=_output(fields, tools, stamp),
        own=known.own,
    )


def _generate(fields: CreateFields, messages: list[Message], tools: Tools) -> Generate:
    return Generate(
        id=0,
        model=fields.model,
        messages=messages,
        tools=tools.told,
        must_call=tools.must_call,
        parallel_tool_calls=tools.parallel and fields.max_tool_calls != 1,
        thinking=thinking(fields),
        sampling=Sampling(
            temperature=fields.temperature,
            top_p=fields.top_p,
            presence_penalty=fields.presence_penalty or 0.0,
            frequency_penalty=fields.frequency_penalty or 0.0,
            max_tokens=fields.max_output_tokens,
            logprobs=(fields.top_logprobs or 0) if _with_logprobs(fields) else None,
        ),
        structured=_structured(fields),
        stream=bool(fields.stream or fields.background),
        priority=fields.priority or 0,
        cache_salt=fields.cache_salt or "",
        keep_alive=keep_alive(fields.keep_alive),
        session=fields.prompt_cache_key or fields.conversation_id or "",
    )


def _output(fields: CreateFields, tools: Tools, stamp: str) -> Output:
    reasoning, options = fields.reasoning, fields.stream_options
    summary = (reasoning.summary or reasoning.generate_summary) if reasoning is not None else None
    return Output(
        Events(unread=not (fields.stream or fields.background)),
        stamp,
        tools,
        summary=summary not in (None, "none"),
        sealed=ENCRYPTED in (fields.include or ()),
        with_logprobs=_with_logprobs(fields),
        obfuscate=bool(options and options.include_obfuscation),
        max_calls=fields.max_tool_calls,
    )


def _with_logprobs(fields: CreateFields) -> bool:
    return LOGPROBS in (fields.include or ()) or bool(fields.top_logprobs)


def thinking(fields: CreateFields) -> Thinking:
    """How much the model is to think."""
    effort = fields.reasoning.effort if fields.reasoning is not None else None
    return Thinking() if effort is None else Thinking(enabled=effort != "none", effort=effort)


def _structured(fields: CreateFields) -> Structured | None:
    form = fields.text.format if fields.text is not None else None
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return Structured(json_object=True)
    for name in ("name", "schema"):
        required(getattr(form, name), f"text.format.{name}")
    free_json.check("text.format.schema", form.schema)
    return Structured(json=form.schema)
