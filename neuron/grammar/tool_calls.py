"""Grammars in which tools are called, in the format that a model writes and `neuron/text/formats` reads.

    require_call(tools, names, encode, thought) -> Constraint
    allow_call(tools, structured, encode, thought) -> Constraint

The arguments follow a tool's schema where a grammar can be made of it, and where not, what is left of it: a
schema is a hint to the model here, as it is when the model calls a tool by its own choice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from typing import Any

from ipc.errors import CortexError
from ipc.messages.conversation import Tool
from ipc.messages.sampling import Structured
from ipc.worker_messages import Constraint
from neuron.grammar import json_schema
from neuron.grammar.structured import OPTIONS, TOO_LARGE, fault, form, hold
from neuron.grammar.text_grammar import text_grammar
from neuron.refusals import bad_request
from neuron.text.formats.hermes import HERMES
from neuron.text.formats.lark import TEXT_GRAMMAR, Lark
from neuron.text.formats.tool_format import ToolFormat
from neuron.text.reasoning import THINK, ThinkTags, Thought

Calls = list[tuple[str, dict[str, Any]]]  # names of tools, and schemas of their arguments

ANY_OBJECT = {"type": "object"}
MAX_COUNTED = 6  # named members of an object that counts them; every choice of them is a schema of its own


def require_call(
    tools: Sequence[Tool],
    names: Sequence[str],
    encode: Callable[[str], list[int]],
    thought: Thought,
    parallel: bool = True,
    written: ToolFormat = HERMES,
    tags: ThinkTags = THINK,
) -> Constraint:
    """The grammar of one call of the tool in `names`, or where there are several, of calls of some of them.

    Args:
        parallel: whether there may be more than one call.
        written: the format that the model writes calls in.
        encode, thought, tags: as for `neuron.grammar.structured.constrain`.

    Raises:
        CortexError: BAD_REQUEST naming `tools`: not even their names can be held to a grammar.
    """
    wanted = [tool for tool in tools if tool.name in names]
    once = len(wanted) == 1 or not parallel
    return hold(_grammar(wanted, once, written, encode, "start: calls"), encode, thought, tags)


def allow_call(
    tools: Sequence[Tool],
    structured: Structured,
    encode: Callable[[str], list[int]],
    thought: Thought,
    parallel: bool = True,
    written: ToolFormat = HERMES,
    tags: ThinkTags = THINK,
) -> Constraint:
    """The grammar of calls of some tools, or else of an answer in the form that was asked for.

    Args:
        encode, thought, tags, parallel, written: as for `require_call`.

    Raises:
        CortexError: BAD_REQUEST naming the form, as `neuron.grammar.structured.constrain` does, or `tools`.
    """
    start = f"start: calls | answer\nanswer: %lark {{\n{form(structured)}\n}}"
    return hold(_grammar(tools, not parallel, written, encode, start), encode, thought, tags)


def _grammar(
    tools: Sequence[Tool], once: bool, written: ToolFormat, encode: Callable[[str], list[int]], start: str
) -> str:
    """`start`, which names `calls`, and what these are. It was tried."""

    def lark(calls: Calls, tokens: Mapping[str, int] = {}, begin: str = start) -> str:
        """`tokens`: markers that are written as such."""
        return "\n".join([begin, *written.rules(calls, once, Lark(tokens)), OPTIONS])

    def fitting(calls: Calls) -> Calls:
        """Calls with the schemas that a grammar can be made of; for the others, with what is left of them."""
        if (found := fault(lark(calls, begin="start: calls"))) is None:
            return calls
        if found[0] == TOO_LARGE:
            return [(name, ANY_OBJECT) for name, _ in calls]
        if len(calls) == 1:
            [(name, schema)] = calls
            inner = {key: _counted(each) for key, each in schema.items()}
            ways = ([(name, each)] for each in (inner, _counted(schema), _names(schema)))
            good = (way for way in ways if fault(lark(way, begin="start: calls")) is None)
            return next(good, [(name, ANY_OBJECT)])
        half = len(calls) // 2
        return fitting(calls[:half]) + fitting(calls[half:])

    calls: Calls = [(tool.name, _schema(tool)) for tool in tools]
    if fault(lark(calls)) is not None:
        calls = fitting(calls)
        if fault(lark(calls)) is not None:
            calls = [(tool.name, ANY_OBJECT) for tool in tools]
            if (found := fault(lark(calls))) is not None:
                raise bad_request("tools", f"tools cannot be held to a grammar: {found[0]}")
    encoded = {mark: encode(mark) for mark in written.markers}
    return lark(calls, {mark: ids[0] for mark, ids in encoded.items() if len(ids) == 1})


def _schema(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments, as far as a grammar can be made of it."""
    if tool.text_grammar is not None:
        return _of_text(tool)
    for parameters in (tool.parameters, _names(tool.parameters)):
        with suppress(json_schema.Unfit, RecursionError, TypeError, ValueError):
            schema, _ = json_schema.check(json.loads(json.dumps(parameters, allow_nan=False)))
            return schema if schema.get("type") == "object" else ANY_OBJECT
    return ANY_OBJECT


def _counted(schema: Any) -> Any:
    """The same, where members are counted: none but those that are named, and every choice of them by itself.
    llguidance counts no members that may be missing."""
    if isinstance(schema, list):
        return [_counted(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    counted = {key: _counted(each) for key, each in schema.items()}
    properties, needed = schema.get("properties"), schema.get("required", [])
    least, most = counted.pop("minProperties", 0), counted.pop("maxProperties", MAX_COUNTED)
    if "minProperties" not in schema and "maxProperties" not in schema:
        return counted
    if (
        not isinstance(properties, dict)
        or len(properties) > MAX_COUNTED
        or not {*needed} <= properties.keys()
    ):
        return schema
    return {
        "anyOf": [
            counted
            | {
                "properties": {key: counted["properties"][key] for key in chosen},
                "required": [*chosen],
                "additionalProperties": False,
            }
            for count in range(least, min(most, len(properties)) + 1)
            for chosen in combinations(properties, count)
            if {*needed} <= {*chosen}
        ]
    }


def _names(schema: dict[str, Any]) -> dict[str, Any]:
    """What a schema says of the names of arguments and of their types, and no more."""
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, dict):
        return ANY_OBJECT
    types = {
        key: {"type": each["type"]} if isinstance(each, dict) and "type" in each else {}
        for key, each in properties.items()
    }
    required = schema.get("required")
    needed = [key for key in types if isinstance(required, list) and key in required]
    return {"type": "object", "properties": types, "required": needed, "additionalProperties": False}


def _of_text(tool: Tool) -> dict[str, Any]:
    """The schema of the one argument of a tool that is a text with a grammar of its own.

    Raises:
        CortexError: BAD_REQUEST naming `tools`: it is no grammar, or there is no such argument.
    """
    properties = tool.parameters.get("properties")
    if not isinstance(properties, dict) or len(properties) != 1:
        raise bad_request(
            "tools", f"the tool {tool.name!r} has a grammar, and not one argument that follows it"
        )
    try:
        form(Structured(grammar=tool.text_grammar))
    except CortexError as error:
        raise bad_request("tools", f"of the tool {tool.name!r} {error.message}") from None
    text = {"type": "string", TEXT_GRAMMAR: text_grammar(tool.text_grammar)}
    return {
        "type": "object",
        "properties": dict.fromkeys(properties, text),
        "required": [*properties],
        "additionalProperties": False,
    }
