"""Chat templates: Jinja programs that come with a model, run in a sandbox as transformers runs them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import msgspec
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ipc.errors import Code, CortexError
from ipc.messages import Message, Tool
from neuron.text.content import plain

OUTPUT_LIMIT = 32 << 20  # characters of a rendered prompt
RESERVED = ("messages", "tools", "add_generation_prompt")


class ChatTemplate:
    """A compiled template. Rendering is safe from several threads.

    Args:
        source: the template's text.
        special_tokens: bos_token, eos_token and so on, which templates may name.

    Raises:
        CortexError: MODEL_LOAD_FAILED when the text is no template.
    """

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        try:
            self._template = _ENVIRONMENT.from_string(source)
        except Exception as error:  # Python's compiler has errors of its own for what Jinja makes of it
            line = f" in line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise CortexError(Code.MODEL_LOAD_FAILED, f"the chat template is wrong{line}: {error}") from error
        self._special_tokens = special_tokens

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], args: dict[str, Any]) -> str:
        """The prompt for the next turn of the assistant.

        Args:
            args: further variables for the template; they may replace special tokens and nothing else.

        Raises:
            CortexError: TEMPLATE_FAILED with the template's own words; BAD_REQUEST for a variable that is
                not the client's to set.
        """
        for name in RESERVED:
            if name in args:
                raise CortexError(
                    Code.BAD_REQUEST, f"template_args cannot set {name!r}", param=f"template_args.{name}"
                )
        variables = {
            **self._special_tokens,
            **args,
            "messages": [message_for_template(message) for message in plain(messages)],
            "tools": [tool.definition for tool in tools] or None,
            "add_generation_prompt": True,
        }
        pieces, size = [], 0
        try:
            for piece in self._template.generate(variables):
                pieces.append(piece)
                size += len(piece)
                if size > OUTPUT_LIMIT:
                    raise jinja2.TemplateError(f"the prompt is longer than {OUTPUT_LIMIT:,} characters")
        except Exception as error:  # a template is a program, and can fail in any way that programs do
            raise CortexError(
                Code.TEMPLATE_FAILED, f"the chat template refuses these messages: {error}", param="messages"
            ) from error
        return "".join(pieces)


def message_for_template(message: Message) -> dict[str, Any]:
    """A message in the shape that templates are written for. Arguments of tool calls are an object there:
    templates walk through it, and one that is no JSON object stays the text that it is."""
    role = "system" if message.role == "developer" else message.role
    turn: dict[str, Any] = {"role": role, "content": message.content}
    if message.reasoning is not None:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        turn["name"] = message.name
    return turn


def _arguments(text: str) -> dict[str, Any] | str:
    try:
        value = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's part for training; here its body is simply rendered."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Python writes it: Jinja's own filter escapes for HTML, which models were not trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


_ENVIRONMENT = _environment()
