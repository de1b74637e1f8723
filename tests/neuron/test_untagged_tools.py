"""Calls in lists and calls without tags: what is one, what only looks like one, what is mended."""

from __future__ import annotations

import json

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from ipc.messages.conversation import Tool
from neuron.grammar.check import Bytes
from neuron.grammar.tool_calls import require_call
from neuron.text.formats.registry import BY_NAME
from tests.neuron.grammars import encode, follow

TOOLS = [Tool.function(name) for name in ("get_weather", "ping", "get_time")]


def read(name, text, *, cut=False, tools=TOOLS, **limits):
    """Text and calls, in their order."""
    parser = BY_NAME[name].parser(tools, **limits)
    parts = []
    for kind, part in parser.push(text) + parser.finish(cut):
        if kind == "text" and parts and isinstance(parts[-1], str):
            parts[-1] += part
        elif kind == "text":
            parts.append(part)
        elif part.name is not None:
            parts.append((part.name, part.arguments))
        else:
            parts[-1] = (parts[-1][0], parts[-1][1] + part.arguments)
    return parts


def calls(name, text, **how):
    return [part for part in read(name, text, **how) if not isinstance(part, str)]


def text(name, text, **how):
    assert not calls(name, text, **how)
    return "".join(read(name, text, **how))


# --- Llama 3: JSON without a tag --------------------------------------------------------------------------

WEATHER = '{"name": "get_weather", "parameters": {"city": "Oslo"}}'
CALL = ("get_weather", '{"city": "Oslo"}')


@pytest.mark.parametrize(
    "written",
    [
        WEATHER,
        f" \n{WEATHER}\n",
        f"<|python_tag|>{WEATHER}",
        f"<|python_start|>{WEATHER}<|python_end|>",
        '{"type": "function", "name": "get_weather", "parameters": {"city": "Oslo"}}',
        '{"name": "get_weather", "arguments": {"city": "Oslo"}}',
        '{"parameters": {"city": "Oslo"}, "name": "get_weather"}',
        f"[{WEATHER}]",
        WEATHER[:-1],
        WEATHER[:-2],
    ],
)
def test_llama_calls_by_json_that_names_an_offered_tool(written):
    assert read("llama3_json", written) == [CALL]


@pytest.mark.parametrize("between", ["; ", ";", "\n", " ; \n", "<|python_tag|>"])
def test_llama_writes_several_calls_one_after_the_other(between):
    both = f'{WEATHER}{between}{{"name": "ping", "parameters": {{}}}}'
    assert read("llama3_json", both) == [CALL, ("ping", "{}")]


@pytest.mark.parametrize(
    "answer",
    [
        '{"name": "Alice", "parameters": {"age": 3}}',  # nobody offered this
        '{"name": "get_weather", "temperature": 3}',
        '{"name": "get_weather"}',
        '{"result": [1, 2, 3]}',
        '[{"name": "Alice"}]',
        "[1, 2, 3]",
        "{}",
        "{a}",
        f"Like so: {WEATHER}",
        f"```json\n{WEATHER}\n```",
    ],
)
def test_json_that_is_no_call_is_text_for_llama(answer):
    assert text("llama3_json", answer) == answer
    assert text("llama3_json", answer, cut=True) == answer


@pytest.mark.parametrize("answer", ["{", '{"na', '{"name": "Al', '{"name": "', '[{"result": 1', "["])
def test_an_answer_in_json_that_was_cut_is_not_lost_for_llama(answer):
    assert text("llama3_json", answer, cut=True) == answer


def test_of_a_llama_call_that_was_cut_the_name_is_told_and_what_there_is_of_its_arguments():
    assert read("llama3_json", '{"name": "get_w', cut=True) == [("get_weather", "")]
    assert read("llama3_json", WEATHER[:-5], cut=True) == [("get_weather", '{"city": "Os')]


def test_text_behind_calls_of_llama_is_told():
    assert read("llama3_json", f"{WEATHER}; and more") == [CALL, "; and more"]
    assert read("llama3_json", f"{WEATHER} {{}}") == [CALL, "{}"]


def test_code_behind_the_tag_of_llama_is_text():
    assert text("llama3_json", "<|python_tag|>print(1)") == "<|python_tag|>print(1)"


# --- lists behind a tag -----------------------------------------------------------------------------------

LISTS = {
    "mistral": ("[TOOL_CALLS]", ""),
    "granite": ("<|tool_call|>", ""),
    "phi4": ("<|tool_call|>", "<|/tool_call|>"),
    "apriel": ("<tool_calls>", "</tool_calls>"),
    "command_a": ("<|START_ACTION|>", "<|END_ACTION|>"),
    "command_r": ("Action:\n```json\n", "```"),
    "hermes": ("<tool_call>", "</tool_call>"),
    "nemotron": ("<TOOLCALL>", "</TOOLCALL>"),
}
each_list = pytest.mark.parametrize("name", LISTS)


def listed(name, *objects, end="]"):
    begin, after = LISTS[name]
    said = begin + "[" + ", ".join(objects) + end + after
    return said.replace('"name"', '"tool_name"') if name in ("command_a", "command_r") else said


def test_a_list_of_apertus_lacks_its_end_where_that_ends_the_answer():
    both = '<|tools_prefix|>[{"get_weather": {"city": "Oslo"}}, {"ping": {}}'
    for end in ("]<|tools_suffix|>", "]", ""):
        assert read("apertus", both + end) == [CALL, ("ping", "{}")]
    assert text("apertus", '<|tools_prefix|>[{"get_weather": 1}]') == '<|tools_prefix|>[{"get_weather": 1}]'


@each_list
def test_a_list_that_lacks_its_bracket_or_its_tag_is_mended(name):
    both = [WEATHER, '{"name": "ping", "parameters": {}}']
    wanted = [CALL, ("ping", "{}")]
    assert read(name, listed(name, *both)) == wanted
    assert read(name, listed(name, *both, end="")) == wanted
    assert read(name, listed(name, *both, end=",]")) == wanted
    assert read(name, listed(name, *both).removesuffix(LISTS[name][1])) == wanted
    assert read(name, listed(name, WEATHER, end="").replace("[{", "{")) == [CALL]


@each_list
def test_a_line_break_within_a_string_of_a_list_is_mended(name):
    broken = WEATHER.replace("Oslo", "Os\nlo")
    assert read(name, listed(name, broken)) == [("get_weather", '{"city": "Os\\nlo"}')]


@each_list
def test_a_list_of_something_else_is_text(name):
    for other in '"a"', "1", '{"city": "Oslo"}', "x":
        assert text(name, listed(name, other)) == listed(name, other)
    begin, _ = LISTS[name]
    for other in f"{begin}", f"The mark {begin} is old.", f"{begin}[]":
        assert text(name, other) == other


@pytest.mark.parametrize("name", [name for name, (_, end) in LISTS.items() if end])
def test_an_empty_list_up_to_its_end_tag_says_nothing(name):
    begin, end = LISTS[name]
    for empty in "[]", " [ \n] \n":
        assert read(name, f"{begin}{empty}{end}") == []
        assert text(name, f"{begin}{empty}{end} Done.") == "Done."
        assert read(name, f"{begin}{empty}{end}{listed(name, WEATHER)}") == [CALL]


@each_list
def test_what_follows_a_call_in_a_list_and_is_none_is_text(name):
    assert read(name, listed(name, WEATHER, '"x"')) == [CALL, ', "x"]' + LISTS[name][1]]


# --- Mistral ----------------------------------------------------------------------------------------------


def ids(written):
    parser = BY_NAME["mistral_args"].parser(TOOLS)
    parser.push(written)
    parser.finish()
    return [call.id for call in parser.calls]


@pytest.mark.parametrize(
    "written",
    [
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}',
        '[TOOL_CALLS] get_weather [ARGS] {"city": "Oslo"}',
        '[TOOL_CALLS]get_weather{"city": "Oslo"}',
        '[TOOL_CALLS]get_weather[CALL_ID]a2Cdefghi[ARGS]{"city": "Oslo"}',
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}, "id": "a2Cdefghi"}]',
    ],
)
def test_mistral_calls_in_any_of_its_ways(written):
    assert read("mistral", written) == read("mistral_args", written) == [CALL]


def test_calls_of_mistral_have_ids_of_nine_characters_and_those_that_the_model_gave():
    first, second = ids("[TOOL_CALLS]a[CALL_ID]a2Cdefghi[ARGS]{}[TOOL_CALLS]b[CALL_ID]short[ARGS]{}")
    assert first == "a2Cdefghi"
    for each in second, *ids('[TOOL_CALLS] [{"name": "a", "arguments": {}}]'):
        assert len(each) == 9
        assert each.isalnum()
    assert second != first


def test_what_mistral_writes_behind_its_tag_and_is_no_call_is_text():
    for said in (
        "[TOOL_CALLS] is a token {of} theirs",
        "[TOOL_CALLS]f[ARGS]x",
        "[TOOL_CALLS]f",
        "[TOOL_CALLS]",
    ):
        assert text("mistral_args", said) == said


# --- Command R, Phi ---------------------------------------------------------------------------------------


def test_command_r_answers_directly_without_a_call():
    said = 'Action: ```json\n[{"tool_name": "directly-answer", "parameters": {}}]\n```'
    assert text("command_r", said) == said


def test_the_word_action_is_text():
    for said in "Action: we do it.", "Action:", "Action: [1]", 'Action: {"name": "get_weather"}':
        assert text("command_r", said) == said


def test_phi_calls_behind_the_word_functools_too():
    assert read("phi4", f"functools[{WEATHER}]") == [CALL]
    assert text("phi4", "functools is a module") == "functools is a module"


# --- Python -----------------------------------------------------------------------------------------------


def test_python_calls_stand_in_a_list_or_between_tags():
    both = "[get_weather(city='Oslo'), ping()]"
    wanted = [CALL, ("ping", "{}")]
    assert read("pythonic", both) == wanted
    assert read("pythonic", f"<|python_start|>{both}<|python_end|>") == wanted
    assert read("lfm2", f"So:<|tool_call_start|>{both}<|tool_call_end|>Done.") == ["So:", *wanted, "Done."]
    assert read("lfm2", "<|tool_call_start|>ping()<|tool_call_end|>") == [("ping", "{}")]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("'a\"b'", 'a"b'),
        ('"it\'s"', "it's"),
        (r"'it\'s\n\t\\'", "it's\n\t\\"),
        (r"'\x41\u00e9\U0001F600\101\0'", "A\u00e9\U0001f600A\0"),
        (r"'\ud83d\ude00'", "\U0001f600"),
        (r"'\d\w+\q\xzz'", r"\d\w+\q\xzz"),
        ("'a\\\nb'", "ab"),
        ("'a\nb'", "a\nb"),
        ('"""a "quoted"\nword"""', 'a "quoted"\nword'),
        ("'''it's'''", "it's"),
        ("''", ""),
        ('""', ""),
        ("'a' \"b\"\n 'c'", "abc"),
        ("True", True),
        ("false", False),
        ("None", None),
        ("-3", -3),
        ("+1_000", 1000),
        ("1.", 1.0),
        (".5", 0.5),
        ("1e5", 1e5),
        ("0x1F", 31),
        (f"+{'1' * 400}", int("1" * 400)),
        (f"0x{'f' * 400}", int("f" * 400, 16)),
        ("[1, 'a', [], {}, [None],]", [1, "a", [], {}, [None]]),
        ("{'a': {'b': [1, 2,],}, \"c\": False}", {"a": {"b": [1, 2]}, "c": False}),
    ],
)
def test_a_python_literal_becomes_the_json_that_it_means(written, value):
    [(_, arguments)] = calls("pythonic", f"[ping(first=0, x={written}, last=[1])]")
    assert json.loads(arguments) == {"first": 0, "x": value, "last": [1]}


def test_arguments_of_python_may_come_as_an_object():
    [(_, arguments)] = calls("pythonic", "[ping(a=1, **{'b c': 2, 'd': {'e': 3}}, f=4)]")
    assert json.loads(arguments) == {"a": 1, "b c": 2, "d": {"e": 3}, "f": 4}
    assert calls("pythonic", "[ping(**{})]") == [("ping", "{}")]


@pytest.mark.parametrize(
    "answer",
    [
        "[1, 2, 3]",
        "[]",
        "[get_weather](https://example.com/(a))",
        "[get_weather(city) tells the weather]",
        "[get_weather(city=place)]",
        "[get_weather(day=1 + 1)]",
        "[get_weather('Oslo')]",
        "[get_weather(day=(1, 2))]",
        "[get_weather(day={1: 2})]",
        "[unknown(a=1)]",
        "[x for x in get_weather()]",
        "[[get_weather(city='Oslo')]]",
        "Call [get_weather(city='Oslo')].",
        "[" * 5000,
    ],
)
def test_a_list_that_is_no_call_is_text(answer):
    assert text("pythonic", answer) == answer
    assert text("pythonic", answer, cut=True) == answer


@pytest.mark.parametrize("answer", ["[", "[1", "[get_weather](", "[get_x"])
def test_a_list_that_was_cut_is_text_where_it_names_no_tool(answer):
    assert text("pythonic", answer, cut=True) == answer


@pytest.mark.parametrize("answer", ["[get_w", "[get_weather", "[get_weather(ci", "[get_weather(city="])
def test_a_python_call_that_was_cut_is_told_by_its_name(answer):
    assert read("pythonic", answer, cut=True) == [("get_weather", "")]


def test_brackets_that_are_missing_at_the_end_of_python_are_mended():
    for torn in (
        "[ping(a=[1, {'b': 2}])",
        "[ping(a=[1, {'b': 2}]",
        "[ping(a=[1, {'b': 2}",
        "[ping(a=[1, {'b': 2",
    ):
        assert calls("pythonic", torn) == [("ping", '{"a": [1, {"b": 2}]}')]


def test_deep_lists_and_long_words_are_no_trouble():
    deep = "[" * 5000 + "]" * 5000
    assert calls("pythonic", f"[ping(a={deep})]") == [("ping", f'{{"a": {deep}}}')]
    assert not calls("pythonic", f"[ping(a={'-' * 5000}1)]")
    assert not calls("pythonic", f"[ping(a={'9' * 900}_0{'9' * 9000})]")


# --- Gemma 4 ----------------------------------------------------------------------------------------------

Q = '<|"|>'


def test_gemma_calls_with_bare_keys_and_its_own_quotes():
    said = f'So.<|tool_call>call:ping{{b:[1,None,true],a:{Q}x: "y", {{z}}\n{Q},c:{{d:{Q}{Q}}}}}<tool_call|>'
    before, (name, arguments) = read("gemma4", said)
    assert (before, name) == ("So.", "ping")
    assert json.loads(arguments) == {"b": [1, None, True], "a": 'x: "y", {z}\n', "c": {"d": ""}}


def test_a_key_of_gemma_may_stand_in_quotes_and_space_around_it():
    said = f"<|tool_call>call: get_weather {{ {Q}city{Q} : {Q}Oslo{Q} }}<tool_call|>"
    assert read("gemma4", said) == [CALL]


def test_brackets_and_tags_that_are_missing_at_the_end_of_gemma_are_mended():
    whole = f"<|tool_call>call:ping{{a:{{b:[{Q}x{Q}]}}}}<tool_call|>"
    for missing in "<tool_call|>", "}<tool_call|>", "]}}<tool_call|>":
        assert read("gemma4", whole.removesuffix(missing)) == [("ping", '{"a": {"b": ["x"]}}')]


def test_what_gemma_writes_behind_its_tag_and_is_no_call_is_text():
    for said in (
        "<|tool_call>",
        "<|tool_call>call:",
        "<|tool_call>call:a b{}",
        "<|tool_call>call:f{x}",
        "call:f{}",
    ):
        assert text("gemma4", said) == said


def gemmas(schema):
    tool = Tool.function("f", parameters=schema)
    return require_call([tool, TOOLS[0]], ["f"], encode, "none", written=BY_NAME["gemma4"]).grammar


TREE = {
    "type": "object",
    "properties": {"name": {"enum": ["n"]}, "parts": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
    "required": ["name"],
}


@pytest.mark.parametrize(
    "properties",
    [
        {"a": {"enum": ["x", 1, None, ["y"], {"z": "w"}]}},
        {"a": {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 2, "maxItems": 3}},
        {"a": {"anyOf": [{"type": "string", "maxLength": 2}, {"type": "null"}]}},
        {"a": {"type": "object", "additionalProperties": {"enum": [1, 2]}}},
        {"a": {"const": {"b": [1, None, "c"]}}},
        {"a": {"anyOf": [{"type": "array", "items": {"enum": ["x"]}, "maxItems": 2}, {"type": "boolean"}]}},
        {"a": {"allOf": [{"type": "object", "properties": {"b": {"enum": [1]}}, "required": ["b"]}]}},
        {"a": {"enum": [1]}, "b c,d": {"type": "integer"}},
    ],
)
def test_what_gemmas_grammar_allows_fits_the_schema(properties):
    schema = {"type": "object", "properties": properties, "required": ["a"]}
    for seed in range(12):
        [(_, arguments)] = read("gemma4", follow(gemmas(schema), seed, 3000))
        jsonschema.validate(json.loads(arguments), schema)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({}, f"{{a:{Q}x{Q},b:[1,{{c:true}}],d:[],e:{{}}}}"),
        ({}, "{}"),
        ({"properties": {"a": {}, "b": {"type": "array"}}, "required": ["b"]}, f"{{b:[{Q}x{Q},null]}}"),
        ({"properties": {"a b,c": {"type": "integer"}}}, "{}"),
        (
            {"properties": {"a": {"$ref": "#/$defs/tree"}}, "$defs": {"tree": TREE}},
            f"{{a:{{name:{Q}n{Q},parts:[{{name:{Q}n{Q}}},{{name:{Q}n{Q}}}]}}}}",
        ),
        ({"properties": {"a": {"type": "string"}, "b": {"type": "boolean"}}}, f"{{a:{Q}\n<|x>{Q},b:false}}"),
    ],
)
def test_gemmas_grammar_allows_what_no_schema_forbids(schema, said):
    matcher = LLMatcher(LLTokenizer(TokenizerWrapper(Bytes())), gemmas({"type": "object", **schema}))
    assert matcher.validate_tokens(encode(whole := f"<|tool_call>call:f{said}<tool_call|>")) == len(whole)
    assert calls("gemma4", whole)
