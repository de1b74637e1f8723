"""From what an answer must look like to the grammar that a worker holds it to.

    constrain(structured, encode, thought) -> Constraint

`encode` turns a text into token ids and adds none (`partial(front_end.encode, special=False)`). `thought`
says where the prompt leaves the model: "none" (no thought comes: plain prompts, models that do not think, a
thought that the prompt has closed), "open" (the prompt has opened one) or "possible" (the model may begin with
one). It may take a second or so: call it in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Literal

from llguidance import LLMatcher, regex_to_lark

from ipc.errors import Code, CortexError
from ipc.messages import Structured
from ipc.worker_messages import Constraint
from neuron.text.tags import END_THINK, THINK

# Between JSON's marks: a space, or a line break and an indentation; a model cannot write space for ever.
WHITESPACE = r" |\n(?: {0,32}|\t{0,8})"
OPTIONS = '%llguidance {"no_forcing": true}'  # a text may be spelled with whatever tokens the model likes
ESCAPES = 'nrbtf\\"'  # one way to write each character, so that no key can hide as another; no \u


def constrain(
    structured: Structured,
    encode: Callable[[str], list[int]],
    thought: Literal["none", "open", "possible"] = "none",
) -> Constraint:
    """The grammar that `structured` stands for, checked.

    Raises:
        CortexError: BAD_REQUEST naming `structured_outputs.<field>`, with the reason.
    """
    field, grammar = _grammar(structured)
    problem = LLMatcher.validate_grammar(grammar)
    if problem:
        raise _refused(field, problem)
    return Constraint(
        grammar,
        in_thought=thought == "open",
        think=encode(THINK) if thought == "possible" else [],
        end_think=encode(END_THINK) if thought != "none" else [],
    )


def _grammar(structured: Structured) -> tuple[str, str]:
    """The name of the field that is set, and the grammar as llguidance reads it."""
    asked = {
        "json": structured.json,
        "json_object": structured.json_object or None,
        "regex": structured.regex,
        "choice": structured.choice,
        "grammar": structured.grammar,
    }
    given = [name for name, value in asked.items() if value is not None]
    if len(given) != 1:
        raise CortexError(
            Code.BAD_REQUEST,
            f"structured_outputs has {' and '.join(given) or 'nothing'}, where exactly one of "
            f"{', '.join(asked)} is needed",
            param="structured_outputs",
        )
    (field,) = given
    value = asked[field]
    if field == "json":
        if value is False:
            raise _refused(field, "the schema false allows no answer")
        grammar = _of_schema({} if value is True else value)
    elif field == "json_object":
        grammar = _of_schema({"type": "object"})
    elif field == "regex":
        grammar = f"start: /{regex_to_lark(value)}/"
    elif field == "choice":
        if not value:
            raise _refused(field, "there is no choice")
        grammar = "start: " + " | ".join(map(json.dumps, value))
    else:
        grammar = value
    return field, f"{grammar}\n{OPTIONS}"


def _of_schema(schema: dict) -> str:
    options = {"whitespace_pattern": WHITESPACE, "json_allowed_escapes": ESCAPES}
    return "start: %json " + json.dumps(schema | {"x-guidance": options})


def _refused(field: str, reason: str) -> CortexError:
    return CortexError(
        Code.BAD_REQUEST, f"{field} cannot be honoured: {reason}", param=f"structured_outputs.{field}"
    )
