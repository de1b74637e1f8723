"""What holds for every format of tool calls: how it is known, read, cut, mended, and held to by a grammar."""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ipc.messages.conversation import Message, Tool, ToolCall
from ipc.model_settings import TOOL_FORMATS
from neuron.grammar.tool_calls import require_call
from neuron.text.formats.hermes import HERMES
from neuron.text.formats.registry import BY_NAME, FORMATS, tool_format
from neuron.text.formats.tool_format import ToolFormat
from neuron.text.tags import TOKEN
from neuron.text.template import ChatTemplate
from tests.neuron.chunks import cut
from tests.neuron.grammars import encode, follow, follow_tokens
from tests.neuron.tool_samples import SAMPLES, TEMPLATES

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}

# For each of many formats; the examples are small, and to look for smaller ones takes minutes.
few = settings(
    max_examples=8,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.filter_too_much],
)


def writes(each):
    """Whether a format writes calls as text in a way of its own, or as Hermes."""
    return each is HERMES or type(each).as_text is not ToolFormat.as_text


each_format = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)

CALLS = [
    (
        "write_file",
        {
            "path": "/tmp/a b.txt",
            "text": '  def f():\n\treturn "é <b>\\d</b> & 日本"\n',
            "mode": 420,
            "lines": [1, 2.5, None, True, "x"],
            "more": {"deep": [{"a": ""}, "</x>"], "none": None},
            "force": False,
        },
    ),
    ("ping", {}),
    ("get_weather", {"city": "Oslo"}),
]


def tool_of(name, *all_arguments):
    """A tool that says of its arguments which types they have."""
    types: dict[str, set[str]] = {}
    for arguments in all_arguments:
        for key, value in arguments.items():
            types.setdefault(key, set()).add(TYPES.get(type(value), "null"))
    more = {"object": {"additionalProperties": {"description": "any"}}}  # templates walk through it
    properties = {
        key: {
            "type": sorted(each) if len(each) > 1 else min(each),
            "description": "what it is",
            **more.get(min(each), {}),
        }
        for key, each in types.items()
    }
    parameters = {"type": "object", "properties": properties, "additionalProperties": False}
    return Tool.function(name, description="It does it.", parameters=parameters)


def tools_of(calls):
    names = dict.fromkeys(name for name, _ in calls)
    return [tool_of(name, *(given for called, given in calls if called == name)) for name in names]


def read(sample, chunks, tools=(), *, ended=False, tokens=(), **limits):
    """Text and calls, joined, in their order."""
    parser = sample.format.parser(tools, tokens=tokens, **limits)
    parts = []
    for chunk in chunks:
        parts += parser.push(chunk)
        if parser.over:
            break
    if not parser.over:
        parts += parser.finish(ended)
    joined = []
    for kind, part in parts:
        if kind == "tool" and part.call_id is None:
            name, arguments = joined[-1]
            joined[-1] = (name, arguments + part.arguments)
        elif kind == "tool":
            joined.append((part.name, part.arguments))
        elif joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    assert [part for part in joined if not isinstance(part, str)] == [
        (call.name, call.arguments) for call in parser.calls
    ]
    return joined


def calls_in(joined):
    return [(name, json.loads(arguments)) for name, arguments in only_calls(joined)]


def only_calls(joined):
    return [part for part in joined if not isinstance(part, str)]


def texts_in(joined):
    return [part.strip() for part in joined if isinstance(part, str) and part.strip()]


# --- how a format is known --------------------------------------------------------------------------------


def test_every_format_has_a_sample_and_a_name_of_its_own():
    assert {sample.format for sample in SAMPLES} == {*FORMATS}
    assert len(BY_NAME) == len(FORMATS)
    assert sorted(BY_NAME) == [*TOOL_FORMATS]


def test_every_format_is_in_the_documentation():
    documented = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    assert not [name for name in BY_NAME if f"`{name}`" not in documented]


@pytest.mark.parametrize(
    ("sample", "file"),
    [(sample, file) for sample in SAMPLES for file in sample.templates],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_what_a_template_writes_is_read_as_the_calls_that_it_was_given(sample, file):
    if not (TEMPLATES / file).exists():
        pytest.skip("there are no templates here")
    source = (TEMPLATES / file).read_text()
    assert tool_format([source]) is sample.format
    template = ChatTemplate.of(source, SPECIAL)
    for calls in [CALLS] if sample.parallel else [[call] for call in CALLS]:
        tools = tools_of(calls)
        assert calls_in(read(sample, [turn_with(template, calls, tools)], tools)) == [
            (name, sample.reads(arguments)) for name, arguments in calls
        ]


def turn_with(template, calls, tools):
    """What a template makes of a turn with calls, and of what follows it, as a model writes it."""
    made = [
        ToolCall(id=f"call{number:05}", name=name, arguments=json.dumps(arguments))
        for number, (name, arguments) in enumerate(calls)
    ]
    conversation = [
        Message(role="user", content="Do it."),
        Message(role="assistant", content="", tool_calls=made),
        *(Message(role="tool", content="done", tool_call_id=call.id, name=call.name) for call in made),
    ]
    prompt = template.render(conversation[:1], tools, {})
    return template.render(conversation, tools, {}).removeprefix(prompt).rpartition("Do it.")[2]


# --- how it is read ---------------------------------------------------------------------------------------


NAMES = st.sampled_from(["a", "b_c", "d-1"])


# A strategy works out much of what it knows when it first draws, so that each is made once for a format.


@cache
def values(sample):
    tags = [*sample.format.markers, *sample.format.parser.openings, sample.format.after, "</", "<", '"', "\\"]
    words = st.text(max_size=6) | st.lists(st.sampled_from([*filter(None, tags), "\n", "a"]), max_size=3).map(
        "".join
    )
    return st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | words,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | NAMES, inner, max_size=3),
        max_leaves=4,
    )


@cache
def arguments_for(sample):
    pairs = st.tuples(st.text(max_size=4) | NAMES, values(sample)).filter(lambda pair: sample.carries(*pair))
    return st.lists(pairs, max_size=3).map(dict)


@cache
def calls_for(sample):
    return st.lists(st.tuples(st.sampled_from(["f", "get_x"]), arguments_for(sample)), max_size=3)


def one_of_each(calls):
    """Calls of tools that differ, so that each has a schema to itself."""
    return [(f"{name}_{number}", arguments) for number, (name, arguments) in enumerate(calls)]


@each_format
@few
@given(st.data())
def test_calls_that_were_written_are_read(sample, data):
    calls = one_of_each(data.draw(calls_for(sample)))
    text = sample.write(calls) if calls else ""
    joined = read(sample, [text], tools_of(calls))
    assert calls_in(joined) == calls
    assert not texts_in(joined)
    joined = joined if sample.format.parser.starts else read(sample, ["So: " + text], tools_of(calls))
    assert calls_in(joined) == calls


@pytest.mark.parametrize(
    "sample", [each for each in SAMPLES if writes(each.format)], ids=lambda each: each.name
)
def test_calls_that_are_told_to_a_model_in_words_are_read_as_the_same(sample):
    calls = [*CALLS, ("f", {"not a name": 1, "b": None})]
    text = sample.format.as_text(calls)
    assert text.startswith(sample.format.before)
    joined = read(sample, [text], tools_of(calls))
    assert calls_in(joined) == calls
    assert not texts_in(joined)


@cache
def texts_for(sample):
    """Calls, what is left of some, and other text."""
    whole = st.builds(lambda calls: sample.write(calls) if calls else "", calls_for(sample))
    ends = st.tuples(st.integers(0, 200), st.integers(0, 200))
    torn = st.builds(lambda text, ends: text[slice(*sorted(ends))], whole, ends)
    tags = [*sample.format.markers, *sample.format.parser.openings, *sample.format.parser.starts]
    scraps = [*tags, *(tag[:-1] for tag in tags), *' \n"a{}<>f:é', "</"]
    scrap = st.sampled_from([*filter(None, scraps)])
    return st.lists(whole | torn | scrap, max_size=8).map("".join)


@cache
def cut_texts_for(sample):
    return cut(texts_for(sample))


@cache
def some_calls_for(sample):
    return calls_for(sample).filter(bool)


LIMITS = st.sampled_from([{}, {"most": 1}, {"first": True}, {"only": True}])


@each_format
@few
@given(st.data(), st.booleans(), LIMITS)
def test_the_parts_do_not_depend_on_how_the_text_was_cut(sample, data, ended, limits):
    text, chunks = data.draw(cut_texts_for(sample))
    tools = [tool_of("f", {"a": "x", "b": 1}), tool_of("get_x", {})]
    whole = read(sample, [text], tools, ended=ended, **limits)
    assert read(sample, chunks, tools, ended=ended, **limits) == whole
    assert read(sample, text, tools, ended=ended, **limits) == whole


@each_format
@pytest.mark.parametrize("ended", [False, True])
def test_no_text_between_texts_is_nothing(sample, ended):
    text = sample.write([("f", {"a": ["x", -2.225, None], "b": {"c": True}})])
    tools = [tool_of("f", {"a": ["x"], "b": {}})]
    for end in range(len(text) + 1):
        whole = read(sample, [text[:end]], tools, ended=ended)
        middle = end // 2
        chunks = ["", text[:middle], "", text[middle:end], "", ""]
        assert read(sample, chunks, tools, ended=ended) == whole, text[:end]


@each_format
@few
@given(st.data(), st.sampled_from([{}, {"first": True}]))
def test_an_answer_without_calls_is_its_text(sample, data, limits):
    text = data.draw(texts_for(sample))
    joined = read(sample, [text], **limits)
    if not any(isinstance(part, tuple) for part in joined) and not sample.format.frames_text:
        assert "".join(joined) == text
    for part in joined:
        if not isinstance(part, str):
            assert part[0]


@each_format
@few
@given(st.data(), st.booleans())
def test_of_a_call_that_is_not_whole_nothing_else_is_told_than_was_written(sample, data, ended):
    calls = one_of_each(data.draw(some_calls_for(sample)))
    text = sample.write(calls)
    whole = only_calls(read(sample, [text], tools_of(calls)))
    torn = text[: data.draw(st.integers(0, len(text)))]
    told = only_calls(read(sample, [torn], tools_of(calls), ended=ended))
    assert [name for name, _ in told] == [name for name, _ in whole[: len(told)]]
    for number, (_, arguments) in enumerate(told):
        if number < len(told) - 1:
            assert arguments == whole[number][1]
        elif ended:
            assert whole[number][1].startswith(arguments)
        else:  # what closes it may have been added
            assert whole[number][1].startswith(arguments.rstrip('"]} '))


@each_format
def test_reading_takes_time_in_proportion_to_the_text(sample):
    def work(size):
        """Steps of the interpreter, and characters in hand, while a text comes letter by letter."""
        calls = [("f", {"text": "<word {}[ " * size, "list": [[1, {"a": "b"}]] * size})]
        torn = sample.write(calls)
        texts = [
            torn,
            torn[: -len(torn) // 3] * 2,
            "".join(sample.format.parser.openings) * size,
            "< " * size,
        ]
        steps = [0]

        def count(frame, event, argument):
            steps[0] += 1

        for text in texts:
            parser = sample.format.parser(tools_of(calls))
            sys.setprofile(count)
            try:
                for letter in text:
                    parser.push(letter)
                    steps[0] += len(parser._text)
                parser.finish()
            finally:
                sys.setprofile(None)
        return steps[0] / sum(map(len, texts))

    assert work(100) < 1.3 * work(25)


@each_format
def test_a_call_is_over_with_its_last_character(sample):
    for call in CALLS[1:]:
        parser = sample.format.parser(tools_of([call]), most=1)
        parser.push(sample.write([call]))
        assert parser.over
        assert parser.calls[0].name == call[0]
        assert json.loads(parser.calls[0].arguments) == call[1]


# --- tags that are tokens ---------------------------------------------------------------------------------


@each_format
def test_tags_that_are_tokens_count_only_as_such(sample):
    markers = sample.format.markers
    if not markers:
        pytest.skip("it has no tags that are tokens")
    text = sample.write(CALLS)
    any_marker = "|".join(map(re.escape, sorted(markers, key=len, reverse=True)))
    spelled = re.sub(any_marker, lambda found: TOKEN + found[0], text)
    assert calls_in(read(sample, [spelled], tools_of(CALLS), tokens=markers)) == calls_in(
        read(sample, [text], tools_of(CALLS))
    )
    assert read(sample, list(spelled), tools_of(CALLS), tokens=markers) == read(
        sample, [spelled], tools_of(CALLS), tokens=markers
    )
    assert read(sample, [text], tokens=markers) == [text]


# --- grammars ---------------------------------------------------------------------------------------------

SCHEMAS = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 9},
            "unit": {"enum": ["C", "F"]},
            "days": {"type": "integer", "minimum": 0, "maximum": 20},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
    "nothing": {"type": "object", "properties": {}, "additionalProperties": False},
    "order": {
        "type": "object",
        "properties": {
            "note": {"type": ["string", "null"], "maxLength": 5},
            "items": {
                "type": "array",
                "maxItems": 2,
                "items": {
                    "type": "object",
                    "properties": {"id": {"type": "integer"}, "name": {"type": "string", "maxLength": 4}},
                    "required": ["id"],
                    "additionalProperties": False,
                },
            },
            "code": {"type": "string", "pattern": "^[a-c]{2,3}$"},
            "paid": {"type": "boolean"},
        },
        "required": ["items", "code"],
        "additionalProperties": False,
    },
}
TOOLS = [Tool.function(name, parameters=schema) for name, schema in SCHEMAS.items()]


@cache
def grammar_of(written, parallel=True):
    return require_call(TOOLS, [*SCHEMAS], encode, "none", parallel=parallel, written=written).grammar


@each_format
@pytest.mark.parametrize("seed", range(4))
def test_what_the_grammar_allows_is_read_as_calls_that_fit(sample, seed):
    text = follow(grammar_of(sample.format), seed, 4000)
    for joined in read(sample, [text], TOOLS), read(sample, [text], TOOLS, first=True):
        calls = calls_in(joined)
        assert calls
        assert not texts_in(joined), text
        for name, arguments in calls:
            jsonschema.validate(arguments, SCHEMAS[name])


@each_format
def test_one_call_is_the_most_where_calls_are_not_parallel(sample):
    for seed in range(2):
        text = follow(grammar_of(sample.format, parallel=False), seed, 4000)
        assert len(calls_in(read(sample, [text], TOOLS))) == 1


@each_format
@pytest.mark.parametrize("seed", range(2))
def test_a_grammar_writes_tags_that_are_tokens_as_such(sample, seed):
    markers = sample.format.markers
    if not markers:
        pytest.skip("it has no tags that are tokens")

    def encode_markers(text):
        return [256 + markers.index(text)] if text in markers else list(text.encode())

    held = require_call(TOOLS, [*SCHEMAS], encode_markers, "none", written=sample.format)
    text = follow_tokens(held.grammar, markers, seed)
    joined = read(sample, [text], TOOLS, tokens=markers)
    assert calls_in(joined)
    assert not texts_in(joined), text
    for name, arguments in calls_in(joined):
        jsonschema.validate(arguments, SCHEMAS[name])
