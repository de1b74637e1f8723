import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.text.answer import AnswerParser
from neuron.text.tools import ToolCallParser, parse_call
from tests.neuron.chunks import cut

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["</tool_call>", '"', "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
CALL = st.builds(
    lambda arguments, indent: (
        f"<tool_call>\n{json.dumps({'name': 'f', 'arguments': arguments}, indent=indent)}\n</tool_call>"
    ),
    st.dictionaries(st.text(max_size=4), JSON, max_size=3),
    st.sampled_from([None, 2]),
)
SCRAP = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<tool", "</", "<", " ", "\n", "a", '{"name": "f"', "}", '"', "[1]", "é"]
)
TEXT = st.lists(CALL | SCRAP, max_size=8).map("".join)


def run(chunks):
    """The parts with runs of text joined, and random ids left out."""
    parser = ToolCallParser()
    parts = [part for chunk in chunks for part in parser.push(chunk)] + parser.finish()
    joined = []
    for kind, part in parts:
        if kind == "tool":
            joined.append((part.index, part.name, part.arguments))
        elif joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined, parser.calls


@given(cut(TEXT))
def test_the_parts_do_not_depend_on_how_the_text_was_cut(text_and_chunks):
    text, chunks = text_and_chunks
    whole, _ = run([text])
    assert run(chunks)[0] == run(list(text))[0] == whole


@given(TEXT)
def test_nothing_is_lost_but_tags_and_the_space_around(text):
    def squeeze(part):
        return re.escape(re.sub(r"\s", "", part))

    parts, calls = run([text])
    source = ""
    for part in parts:
        if isinstance(part, str):
            source += squeeze(part)
        else:
            arguments = squeeze(part[2])
            source += rf'<tool_call>\{{"name":"f"(,"arguments":{arguments})?\}}(</tool_call>)?'
    assert re.fullmatch(source, re.sub(r"\s", "", text))
    if not calls:
        assert parts == ([text] if text else [])


@given(st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=3), min_size=1, max_size=3), st.data())
def test_calls_come_whole_and_in_order_with_the_arguments_as_written(all_arguments, data):
    texts = [
        json.dumps(arguments, indent=data.draw(st.sampled_from([None, 1]))) for arguments in all_arguments
    ]
    answer = "So:\n" + "\n".join(
        f'<tool_call>\n{{"name": "f{i}", "arguments": {text}}}\n</tool_call>' for i, text in enumerate(texts)
    )
    parts, calls = run([answer])
    assert parts == ["So:", *((i, f"f{i}", text) for i, text in enumerate(texts))]
    assert [call.arguments for call in calls] == texts


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('{"name": "f", "arguments": {"a": "  two\\nlines  "}}', '{"a": "  two\\nlines  "}'),
        ('{"arguments": {"a":1},"name": "f"}', '{"a":1}'),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', '{"a": 1}'),
        ('{"name": "f", "arguments": null}', "{}"),
        ('{"name": "f"}', "{}"),
        ('\n{"name": "f", "arguments": {}, "id": 7}\n', "{}"),
    ],
)
def test_arguments_are_an_object_however_they_were_given(body, arguments):
    call = parse_call(body)
    assert (call.name, call.arguments) == ("f", arguments)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "f(1)",
        '{"name": "f", "arguments": {}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "not json"}',
        '{"name": "f", "arguments": "[1]"}',
        '{"name": "", "arguments": {}}',
        '{"name": 3, "arguments": {}}',
        '{"arguments": {}}',
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"name": "f", "arguments": ' + "[" * 5000,
    ],
)
def test_what_is_no_call_is_none(body):
    assert parse_call(body) is None
    text = f"<tool_call>{body}</tool_call>"
    assert run(["Hm \n" + text + "\nwell"])[0] == ["Hm \n" + text + "\nwell"]


def test_a_call_that_the_model_did_not_close_is_a_call_if_it_is_whole():
    assert run(['<tool_call>{"name": "f"}'])[0] == [(0, "f", "{}")]
    assert run(['<tool_call>{"name": "f"'])[0] == ['<tool_call>{"name": "f"']


def test_the_end_tag_in_a_string_ends_nothing():
    body = '{"name": "write", "arguments": {"text": "a</tool_call>b\\""}}'
    parts, calls = run([f"<tool_call>{body}</tool_call> done"])
    assert parts == [(0, "write", '{"text": "a</tool_call>b\\""}'), "done"]
    assert len(calls) == 1


def test_ids_of_calls_are_random_and_told_once():
    _, calls = run(['<tool_call>{"name": "f"}</tool_call>' * 2])
    assert len({call.id for call in calls}) == 2
    assert all(re.fullmatch("call_[0-9a-f]{24}", call.id) for call in calls)


def test_text_before_a_call_comes_before_the_call_is_known():
    parser = ToolCallParser()
    assert parser.push("Let me see.\n<tool_c") == [("text", "Let me see.")]
    assert parser.push('all>{"name"') == []


def test_calls_are_told_from_reasoning_and_need_tools():
    answer = '<think>I could <tool_call>.</think>\n\nSo: <tool_call>{"name": "f"}</tool_call>'
    with_tools = AnswerParser("assistant\n", tools=True)
    kinds = with_tools.push(answer) + with_tools.finish()
    assert [kind for kind, _ in kinds] == ["reasoning", "text", "tool"]
    assert kinds[0][1] == "I could <tool_call>."
    assert [call.name for call in with_tools.tool_calls] == ["f"]
    without = AnswerParser("assistant\n", tools=False)
    assert without.push(answer)[1:] == [("text", 'So: <tool_call>{"name": "f"}</tool_call>')]
    assert without.tool_calls == []


def pieces_of(parser, chunks):
    pieces = [piece for chunk in chunks for piece in parser.push(chunk)] + parser.finish()
    said = {"text": "", "reasoning": "", "tool": []}
    for kind, piece in pieces:
        if kind == "tool":
            said["tool"].append((piece.name, piece.arguments))
        else:
            said[kind] += piece
    return said


@given(cut(st.lists(CALL | SCRAP | st.sampled_from(["<think>", "</think>"]), max_size=8).map("".join)))
def test_an_answer_does_not_depend_on_how_it_was_cut(text_and_chunks):
    text, chunks = text_and_chunks
    assert pieces_of(AnswerParser("", True), chunks) == pieces_of(AnswerParser("", True), [text])
