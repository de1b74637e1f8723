"""What a grammar lets a model write as a call of a Python function is read as a call that fits its tool."""

from __future__ import annotations

import json

import jsonschema
import pytest

from ipc.messages.conversation import Tool
from neuron.grammar.tool_calls import require_call
from neuron.text.formats.pythonic import PYTHONIC
from tests.neuron.grammars import encode, follow


def written(schema, seed):
    tool = Tool.function("f", parameters=schema)
    text = follow(require_call([tool], ["f"], encode, "none", written=PYTHONIC).grammar, seed)
    parser = PYTHONIC.parser([tool])
    assert all(kind == "tool" for kind, _ in parser.push(text) + parser.finish()), text
    [call] = parser.calls
    arguments = json.loads(call.arguments)
    jsonschema.validate(arguments, schema)
    return text, arguments


def of(properties, required=(), **more):
    schema = {"type": "object", "properties": properties, "required": [*required], **more}
    return {"additionalProperties": False, **schema}


SCHEMAS = {
    "optional": of({key: {"type": "boolean"} for key in "abcd"}, "c"),
    "all optional": of({key: {"type": "null"} for key in "abc"}),
    "words": of({"a": {"enum": [True, None, 'it\'s "so"', 1.5]}, "b": {"type": ["boolean", "null"]}}, "ab"),
    "either": of({"a": {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 3, "maximum": 9}]}}, "a"),
    "definitions": of(
        {"a": {"$ref": "#/$defs/d"}}, "a", **{"$defs": {"d": {"type": "array", "items": {"enum": [1, 2]}}}}
    ),
    "names that are none": of({"a b": {"enum": [1]}, "c": {"enum": ["x"]}}, ["a b"]),
    "no names": {"type": "object", "additionalProperties": {"type": "integer", "maximum": 9, "minimum": 0}},
    "counted": {**of({"a": {"enum": [1]}, "b": {"enum": [2]}}), "minProperties": 1},
    "references": of({"a": {"enum": [1]}, "b": {"$ref": "#/properties/a"}}, "ab"),
    "names by pattern": of({}, patternProperties={"^n_[a-c]$": {"enum": [1]}}, minProperties=1),
    "wrong enum": of({"a": {"type": "string", "enum": ["x", 1]}}, "a"),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_calls_fit_whatever_is_written(name):
    for seed in range(12):
        written(SCHEMAS[name], seed)


def test_every_choice_of_arguments_can_be_written():
    for name, choices in (("optional", 8), ("all optional", 8)):
        assert len({(*written(SCHEMAS[name], seed)[1],) for seed in range(200)}) == choices


def test_words_are_those_of_python():
    texts = {written(SCHEMAS["optional"], seed)[0] for seed in range(30)}
    assert not any("true" in text or "false" in text for text in texts)
    assert any("True" in text for text in texts)


def test_only_arguments_that_cannot_be_told_apart_come_as_an_object():
    for name, schema in SCHEMAS.items():
        whole = name in ("names that are none", "no names", "references", "names by pattern")
        assert written(schema, 1)[0].startswith("[f(**{") == whole, name
