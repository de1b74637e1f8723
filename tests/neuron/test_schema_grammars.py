"""What a grammar lets a model write as arguments is valid, whatever the schema and the format."""

from __future__ import annotations

import json
import random
from itertools import product
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher

from ipc.messages.conversation import Tool
from ipc.worker_messages import GRAMMAR_LIMITS
from neuron.grammar import check, json_schema, structured
from neuron.grammar.tool_calls import require_call
from neuron.text.formats.registry import FORMATS
from tests.neuron.grammars import BYTES, encode

SEEDS = range(14)
NAMES = ["a", "b_c", "city", "x-y", "n0", "Übung"]
ODD = ["a b", 'q"q', "k:v", "<k>", "{}"]  # that some formats have no way to write
ENDS = b'"<]}>/|'  # nobody who guesses ends a text soon: these are likelier

SCALARS: list[Any] = [
    {"type": "string"},
    {"type": "string", "minLength": 1, "maxLength": 6},
    *({"type": "string", "pattern": each} for each in ("^[a-c]{2,3}$", "x+", "^a", "b$", "^(yes|no)$")),
    *({"type": "string", "format": each} for each in ("date", "uuid", "ipv4", "email")),
    {"type": "integer", "minimum": -3, "maximum": 24},
    {"type": "integer", "multipleOf": 3},
    {"type": "number"},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "boolean"},
    {"type": "null"},
    {"enum": ["a", "1", "true", "", 2.5, True, None, [1], {"a": 1}]},
    {"const": "x\ny"},
    {"const": {"a": None}},
    {"type": ["string", "null"]},
    {"type": ["integer", "string"], "maxLength": 2, "minimum": 5},
    {"type": ["number", "boolean", "null"]},
    {"type": ["string", "array"]},
    {},
    {"description": "any"},
]


def value(rng: random.Random, depth: int) -> Any:
    """A schema."""
    if depth == 0 or rng.random() < 0.5:
        return rng.choice(SCALARS)
    kind = rng.randrange(6)
    if kind == 0:
        return {"type": "array", "items": value(rng, depth - 1), "minItems": rng.randrange(2), "maxItems": 2}
    if kind == 1:
        return {"anyOf": [value(rng, depth - 1) for _ in range(rng.randint(1, 3))]}
    if kind == 2:
        first = [value(rng, depth - 1), value(rng, depth - 1)]
        others = rng.choice([False, {"type": "integer"}])
        return {"type": "array", "prefixItems": first, "items": others, "minItems": rng.randint(0, 2)}
    if kind == 3:
        return {"type": "object", "additionalProperties": value(rng, depth - 1)}
    return {"allOf": [value(rng, depth - 1)]} if kind == 4 else structure(rng, depth - 1)


def structure(rng: random.Random, depth: int) -> dict[str, Any]:
    """A schema of an object. Names that not every format can write are not asked for."""
    names = [*rng.sample(NAMES, rng.randint(0, 3)), *rng.sample(ODD, rng.randrange(10) // 9)]
    needed = rng.sample(names, rng.randint(0, len(names)))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: value(rng, depth) for name in names},
        "required": [name for name in needed if name in NAMES],
    }
    if rng.random() < 0.6:
        schema["additionalProperties"] = False
    elif rng.random() < 0.3:
        schema["additionalProperties"] = value(rng, 0)
    if rng.random() < 0.15 and names[:1] == [name for name in names[:1] if name in NAMES] and names:
        schema["minProperties"] = 1
    if rng.random() < 0.15:
        schema["maxProperties"] = max(2, len(schema["required"]))
    return schema


def follow(grammar: str, seed: int) -> str | None:
    """What somebody writes who knows nothing but the grammar; None where it gets too long."""
    rng, text = random.Random(seed), b""
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    while not matcher.is_stopped():
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        if len(text) > 1500:
            return None
        if mask >> 256 & 1 and rng.random() < 0.5:
            break
        ends = [byte for byte in ENDS if mask >> byte & 1]
        choices = [byte for byte in range(256) if mask >> byte & 1]
        if not choices:
            break
        byte = rng.choice(ends if ends and rng.random() < 0.5 else choices)
        matcher.consume_token(byte)
        text += bytes([byte])
    return text.decode(errors="replace")


@pytest.fixture(autouse=True)
def tried_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here explodes, and a process for each grammar takes its time."""
    monkeypatch.setattr(
        structured, "_try", lambda grammar, parts: check.answer(grammar, GRAMMAR_LIMITS, **json.loads(parts))
    )


@pytest.mark.parametrize("written", FORMATS, ids=lambda each: each.name)
def test_arguments_are_valid(written) -> None:
    whole = 0
    for seed in SEEDS:
        schema = structure(random.Random(seed), 3)
        tool = Tool.function("f", parameters=schema)
        grammar = require_call([tool], ["f"], encode, "none", written=written).grammar
        for text in filter(None, (follow(grammar, each) for each in range(2))):
            parser = written.parser([tool])
            parser.push(text)
            parser.finish()
            [call] = parser.calls
            jsonschema.validate(json.loads(call.arguments), schema)
            whole += 1
    assert whole > len(SEEDS)


BOUNDS = [-100, -99.5, -99, -1, -0.5, 0, 0.009, 0.5, 0.99, 1, 1.5, 99, 99.05, 2**53 + 3]
TEXTS = [*(f"{bound}" for bound in BOUNDS), "-99.25", "-0.25", "0.25", "1.25", "0.0", "1.0", "-1.0", "99.01"]


@pytest.mark.parametrize("keys", list(product(json_schema.LOWS, json_schema.HIGHS)), ids="-".join)
def test_no_number_is_let_through_that_lies_outside_of_its_bounds(keys):
    for low, high in product(BOUNDS, BOUNDS):
        bounds = dict(zip(keys, (low, high), strict=True))
        schema, _ = json_schema.check({"type": "number"} | bounds)
        matcher = LLMatcher(BYTES, f"start: %json {json.dumps(schema)}")
        if matcher.is_error():
            assert low >= high
            continue
        for text in TEXTS:
            tried = matcher.deep_copy()
            if tried.try_consume_tokens([*text.encode()]) == len(text) and tried.is_accepting():
                jsonschema.validate(json.loads(text), bounds)
