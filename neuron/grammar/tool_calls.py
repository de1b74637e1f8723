"""Grammars in which tools are called, in the format that a model writes and `neuron/text/formats` reads.

    require_call(tools, names, encode, thought) -> Constraint
    allow_call(tools, structured, encode, thought) -> Constraint

The arguments follow a tool's schema where a grammar can be made of it, and are any JSON object where not: a
schema is a hint to the model here, as it is when the model calls a tool by its own choice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ipc.messages import Structured, Tool
from ipc.worker_messages import Constraint
from neuron.grammar import json_schema
from neuron.grammar.structured import JSON_OPTIONS, OPTIONS, Thought, fault, form, hold, quoted
from neuron.refusals import bad_request
from neuron.text.formats.hermes import HERMES
from neuron.text.formats.tool_format import ToolFormat

ANY_OBJECT = {"type": "object"}


def require_call(
    tools: Sequence[Tool],
    names: Sequence[str],
    encode: Callable[[str], list[int]],
    thought: Thought,
    parallel: bool = True,
    written: ToolFormat = HERMES,
) -> Constraint:
    """The grammar of one call of the tool in `names`, or where there are several, of calls of some of them.

    Args:
        parallel: whether there may be more than one call.
        written: the format that the model writes calls in.
        encode, thought: as for `neuron.grammar.structured.constrain`.

    Raises:
        CortexError: BAD_REQUEST naming `tools`: not even their names can be held to a grammar.
    """
    wanted = [tool for tool in tools if tool.name in names]
    once = len(wanted) == 1 or not parallel
    return hold(_grammar(wanted, once, written, encode, "start: calls"), encode, thought)


def allow_call(
    tools: Sequence[Tool],
    structured: Structured,
    encode: Callable[[str], list[int]],
    thought: Thought,
    parallel: bool = True,
    written: ToolFormat = HERMES,
) -> Constraint:
    """The grammar of calls of some tools, or else of an answer in the form that was asked for.

    Args:
        encode, thought, parallel, written: as for `require_call`.

    Raises:
        CortexError: BAD_REQUEST naming the form, as `neuron.grammar.structured.constrain` does, or `tools`.
    """
    start = f"start: calls | answer\nanswer: %lark {{\n{form(structured)}\n}}"
    return hold(_grammar(tools, not parallel, written, encode, start), encode, thought)


def _grammar(
    tools: Sequence[Tool], once: bool, written: ToolFormat, encode: Callable[[str], list[int]], start: str
) -> str:
    """`start`, which names `calls`, and what these are. It was tried."""

    def lark(schemas: Sequence[dict[str, Any]], tag: Callable[[str], str]) -> str:
        """`tag` says how a tag is written there."""
        calls = [
            f"{quoted(written.head(tool.name))} %json {quoted(schema | JSON_OPTIONS)} {quoted(written.tail)}"
            for tool, schema in zip(tools, schemas, strict=True)
        ]
        any_call = " | ".join(f"call_{number}" for number in range(len(calls)))
        return "\n".join(
            [
                start,
                "calls: call" if once else 'calls: call ("\\n" call)*',
                f'call: {tag(written.opening)} "\\n" ({any_call}) "\\n" {tag(written.closing)}',
                *(f"call_{number}: {call}" for number, call in enumerate(calls)),
                OPTIONS,
            ]
        )

    def spelled(tag: str) -> str:
        """A tag as the model writes it: as a token where it has one, else as text."""
        return tag if len(encode(tag)) == 1 else quoted(tag)

    schemas = [_schema(tool.parameters) for tool in tools]
    if fault(lark(schemas, quoted)) is not None:
        schemas = [ANY_OBJECT] * len(tools)
        if (found := fault(lark(schemas, quoted))) is not None:
            raise bad_request("tools", f"tools cannot be held to a grammar: {found[0]}")
    return lark(schemas, spelled)


def _schema(parameters: dict[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments, as far as a grammar can be made of it."""
    try:
        schema, _ = json_schema.check(json.loads(json.dumps(parameters, allow_nan=False)))
    except (json_schema.Unfit, RecursionError, TypeError, ValueError):
        return ANY_OBJECT
    return schema if schema.get("type") == "object" else ANY_OBJECT
