"""Formats of tool calls with tags of their own: what is particular to each, and what is mended in it."""

from __future__ import annotations

import json

import pytest

from ipc.messages.conversation import Tool
from neuron.text.formats.registry import BY_NAME

TOOL = Tool.function(
    "f",
    parameters={
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "count": {"type": "integer"},
            "ratio": {"type": "number"},
            "flag": {"type": "boolean"},
            "list": {"type": "array"},
            "map": {"type": "object"},
            "maybe": {"type": ["string", "null"]},
            "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
            "level": {"enum": [1, 2, "high"]},
            "point": {"$ref": "#/$defs/point"},
        },
        "$defs": {"point": {"type": "object", "properties": {"x": {"type": "integer"}}}},
    },
)
PING = Tool.function("ping", parameters={"type": "object", "properties": {}})


def read(name, text, **limits):
    """Text and calls in their order, and arguments as JSON where they are; letter by letter the same."""
    told = []
    for chunks in [text], text:
        parser = BY_NAME[name].parser([TOOL, PING], **limits)
        joined = []
        for kind, part in [part for chunk in chunks for part in parser.push(chunk)] + parser.finish():
            if kind == "tool" and part.call_id is None:
                joined[-1][1] += part.arguments
            elif kind == "tool":
                joined.append([part.name, part.arguments])
            elif joined and isinstance(joined[-1], str):
                joined[-1] += part
            else:
                joined.append(part)
        told.append([part if isinstance(part, str) else (part[0], parsed(part[1])) for part in joined])
    assert told[0] == told[1]
    return told[0]


def parsed(arguments):
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def qwen(*parameters):
    written = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters)
    return f"<tool_call>\n<function=f>\n{written}</function>\n</tool_call>"


def glm(*parameters):
    written = "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in parameters
    )
    return f"<tool_call>f\n{written}</tool_call>"


def minimax(*parameters):
    written = "".join(f'<parameter name="{key}">{value}</parameter>\n' for key, value in parameters)
    return f'<minimax:tool_call>\n<invoke name="f">\n{written}</invoke>\n</minimax:tool_call>'


BARE = {"qwen3_coder": qwen, "glm": glm, "minimax_m2": minimax}
bare_text = pytest.mark.parametrize("name", BARE)


@bare_text
@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("text", "  two\n\n lines\t", "  two\n\n lines\t"),
        ("text", "", ""),
        ("text", "5", "5"),
        ("text", '{"a": 1}', '{"a": 1}'),
        ("text", "null", "null"),
        ("text", 'a "b" \\n \u00e9 \U0001f600', 'a "b" \\n \u00e9 \U0001f600'),
        ("text", "<b>a</b> &amp; <tool> </", "<b>a</b> &amp; <tool> </"),
        ("count", "5", 5),
        ("count", " -5\n", -5),
        ("count", "5.0", 5.0),
        ("count", "5.5", "5.5"),
        ("count", "five", "five"),
        ("ratio", "2.5", 2.5),
        ("ratio", "1e3", 1000.0),
        ("flag", "true", True),
        ("flag", "True", True),
        ("flag", "yes", "yes"),
        ("list", "[1, 2]", [1, 2]),
        ("list", "[]", []),
        ("map", '{"a": {"b": [null]}}', {"a": {"b": [None]}}),
        ("map", '{"a": "two\nlines"}', {"a": "two\nlines"}),
        ("map", '{"a": 1', {"a": 1}),
        ("map", "{'a'", "{'a'"),
        ("maybe", "null", None),
        ("maybe", "None", None),
        ("maybe", "none", "none"),
        ("either", "7", 7),
        ("either", "seven", "seven"),
        ("level", "2", 2),
        ("level", "high", "high"),
        ("point", '{"x": 1}', {"x": 1}),
        ("unheard_of", "7", 7),
        ("unheard_of", "word", "word"),
        ("unheard_of", "[1", [1]),
    ],
)
def test_a_value_has_the_type_that_the_schema_says_and_a_text_every_byte(name, key, text, value):
    [(called, arguments)] = read(name, BARE[name]((key, text), ("last", "false")))
    assert (called, arguments) == ("f", {key: value, "last": False})
    assert type(arguments[key]) is type(value)


@bare_text
def test_calls_stand_between_texts(name):
    call = BARE[name](("text", "a"))
    assert read(name, f"So:\n{call}\nDone.") == ["So:\n", ("f", {"text": "a"}), "Done."]


ENDS = {"qwen3_coder": "</parameter>", "glm": "</arg_value>", "minimax_m2": "</parameter>"}


@bare_text
def test_an_end_tag_in_a_text_ends_it_only_where_the_next_tag_follows(name):
    text = f"a{ENDS[name]} and {ENDS[name]}\n{ENDS[name]}b"
    assert read(name, BARE[name](("text", text), ("count", "1"))) == [("f", {"text": text, "count": 1})]


@bare_text
def test_a_text_that_is_written_is_handed_out_as_it_comes(name):
    parser = BY_NAME[name].parser([TOOL])
    begin, end = BARE[name](("text", "WORD")).split("WORD")
    parser.push(begin)
    for word in ("one ", 'two" ', "three\n"):
        told = "".join(part.arguments for _, part in parser.push(word + "."))
        assert json.dumps(word)[1:-1] in told or word.endswith("\n")
    parser.push(end)
    assert json.loads(parser.calls[0].arguments) == {"text": 'one .two" .three\n.'}


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        # Qwen3-Coder: tags on one line, without the outer tag, without end tags, with JSON in place of tags.
        (
            "qwen3_coder",
            "<tool_call><function=f><parameter=text>a</parameter></function></tool_call>",
            [("f", {"text": "a"})],
        ),
        (
            "qwen3_coder",
            "<function=f>\n<parameter=text>\na\n</parameter>\n</function>",
            [("f", {"text": "a"})],
        ),
        ("qwen3_coder", "<function=g>\n</function>", ["<function=g>\n</function>"]),
        ("qwen3_coder", "I write <function=f> here", ["I write <function=f> here"]),
        (
            "qwen3_coder",
            "<tool_call>\n<function=f>\n<parameter=text>\na\n</parameter>\n",
            [("f", {"text": "a"})],
        ),
        (
            "qwen3_coder",
            "<tool_call>\n<function=f>\n<parameter=text>\na\n</function>\n</tool_call>",
            [("f", {"text": "a"})],
        ),
        (
            "qwen3_coder",
            "<tool_call>\n<function=f>\n<parameter=text>\na\n</parameter>\n</tool_call>",
            [("f", {"text": "a"})],
        ),
        (
            "qwen3_coder",
            '<tool_call>\n<function=f>\n{"text": "a"}\n</function>\n</tool_call>',
            [("f", {"text": "a"})],
        ),
        ("qwen3_coder", "<tool_call>\n<function=ping>\n</function>\n</tool_call>", [("ping", {})]),
        (
            "qwen3_coder",
            "<tool_call>\n<function=f>\nwell\n</function>\n</tool_call>",
            ["<tool_call>\n<function=f>\nwell\n</function>\n</tool_call>"],
        ),
        ("qwen3_coder", "<tool_call> is a tag", ["<tool_call> is a tag"]),
        (
            "qwen3_coder",
            "<tool_call> <tool_call>\n<function=ping>\n</function>\n</tool_call>",
            ["<tool_call> ", ("ping", {})],
        ),
        # GLM: with and without line breaks; an end tag missing.
        ("glm", "<tool_call>ping</tool_call>", [("ping", {})]),
        ("glm", "<tool_call>ping\n</tool_call>", [("ping", {})]),
        (
            "glm",
            "<tool_call>f<arg_key>text</arg_key><arg_value>a</arg_value></tool_call>",
            [("f", {"text": "a"})],
        ),
        (
            "glm",
            "<tool_call>f\n<arg_key>text</arg_key>\n<arg_value>a</arg_value>\n",
            [("f", {"text": "a"})],
        ),
        (
            "glm",
            "<tool_call>f\n<arg_key>text</arg_key>\n<arg_value>a</tool_call>",
            [("f", {"text": "a"})],
        ),
        (
            "glm",
            "<tool_call>f\n<arg_key>text</arg_key>a</tool_call>",
            ["<tool_call>f\n<arg_key>text</arg_key>a</tool_call>"],
        ),
        ("glm", "a <tool_call> b\nc </tool_call>", ["a <tool_call> b\nc </tool_call>"]),
        # MiniMax M2 and DeepSeek from V3.2 on: several calls in a section; end tags missing.
        (
            "minimax_m2",
            '<minimax:tool_call><invoke name="f"><parameter name="text">a</parameter></invoke>'
            '<invoke name="ping"></invoke></minimax:tool_call>',
            [("f", {"text": "a"}), ("ping", {})],
        ),
        (
            "minimax_m2",
            '<minimax:tool_call><invoke name="f"><parameter name="text">a</parameter>',
            [("f", {"text": "a"})],
        ),
        (
            "minimax_m2",
            '<minimax:tool_call>\n<invoke name="f">\n<parameter name="text">a\n</invoke>\n'
            "</minimax:tool_call>",
            [("f", {"text": "a\n"})],
        ),
        (
            "minimax_m2",
            '<minimax:tool_call><invoke name="f">a</invoke></minimax:tool_call>',
            ['<minimax:tool_call><invoke name="f">a</invoke></minimax:tool_call>'],
        ),
        (
            "deepseek_v32",
            '<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n'
            '<｜DSML｜parameter name="text" string="true">5</｜DSML｜parameter>\n'
            '<｜DSML｜parameter name="either" string="true">5</｜DSML｜parameter>\n'
            '<｜DSML｜parameter name="maybe" string="false">null</｜DSML｜parameter>\n'
            '<｜DSML｜parameter name="count">7</｜DSML｜parameter>\n'
            "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
            [("f", {"text": "5", "either": "5", "maybe": None, "count": 7})],
        ),
        (
            "deepseek_v4",
            '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="ping">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>',
            [("ping", {})],
        ),
        # DeepSeek V3, R1 and V3.1: the kind or the name first; a fence missing; a brace missing.
        (
            "deepseek_v3",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
            '{"text": "a\nb"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
            [("f", {"text": "a\nb"})],
        ),
        (
            "deepseek_v3",
            '<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n{"text": "a"<｜tool▁call▁end｜>',
            [("f", {"text": "a"})],
        ),
        (
            "deepseek_v31",
            '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"text": "```"}<｜tool▁call▁end｜>'
            "<｜tool▁call▁begin｜>ping<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            [("f", {"text": "```"}), ("ping", {})],
        ),
        (
            "deepseek_v31",
            "<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>",
            ["<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>"],
        ),
        # Kimi: with and without the section and the prefix; nothing for arguments.
        (
            "kimi",
            '<|tool_call_begin|>f:3<|tool_call_argument_begin|>{"count": 1}<|tool_call_end|>',
            [("f", {"count": 1})],
        ),
        (
            "kimi",
            "<|tool_calls_section_begin|> <|tool_call_begin|> functions.ping:0 <|tool_call_argument_begin|>"
            "<|tool_call_end|> <|tool_calls_section_end|>",
            [("ping", {})],
        ),
        # MiniMax M1: a line each; the end missing.
        (
            "minimax_m1",
            '<tool_calls>\n{"name": "f", "arguments": {"text": "a"}}\n{"name": "ping", "arguments": {}}\n',
            [("f", {"text": "a"}), ("ping", {})],
        ),
        (
            "minimax_m1",
            '<tool_calls>[{"name": "f", "arguments": {"text": "a"}}, {"name": "ping", "arguments": {}}]'
            "</tool_calls>",
            [("f", {"text": "a"}), ("ping", {})],
        ),
        ("minimax_m1", "<tool_calls>\nnone\n</tool_calls>", ["<tool_calls>\nnone\n</tool_calls>"]),
        # MiniMax M3: types by the schema, at every depth; the end missing.
        (
            "minimax_m3",
            ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="f">]<]minimax[>[<text>5]<]minimax[>[</text>'
            "]<]minimax[>[<point>]<]minimax[>[<x>5]<]minimax[>[</x>]<]minimax[>[</point>"
            "]<]minimax[>[<list>]<]minimax[>[<item>a]<]minimax[>[</item>]<]minimax[>[<item>2]<]minimax[>[</item>"
            "]<]minimax[>[</list>]<]minimax[>[<map>]<]minimax[>[</map>",
            [("f", {"text": "5", "point": {"x": 5}, "list": ["a", 2], "map": {}})],
        ),
    ],
)
def test_what_models_write_in_other_ways_or_wrongly(name, text, told):
    assert read(name, text) == told


def test_calls_of_kimi_keep_their_ids_where_these_are_told_apart():
    def ids(*written):
        parser = BY_NAME["kimi"].parser([TOOL, PING])
        for each in written:
            parser.push(f"<|tool_call_begin|>{each}<|tool_call_argument_begin|>{{}}<|tool_call_end|>")
        return [call.id for call in parser.calls]

    assert ids("functions.f:0", "functions.ping:1") == ["functions.f:0", "functions.ping:1"]
    first, second = ids("functions.f:0", "functions.f:0")
    assert first == "functions.f:0"
    assert second.startswith("call_")


def test_a_value_in_many_others_is_no_way_to_break_a_reader():
    text = ']<]minimax[>[<tool_call>]<]minimax[>[<invoke name="f">' + "]<]minimax[>[<map>" * 3000
    parser = BY_NAME["minimax_m3"].parser([TOOL])
    parser.push(text)
    parser.finish()
    assert [call.name for call in parser.calls] == ["f"]


def test_a_schema_that_refers_to_itself_in_many_ways_is_looked_at_once():
    itself = {"$ref": "#/$defs/filter"}
    every = {"anyOf": [*[itself] * 30, {"allOf": [itself] * 30}, {"oneOf": [itself] * 30}]}
    schema = {"properties": {"a": itself, "b": {"$ref": "#/$defs/number"}}}
    schema["$defs"] = {"filter": every, "number": {"anyOf": [{"type": "integer"}] * 2}}
    tool = Tool.function("f", parameters=schema)
    parser = BY_NAME["glm"].parser([tool])
    values = "".join(f"<arg_key>{key}</arg_key><arg_value>5</arg_value>" for key in "ab")
    parser.push(f"<tool_call>f\n{values}</tool_call>")
    assert json.loads(parser.calls[0].arguments) == {"a": 5, "b": 5}
