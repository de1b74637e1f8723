"""`POST /v1/responses`: from the body to what a neuron is asked, and to the way that the answer goes back."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import falcon.asgi
import msgspec

from gateway.dialects import Services, free_json
from gateway.dialects.openai.common import decode, renamed
from gateway.dialects.openai.responses import fields as request
from gateway.dialects.openai.responses import items, response
from gateway.dialects.openai.responses.fields import CreateFields
from gateway.dialects.openai.responses.items import Entry
from gateway.dialects.openai.responses.output import Events, Output
from gateway.dialects.openai.responses.run import Run
from gateway.dialects.openai.responses.tools import Tools
from ipc.errors import Code, CortexError
from ipc.messages import Generate, Message, Sampling, Structured, Thinking

ENCRYPTED, LOGPROBS = "reasoning.encrypted_content", "message.output_text.logprobs"

# What the client calls the fields that a neuron may complain of.
_NAMES = {
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
    """A request as it was understood.

    Attributes:
        generate: what a neuron is asked.
        response: the object, before anything has come of it.
        output: what will collect the items of the answer.
    """

    fields: CreateFields
    generate: Generate
    response: dict[str, Any]
    output: Output


class CreateResource:
    """The address itself."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        body = await self._services.read(req)
        _, exchange = self._services.open(req)
        creation = read(body)
        run = Run(exchange, creation.generate, creation.response, creation.output)
        try:
            if not creation.generate.stream:
                resp.data = await run.whole()
                return
            await run.start()
        except CortexError as error:
            raise renamed(error, _NAMES) from None
        resp.content_type = "text/event-stream; charset=utf-8"
        resp.set_header("Cache-Control", "no-cache")
        resp.set_header("X-Accel-Buffering", "no")  # nginx would hold events back
        resp.stream = run.events()


def read(body: bytes | bytearray) -> Creation:
    """Read a request.

    Raises:
        CortexError: a field is wrong or asks for what we cannot do; `param` names it.
    """
    fields = decode(_decoder, body)
    request.check(fields)
    if fields.previous_response_id is not None or fields.conversation is not None or fields.background:
        raise CortexError(
            Code.NOT_SUPPORTED, "previous_response_id: not supported", param="previous_response_id"
        )
    entries = own_entries(fields)
    tools = Tools(fields, items.additional_tools(entries))
    stamp = os.urandom(20).hex()
    wants_logprobs = LOGPROBS in (fields.include or ()) or bool(fields.top_logprobs)
    reasoning = fields.reasoning
    generate = Generate(
        id=0,
        model=fields.model,
        messages=conversation(fields, entries),
        tools=tools.told,
        must_call=tools.must_call,
        parallel_tool_calls=tools.parallel and fields.max_tool_calls != 1,
        thinking=_thinking(fields),
        sampling=Sampling(
            temperature=fields.temperature,
            top_p=fields.top_p,
            presence_penalty=fields.presence_penalty or 0.0,
            frequency_penalty=fields.frequency_penalty or 0.0,
            max_tokens=fields.max_output_tokens,
            logprobs=(fields.top_logprobs or 0) if wants_logprobs else None,
        ),
        structured=_structured(fields),
        stream=bool(fields.stream),
        priority=fields.priority or 0,
        cache_salt=fields.cache_salt or "",
    )
    output = Output(
        Events(),
        stamp,
        tools,
        summary=reasoning is not None
        and (reasoning.summary or reasoning.generate_summary) not in (None, "none"),
        sealed=ENCRYPTED in (fields.include or ()),
        with_logprobs=wants_logprobs,
        obfuscate=bool(fields.stream_options and fields.stream_options.include_obfuscation),
    )
    return Creation(fields, generate, response.begun(fields, f"resp_{stamp}", store=False), output)


def own_entries(fields: request.ContextFields) -> list[Entry]:
    """The items that came with the request."""
    given = fields.input
    if given is None:
        return []
    if isinstance(given, str):
        return [Entry("input", {"type": "message", "role": "user", "content": given})]
    return [Entry(f"input[{i}]", item) for i, item in enumerate(given)]


def conversation(fields: request.ContextFields, entries: list[Entry]) -> list[Message]:
    """What the model is to read.

    Raises:
        CortexError: an item is wrong, or there is nothing to answer.
    """
    messages = items.messages(entries)
    if not messages:
        param = "input"
        text = "a required field is missing" if fields.input is None else "there is nothing in it to answer"
        raise CortexError(Code.BAD_REQUEST, f"{param}: {text}", param=param)
    if fields.instructions:
        messages.insert(0, Message(role="system", content=fields.instructions))
    return messages


def _thinking(fields: CreateFields) -> Thinking:
    effort = fields.reasoning.effort if fields.reasoning is not None else None
    return Thinking() if effort is None else Thinking(enabled=effort != "none", effort=effort)


def _structured(fields: CreateFields) -> Structured | None:
    form = fields.text.format if fields.text is not None else None
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return Structured(json_object=True)
    for name in ("name", "schema"):
        if getattr(form, name) is None:
            param = f"text.format.{name}"
            raise CortexError(Code.BAD_REQUEST, f"{param}: a required field is missing", param=param)
    free_json.check("text.format.schema", form.schema)
    return Structured(json=form.schema)
