"""An answer that has to call a tool does so, with arguments that fit where a grammar can see to it."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from ipc.errors import Code, CortexError
from ipc.messages.conversation import Tool
from ipc.messages.sampling import Structured
from neuron.grammar.tool_calls import allow_call, require_call
from neuron.text.formats.hermes import HermesParser
from neuron.text.formats.registry import FORMATS
from tests.neuron.grammars import encode, follow

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
WEATHER = Tool.function("weather", parameters=SCHEMA)
TIME = Tool.function(
    'time "now"', parameters={"type": "object", "properties": {}, "additionalProperties": False}
)


def written(tools: list[Tool], names: list[str], seed: int, *, parallel: bool = True) -> str:
    """What somebody writes who knows nothing but the grammar, one byte after the other."""
    return follow(require_call(tools, names, encode, "none", parallel).grammar, seed)


def calls_in(text: str) -> list:
    parser = HermesParser(first=True)
    assert all(kind == "tool" for kind, _ in parser.push(text) + parser.finish()), text
    return parser.calls


@pytest.mark.parametrize("seed", range(10))
def test_a_tool_that_stands_alone_is_called_once_with_arguments_that_fit(seed):
    [call] = calls_in(written([WEATHER, TIME], ["weather"], seed))
    assert call.name == "weather"
    jsonschema.validate(json.loads(call.arguments), SCHEMA)


def test_of_several_tools_some_are_called():
    calls = [calls_in(written([WEATHER, TIME], ["weather", 'time "now"'], seed)) for seed in range(20)]
    assert all(calls)
    assert {call.name for several in calls for call in several} == {"weather", 'time "now"'}
    assert max(map(len, calls)) > 1


def test_of_several_tools_one_is_called_where_calls_are_not_to_be_parallel():
    names = ["weather", 'time "now"']
    calls = [calls_in(written([WEATHER, TIME], names, seed, parallel=False)) for seed in range(10)]
    assert {len(several) for several in calls} == {1}
    assert {call.name for [call] in calls} == {*names}


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"type": "string"},
        {"type": "object", "properties": {"x": {"enum": ["y" * 200_000]}}},
        {"type": "object", "properties": 7},
    ],
)
def test_a_schema_that_no_grammar_can_be_made_of_leaves_any_object(parameters):
    grammar = require_call([Tool.function("f", parameters=parameters)], ["f"], encode, "none").grammar
    assert '%json {"type": "object", "x-guidance"' in grammar


@pytest.mark.parametrize("written", FORMATS, ids=lambda each: each.name)
def test_of_odd_schemas_a_grammar_is_written_in_every_format(written, monkeypatch):
    monkeypatch.setattr("neuron.grammar.tool_calls.fault", lambda *given: None)  # which takes a process each
    odd = [
        {"type": ["string", "null"], "const": "a"},
        {"type": ["string", "null"], "enum": [["x"], None]},
        *({"type": "string", "enum": value} for value in (None, 5)),
        *({"type": "string", "pattern": value} for value in (None, 5)),
        *({"type": value} for value in ({}, [], [["string"]])),
    ]
    schemas = [{"type": "object", "properties": {"x": each}} for each in odd]
    schemas += [{"type": "object", "properties": {"x": {}}, "required": each} for each in (True, 5, [["x"]])]
    tools = [Tool.function(f"f{number}", parameters=each) for number, each in enumerate(schemas)]
    assert require_call(tools, [tool.name for tool in tools], encode, "none", written=written).grammar


@pytest.mark.parametrize("unfit", [{"not": {}}, {"pattern": "(?=a)b"}])
def test_of_a_schema_that_no_grammar_can_be_made_of_names_and_types_are_left(unfit):
    schema = {
        "type": "object",
        "properties": {"x": unfit, "y": {"type": "integer", **unfit}},
        "required": ["x", "y"],
    }
    [call] = calls_in(
        follow(require_call([Tool.function("f", parameters=schema)], ["f"], encode, "none").grammar, 3)
    )
    arguments = json.loads(call.arguments)
    assert arguments.keys() == {"x", "y"}
    assert type(arguments["y"]) is int


def test_a_schema_that_no_grammar_can_be_made_of_is_its_own_tools_affair():
    odd = {"type": "object", "properties": {"x": {"type": "string", "pattern": "(?=a)b"}}}
    tools = [Tool.function(f"f{number}", parameters=SCHEMA) for number in range(5)]
    tools.insert(3, Tool.function("odd", parameters=odd))
    grammar = require_call(tools, [tool.name for tool in tools], encode, "none").grammar
    assert grammar.count('"maxLength": 9') == 5
    assert grammar.count('"x": {"type": "string"}') == 1


def test_tags_that_are_tokens_are_written_as_such():
    def encode_tags(text: str) -> list[int]:
        return [7] if text in ("<tool_call>", "</tool_call>") else list(text.encode())

    grammar = require_call([WEATHER], ["weather"], encode_tags, "none").grammar
    assert re.search(r"^call_0: <\[7\]> .* <\[7\]>$", grammar, re.MULTILINE)
    assert '"<tool_call>\\n' in require_call([WEATHER], ["weather"], encode, "none").grammar


def test_names_that_are_too_much_for_a_grammar_are_refused():
    tools = [Tool.function(f"{number}" * 40, parameters=SCHEMA) for number in range(9_000)]
    with pytest.raises(
        CortexError, match="tools cannot be held to a grammar: it is larger than 128 KB"
    ) as caught:
        require_call(tools, [tool.name for tool in tools], encode, "none")
    assert (caught.value.code, caught.value.param) == (Code.BAD_REQUEST, "tools")


FORMS = {
    "json": (
        {
            "type": "object",
            "properties": {"n": {"enum": [1, 2]}},
            "required": ["n"],
            "additionalProperties": False,
        },
        r'\{\s*"n"\s*:\s*[12]\s*\}',
    ),
    "regex": ("[a-c]{3}", "[a-c]{3}"),
    "choice": (["yes", "<no>"], "yes|<no>"),
    "grammar": ('start: "{" b "}"\nb: "x" | "y"', r"\{[xy]\}"),
}


@pytest.mark.parametrize("field", FORMS)
def test_beside_tools_an_answer_is_a_call_or_has_its_form(field):
    asked, pattern = FORMS[field]
    grammar = allow_call([WEATHER, TIME], Structured(**{field: asked}), encode, "none").grammar
    written = [follow(grammar, seed) for seed in range(30)]
    answers = [text for text in written if re.fullmatch(pattern, text)]
    calls = [calls_in(text) for text in written if text not in answers]
    assert answers
    assert calls
    assert all(calls)


def test_a_form_that_cannot_be_honoured_is_named_beside_tools():
    with pytest.raises(CortexError) as caught:
        allow_call([WEATHER], Structured(json={"not": {}}), encode, "none")
    assert caught.value.param == "structured_outputs.json"


def test_beside_a_form_one_call_is_the_most_where_they_are_not_parallel():
    form = Structured(choice=["x"])
    grammar = allow_call([WEATHER], form, encode, "none", parallel=False).grammar
    assert {len(calls_in(text)) for seed in range(20) if (text := follow(grammar, seed)) != "x"} == {1}
