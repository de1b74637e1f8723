"""What may be asked of an answer, and what is refused before the request starts."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from ipc.errors import Code, CortexError
from ipc.messages.sampling import Structured
from ipc.worker_messages import Constraint
from neuron.grammar import structured as module
from neuron.grammar.structured import MAX_SIZE, constrain, form


def encode(text: str) -> list[int]:
    return list(text.encode())


def refusal(**asked: Any) -> CortexError:
    with pytest.raises(CortexError) as caught:
        constrain(Structured(**asked), encode)
    assert caught.value.code == Code.BAD_REQUEST
    assert "\n" not in caught.value.message
    return caught.value


ASKED: list[dict[str, Any]] = [
    {"json": {"type": "string"}},
    {"json": True},
    {"json_object": True},
    {"regex": r"a/b\d+"},
    {"choice": ["yes", "“no”", "tab\t", "\x7f", 'a "quote"', "back\\slash"]},
    {"grammar": 'start: %json {"type": "integer"} | "<none>" // not a <token>'},
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: next(iter(asked)))
def test_what_can_be_honoured_becomes_a_grammar(asked):
    assert constrain(Structured(**asked), encode).grammar


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({}, "nothing"),
        ({"json_object": True, "regex": "a"}, "regex"),
        ({"json": False, "choice": []}, "choice"),
    ],
)
def test_exactly_one_is_asked(asked, named):
    error = refusal(**asked)
    assert error.param == "structured_outputs"
    assert named in error.message


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"properties": None}, "/properties"),
        ({"type": "object", "properties": 5}, "/properties"),
        ({"anyOf": []}, "/anyOf"),
        ({"type": "number", "multipleOf": -1}, "/multipleOf"),
        (
            {"type": "object", "properties": {"first name": {"type": "string"}, "b%": {"type": "foo"}}},
            "/properties/b%",
        ),
        ({"type": "object", "patternProperties": {"^a": {"type": "foo"}}}, "/patternProperties/^a"),
    ],
)
def test_the_part_that_is_wrong_is_pointed_to(schema, pointer):
    error = refusal(json=schema)
    assert error.details["pointer"] == pointer
    assert "root" not in error.message.removesuffix("at its root")


def test_what_is_no_json_is_refused():
    assert "no JSON" in refusal(json={"const": b"x"}).message


def test_schemas_in_a_grammar_are_as_strict_as_others():
    grammar = constrain(
        Structured(grammar='start: "<" %json {"type": "array"} ">" %json true // %json'), encode
    ).grammar
    assert grammar.count("whitespace_pattern") == 2
    assert "// %json" in grammar


def test_a_thought_comes_before_the_grammar():
    asked = Structured(regex="a")
    tags = {"think": encode("<think>"), "end_think": encode("</think>")}
    grammar = constrain(asked, encode).grammar
    assert constrain(asked, encode, "none") == Constraint(grammar)
    assert constrain(asked, encode, "possible") == Constraint(grammar, **tags)
    assert constrain(asked, encode, "open") == Constraint(
        grammar, in_thought=True, end_think=tags["end_think"]
    )


REFUSED: list[tuple[Any, str, str]] = [
    (False, "", "false"),
    ({"type": "nope"}, "", "nope"),
    ({"properties": {"a": {"items": {"not": {}}}}}, "/properties/a/items/not", "not"),
    ({"properties": {"a/b~": {"uniqueItems": True}}}, "/properties/a~1b~0/uniqueItems", "uniqueItems"),
    ({"anyOf": [{}, {"if": {}, "then": {"type": "null"}}]}, "/anyOf/1/if", "if"),
    ({"$dynamicRef": "#a"}, "/$dynamicRef", "dynamicRef"),
    ({"propertyNames": {"pattern": "^a"}}, "/propertyNames", "propertyNames"),
    ({"contains": {}}, "/contains", "contains"),
    ({"dependentRequired": {"a": ["b"]}}, "/dependentRequired", "dependentRequired"),
    ({"dependencies": 1}, "/dependencies", "dependencies"),
    ({"$ref": "#/x/a", "x": {"a": {"uniqueItems": True}}}, "/x/a/uniqueItems", "uniqueItems"),
    ({"type": "string", "minLength": 10**6}, "/minLength", "1000000 characters"),
    ({"type": "string", "pattern": r"^\p{L}{500000}a{500000}$"}, "/pattern", "1000000 characters"),
    ({"maxItems": 2.5}, "/maxItems", "whole number"),
    ({"exclusiveMinimum": True}, "/exclusiveMinimum", "number"),
    ({"maxItems": "3"}, "/maxItems", "whole number"),
    ({"minLength": -1}, "/minLength", "whole number"),
    ({"items": [{}]}, "/items", "object"),
    ({"additionalItems": False, "items": [{}]}, "/additionalItems", "prefixItems"),
    ({"$schema": "http://example.com/mine"}, "/$schema", "draft"),
    ({"properties": []}, "/properties", "object"),
    ({"anyOf": {}}, "/anyOf", "list"),
    ({"required": "a"}, "/required", "strings"),
    ({"properties": {"a\nb": {}}}, "/properties", "control"),
    ({"type": "object", "minProperties": 2}, "/minProperties", "enforced"),
    ({"properties": {"a": {"pattern": "(?=a)b"}}}, "/properties/a", "look-around"),
    ({"properties": {"a": {"pattern": "("}}}, "/properties/a", "unclosed"),
    ({"items": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "/items", "oneOf"),
    (
        {"type": "array", "items": {"minimum": 3, "maximum": 2, "type": "number"}, "minItems": 1},
        "/items",
        "minimum",
    ),
    ({"items": {"$ref": "#/$defs/missing"}}, "/items", "'#/$defs/missing' does not exist"),
    ({"$ref": "https://example.com/schema"}, "", "example.com"),
    ({"allOf": [{"type": "string"}, {"type": "number"}]}, "", "incompatible"),
    ({"enum": []}, "", "empty"),
    ({"enum": ["a", [{"b": 2**53 + 1}]]}, "/enum", "9007199254740993"),
]


@pytest.mark.parametrize(("schema", "pointer", "reason"), REFUSED, ids=lambda value: json.dumps(value)[:60])
def test_a_schema_that_cannot_be_honoured_is_refused_with_the_place_and_the_reason(schema, pointer, reason):
    error = refusal(json=schema)
    assert error.param == "structured_outputs.json"
    assert reason in error.message
    if schema is not False:
        assert error.details == {"pointer": pointer}
        assert (pointer or "root") in error.message


@pytest.mark.parametrize(
    "idle",
    [
        {"self": {"name": "x"}, "preferredOrder": ["a"], "x-order": 1, "maxlength": 3, "nullable": True},
        {"uniqueItems": False},
        {"minLength": 0.0, "maxLength": 2.0},
        {"propertyNames": True},
        {"propertyNames": {"type": "string"}},
        {"not": False},
        {"exclusiveMinimum": False, "exclusiveMaximum": False, "required": False},
        {"if": {"type": "null"}},
        {"then": False, "else": False},
        {"contains": {"type": "null"}, "minContains": 0},
        {"minContains": 2, "maxContains": 3},
        {"unevaluatedProperties": {}, "unevaluatedItems": True, "additionalItems": False},
        {"dependentRequired": {"a": []}, "dependentSchemas": {"a": True}, "dependencies": {"a": [], "b": {}}},
        {"$dynamicAnchor": "a", "$recursiveAnchor": True},
        *({"format": name} for name in ("uint32", "double", "path", "password", "idn-email", None)),
    ],
    ids=str,
)
def test_what_asks_for_nothing_is_a_note(idle):
    schema = {"type": "string", "minLength": 1} | idle
    grammar = constrain(Structured(json={"type": "object", "properties": {"a": schema}}), encode).grammar
    assert '"type": "string"' in grammar


def test_limits_as_draft_4_has_them_are_those_of_later_ones():
    old = {"type": "number", "minimum": 1, "exclusiveMinimum": True, "maximum": 2.5, "exclusiveMaximum": True}
    new = {"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 2.5}
    assert constrain(Structured(json=old), encode).grammar == constrain(Structured(json=new), encode).grammar


@pytest.mark.parametrize("kind", ["integer", "number"])
def test_bounds_that_would_be_rounded_or_not_read_are_moved_in(kind):
    """As schemas have them that are made of a language's types."""
    whole = {"minimum": -(2**63), "maximum": 2**64 - 1}
    for bounds in (whole, {"exclusiveMinimum": -1e300, "exclusiveMaximum": 1e300}):
        held = form(Structured(json={"type": kind} | bounds))
        assert all(str(side * (2**63 - 1024)) in held for side in (-1, 1))
    assert f": {2**53 + 2}" in form(Structured(json={"type": kind, "maximum": 2**53 + 3}))
    assert f": {2**53 + 2}" in form(Structured(json={"type": kind, "minimum": 2**53 + 1}))
    exact = form(Structured(json={"type": kind, "const": 2**60, "minimum": -(2**53), "maximum": 2**60}))
    assert all(str(number) in exact for number in (-(2**53), 2**60))


def test_what_asks_for_nothing_is_told_once_with_its_place(caplog):
    caplog.set_level("INFO")
    constrain(Structured(json={"items": {"format": "uint8", "uniqueItems": False, "maxlength": 1}}), encode)
    [line] = [record.message for record in caplog.records if record.name == "neuron.grammar.json_schema"]
    assert "/items/uniqueItems, /items/format, /items/maxlength (3 in all)" in line


def test_a_client_gives_no_orders_to_the_compiler():
    grammar = constrain(Structured(json={"items": {"x-guidance": {"lenient": True}, "type": "null"}}), encode)
    assert "lenient" not in grammar.grammar


def record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        record(inner={"$ref": "#"}),
        {"$defs": {"n": record(a={"type": "array", "items": {"$ref": "#/$defs/n"}, "minItems": 1})}},
        {
            "$defs": {"a/b": record(n={"anyOf": [{"$ref": "#/$defs/a~1b"}, {"$ref": "#"}]})},
            "$ref": "#/$defs/a~1b",
        },
        {"type": "object", "properties": {"choice": {"allOf": [record(n={"$ref": "#/properties/choice"})]}}},
    ],
    ids=str,
)
def test_a_schema_without_an_answer_that_ends_is_refused(schema):
    assert "without end" in refusal(json=schema).message


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"inner": {"$ref": "#"}}},
        record(inner={"anyOf": [{"$ref": "#"}, {"type": "null"}]}),
        record(items={"type": "array", "items": {"$ref": "#"}}),
        {"$defs": {"n": record(a={"type": ["object", "null"], "properties": {"n": {"$ref": "#/$defs/n"}}})}},
    ],
    ids=str,
)
def test_recursion_that_can_end_is_taken(schema):
    constrain(Structured(json=schema), encode)


def test_values_that_contradict_each_other_are_refused():
    refusal(json={"const": "b", "pattern": "^a$"})


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"regex": "(a"}, "unclosed"),
        ({"regex": r"(a)\1"}, "backreference"),
        ({"choice": []}, "0 choices"),
        ({"choice": ["a"] * 10_001}, "10001 choices"),
        ({"grammar": "start: missing"}, "missing"),
        ({"grammar": "begin: /a/"}, "start"),
        ({"grammar": 'start: "a" <|im_end|>'}, "<|im_end|>"),
        ({"grammar": 'start: "a" <[*]>'}, "<[*]>"),
        ({"grammar": "start: a\na[temperature=0.5]: /a+/"}, "temperature"),
        ({"grammar": 'start: %json {"not": {}}'}, "/not"),
        ({"grammar": "start: A\nA: /b{1000000}/"}, "1000000 characters"),
        ({"regex": "a{1000000}"}, "1000000 characters at least"),
        ({"regex": "(a{1000}){1000}"}, "1000000 characters at least"),
        ({"grammar": "start: %json {"}, "JSON"),
    ],
    ids=str,
)
def test_other_grammars_that_cannot_be_honoured_are_refused_with_the_reason(asked, reason):
    error = refusal(**asked)
    assert error.param == f"structured_outputs.{next(iter(asked))}"
    assert reason in error.message


def nested(levels: int, **leaf: Any) -> dict[str, Any]:
    for _ in range(levels):
        leaf = {"type": "array", "items": leaf}
    return leaf


EXPLOSIVE: dict[str, dict[str, Any]] = {
    "size": {"json": {"properties": {f"property {i}": {"type": "string"} for i in range(MAX_SIZE // 20)}}},
    "depth": {"json": nested(500)},
    "depth of a value": {"json": {"const": json.loads("[" * 900 + "]" * 900)}},
    "products of references": {
        "json": {
            "allOf": [
                {"anyOf": [{"properties": {f"{kind}{i}": {}}, "type": "object"} for kind in "ab"]}
                for i in range(20)
            ]
        }
    },
    "an endless reference": {
        "json": {"$defs": {"n": {"allOf": [{"$ref": "#/$defs/n"}, {}]}}, "$ref": "#/$defs/n"}
    },
    "a large multiple": {"json": {"type": "integer", "multipleOf": 1000003}},
    "patterns at once": {
        "json": {"allOf": [{"type": "string", "pattern": f"a.{{{i}}}b"} for i in range(5, 30)]}
    },
    "too many possible at once": {"json": {"properties": {f"p{i}": {} for i in range(700)}}},
    "counters in counters": {"regex": "((((a{0,100}){0,100}){0,100}){0,100})"},
    "ways to read": {"grammar": 'start: ("a"{0,1000}){0,1000}'},
    "doubled terminals": {
        "grammar": "start: T0\n" + "".join(f"T{i}: T{i + 1} T{i + 1}\n" for i in range(40)) + 'T40: "a"'
    },
    # this one overruns the stack, and with it the process that tries it
    "a chain of rules": {
        "grammar": "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(5000)) + 'r5000: "a"'
    },
}


@pytest.mark.parametrize("name", EXPLOSIVE)
def test_what_explodes_is_refused_and_nothing_else_suffers(name):
    refusal(**EXPLOSIVE[name])


@pytest.mark.parametrize(
    "asked",
    [
        {"regex": "(a{100}){100}"},
        {"regex": "a{0,1000000}"},
        {"regex": "(a|b)*a(a|b){25}"},
        {"json": {"type": "array", "items": {"type": "string"}, "maxItems": 10**9}},
        {"json": {"type": "string", "minLength": 2000}},
        {"json": nested(50, type="string")},
        {"json": {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(450)}}},
    ],
    ids=str,
)
def test_what_is_large_and_harmless_is_taken(asked):
    constrain(Structured(**asked), encode)


def test_a_grammar_is_tried_once(monkeypatch):
    asked = Structured(regex="once and only once")
    constrain(asked, encode)

    def run(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("tried again")

    monkeypatch.setattr(subprocess, "run", run)
    constrain(asked, encode)


def test_a_checker_that_does_not_come_back_is_ended(monkeypatch, tmp_path):
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(module, "CHECKER", sleeper)
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.1)
    assert "too long" in refusal(regex="does not come back").message


def test_a_schema_stays_as_it_was():
    schema = {"type": "string", "format": "hostname"}
    constrain(Structured(json=schema), encode)
    assert schema == {"type": "string", "format": "hostname"}


def test_the_supervisor_needs_no_torch_for_it():
    code = "import neuron.grammar.structured, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=150).returncode == 0
