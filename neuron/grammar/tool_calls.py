"""Grammars in which tools are called, in the format that `neuron/text/formats/hermes.py` reads.

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
from neuron.text.tags import CALL, END_CALL

ANY_OBJECT = {"type": "object"}


def require_call(
    tools: Sequence[Tool],
    names: Sequence[str],
    encode: Callable[[str], list[int]],
    thought: Thought,
    parallel: bool = True,
) -> Constraint:
    """The grammar of one call of the tool in `names`, or where there are several, of calls of some of them.

    Args:
        parallel: whether there may be more than one call.
        encode, thought: as for `neuron.grammar.structured.constrain`.

    Raises:
        CortexError: BAD_REQUEST naming `tools`: not even their names can be held to a grammar.
    """
    wanted = [tool for tool in tools if tool.name in names]
    once = len(wanted) == 1 or not parallel
    return hold(_grammar(wanted, once, encode, "start: calls"), encode, thought)


def allow_call(
    tools: Sequence[Tool],
    structured: Structured,
    encode: Callable[[str], list[int]],
    thought: Thought,
    parallel: bool = True,
) -> Constraint:
    """The grammar of calls of some tools, or else of an answer in the form that was asked for.

    Args:
        encode, thought, parallel: as for `require_call`.

    Raises:
        CortexError: BAD_REQUEST naming the form, as `neuron.grammar.structured.constrain` does, or `tools`.
    """
    start = f"start: calls | answer\nanswer: %lark {{\n{form(structured)}\n}}"
    return hold(_grammar(tools, not parallel, encode, start), encode, thought)


def _grammar(tools: Sequence[Tool], once: bool, encode: Callable[[str], list[int]], start: str) -> str:
    """`start`, which names `calls`, and what these are. It was tried."""
    schemas = [_schema(tool.parameters) for tool in tools]
    if fault(_written(tools, schemas, once, quoted, start)) is not None:
        schemas = [ANY_OBJECT] * len(tools)
        if (found := fault(_written(tools, schemas, once, quoted, start))) is not None:
            raise bad_request("tools", f"tools cannot be held to a grammar: {found[0]}")

    def spelled(tag: str) -> str:
        """A tag as the model writes it: as a token where it has one, else as text."""
        return tag if len(encode(tag)) == 1 else quoted(tag)

    return _written(tools, schemas, once, spelled, start)


def _written(
    tools: Sequence[Tool],
    schemas: Sequence[dict[str, Any]],
    once: bool,
    tag: Callable[[str], str],
    start: str,
) -> str:
    """In Lark; `tag` says how a tag is written there."""
    calls = []
    for tool, schema in zip(tools, schemas, strict=True):
        head = json.dumps({"name": tool.name})[:-1] + ', "arguments": '
        calls.append(f"{quoted(head)} %json {quoted(schema | JSON_OPTIONS)} {quoted('}')}")
    return "\n".join(
        [
            start,
            "calls: call" if once else 'calls: call ("\\n" call)*',
            f'call: {tag(CALL)} "\\n" ({" | ".join(f"call_{number}" for number in range(len(calls)))}) '
            f'"\\n" {tag(END_CALL)}',
            *(f"call_{number}: {call}" for number, call in enumerate(calls)),
            OPTIONS,
        ]
    )


def _schema(parameters: dict[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments, as far as a grammar can be made of it."""
    try:
        schema, _ = json_schema.check(json.loads(json.dumps(parameters, allow_nan=False)))
    except (json_schema.Unfit, RecursionError, TypeError, ValueError):
        return ANY_OBJECT
    return schema if schema.get("type") == "object" else ANY_OBJECT
