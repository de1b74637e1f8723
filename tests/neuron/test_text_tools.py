import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.messages.conversation import Tool
from neuron.text.formats.hermes import HermesParser
from neuron.text.parser import AnswerParser
from neuron.text.reasoning import ReasoningSplitter
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
TOOLS = [Tool.function(name) for name in ("get_weather", "get_time", "send")]
TEXT = st.lists(CALL | SCRAP, max_size=8).map("".join)


def parser_of(**limits):
    return AnswerParser(tools=HermesParser(TOOLS, **limits))


def run(chunks, cut=False, **limits):
    """The parts with runs of text and of arguments joined, and random ids left out."""
    parser = parser_of(**limits)
    parts = [part for chunk in chunks for part in parser.push(chunk)] + parser.finish(cut)
    joined = []
    for kind, part in parts:
        if kind == "tool" and part.call_id is None:
            index, name, arguments = joined[-1]
            assert (index, None) == (part.index, part.name)
            joined[-1] = (index, name, arguments + part.arguments)
        elif kind == "tool":
            joined.append((part.index, part.name, part.arguments))
        elif joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    calls = [part for part in joined if not isinstance(part, str)]
    assert calls == [(index, call.name, call.arguments) for index, call in enumerate(parser.tool_calls)]
    return joined, parser.tool_calls


@given(cut(TEXT), st.booleans(), st.sampled_from([{}, {"most": 1}, {"first": True}, {"only": True}]))
def test_the_parts_do_not_depend_on_how_the_text_was_cut(text_and_chunks, ended, limits):
    text, chunks = text_and_chunks
    whole, _ = run([text], ended, **limits)
    assert run(chunks, ended, **limits)[0] == run(list(text), ended, **limits)[0] == whole


@given(st.lists(CALL | st.sampled_from(["a", "b c", "é\n", "<tool", "</", "]"])).map("".join))
def test_nothing_is_lost_but_tags_and_the_space_around(text):
    def squeeze(part):
        return re.escape(re.sub(r"\s", "", part))

    parts, calls = run([text])
    source = ""
    for part in parts:
        if isinstance(part, str):
            source += squeeze(part)
        else:
            source += rf'<tool_call>\{{"name":"f","arguments":{squeeze(part[2])}\}}</tool_call>'
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
        ('{"type": "function", "name": "f", "parameters": {"a": 1}}', '{"a": 1}'),
        ('{"name": "f", "id": "1", "args": {"a": {"b": "}"}} }', '{"a": {"b": "}"}}'),
        ('{"input": {"a": 1}, "name": "f"}', '{"a": 1}'),
        ('{"name": "f", "parameters": "{}"}', "{}"),
    ],
)
def test_arguments_are_an_object_however_they_were_given(body, arguments):
    assert run([f"<tool_call>{body}</tool_call>"])[0] == [(0, "f", arguments)]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "f(1)",
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "not json"}',
        '{"name": "f", "arguments": "[1]"}',
        '{"name": "", "arguments": {}}',
        '{"name": 3, "arguments": {}}',
        '{"arguments": {}}',
        '{"name": "f", "city": "Oslo"}',
        '{"name": "' + "f" * 257 + '", "arguments": {}}',
        '{"name": "f", "arguments": 1, "args": {}}',
        '{"name": "f", "arguments": ' + "[" * 5000,
    ],
)
def test_what_is_no_call_is_none(body):
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


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<tool_call>{"name": "f", "arguments": {}\n</tool_call>', [(0, "f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": {}}}\n</tool_call>', [(0, "f", "{}")]),
        ('<tool_call>{"name": "f", "args": {"a": 1</tool_call>', [(0, "f", '{"a": 1}')]),
        (
            '<tool_call>{"name": "f", "args": {"a": 1}}\n<tool_call>{"name": "g", "args": {}}',
            [(0, "f", '{"a": 1}'), (1, "g", "{}")],
        ),
        ('<tool_call>{"name": "f", "args": {}} Done.', [(0, "f", "{}"), "Done."]),
        (
            '<tool_call>{"name": "f", "args": {"a": "two\nlines"}}</tool_call>',
            [(0, "f", '{"a": "two\\nlines"}')],
        ),
    ],
)
def test_what_was_begun_as_a_call_stays_one(text, calls):
    assert run([text])[0] == calls


def test_arguments_come_as_they_are_written():
    parser = parser_of()
    deltas = [
        parser.push(chunk)
        for chunk in ('<tool_call>{"name": "se', 'nd", "argu', 'ments": {"te', 'xt": "a</', '"}}')
    ]
    told = [[(part.name, part.arguments) for _, part in delta] for delta in deltas]
    assert told == [[], [], [("send", ""), (None, '{"te')], [(None, 'xt": "a</')], [(None, '"}')]]


def test_in_a_stream_of_a_large_call_nothing_is_held_back():
    parser, arguments = parser_of(), json.dumps({"text": "word " * 2000})
    parser.push('<tool_call>{"name": "f", "arguments": ')
    for start in range(0, len(arguments), 5):
        [*_, (kind, delta)] = parser.push(arguments[start : start + 5])
        assert (kind, delta.arguments) == ("tool", arguments[start : start + 5])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<tool_call>", []),
        ("So:\n<tool_call>\n", ["So:\n"]),
        ('<tool_call>\n{"na', []),
        ('<tool_call>\n{"name": "get_', []),
        ('<tool_call>\n{"name": "get_w', [(0, "get_weather", "")]),
        ('<tool_call>\n{"name": "get_weather", "argum', [(0, "get_weather", "")]),
        ('<tool_call>\n{"name": "send", "arguments": {"to": "<', [(0, "send", '{"to": "<')]),
        ('<tool_call>\n{"name": "send", "arguments": {"to": "a\\', [(0, "send", '{"to": "a\\')]),
        ('<tool_call>\n{"name": "send", "arguments": {}}\n</tool', [(0, "send", "{}")]),
        ('<tool_call>\n{"name": "send"}', [(0, "send", "{}")]),
        ("<tool_call>f(1", ["<tool_call>f(1"]),
        ("1 <", ["1 <"]),
    ],
)
def test_a_call_that_was_cut_is_told_as_far_as_it_went(text, parts):
    assert run([text], cut=True)[0] == parts


def test_of_an_answer_of_calls_alone_a_cut_leaves_no_text():
    assert run(["<tool_ca"], cut=True, only=True)[0] == []
    assert run(["<tool_ca"], cut=True)[0] == ["<tool_ca"]


def test_after_as_many_calls_as_there_may_be_the_answer_is_over():
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    parser = parser_of(most=1)
    assert not parser.ended
    parser.push("So: " + call + "\n" + call + " and")
    assert parser.ended
    assert run(["So: " + call + "\n" + call + " and"], most=1)[0] == ["So:", (0, "f", "{}")]


def test_in_an_answer_of_calls_or_text_the_text_may_speak_of_calls():
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert run(["\n" + call + "\n" + call], first=True)[0] == [(0, "f", "{}"), (1, "f", "{}")]
    assert run(['{"a": "' + call + '"}'], first=True)[0] == ['{"a": "' + call + '"}']


def test_a_stop_string_ends_text_and_neither_thoughts_nor_calls():
    call = '<tool_call>\n{"name": "f", "arguments": {"a": "END"}}\n</tool_call>'
    parser = AnswerParser(ReasoningSplitter("open"), HermesParser(), ["END", "<", "\n\n"])
    assert pieces_of(parser, [f"the END<>\n\nis</think>\n\nSo:{call}{call}\n\nNow.END."]) == {
        "text": "So:Now.",
        "reasoning": "the END<>\n\nis",
        "tool": [("f", '{"a": "END"}')] * 2,
    }
    assert parser.stop_sequence == "END"


def test_a_stop_string_of_space_ends_text_before_it_is_known_what_follows():
    parser = AnswerParser(None, HermesParser(), ["\n\n"])
    assert parser.push("So:\n\n") == [("text", "So:")]
    assert parser.ended


def test_a_stop_string_does_not_reach_across_a_call():
    call = '<tool_call>{"name": "f"}</tool_call>'
    parser = AnswerParser(None, HermesParser(), ["ab"])
    assert pieces_of(parser, [f"a{call}b"])["text"] == "ab"
    assert not parser.ended


@given(
    cut(st.lists(CALL | SCRAP | st.sampled_from(["<think>", "</think>"]), max_size=8).map("".join)),
    st.lists(st.sampled_from(["<", "a", "\n\n", '"', "a <", "é</"]), max_size=2),
    st.booleans(),
)
def test_stop_strings_see_the_same_text_however_it_was_cut(text_and_chunks, stop, include):
    def parser():
        return AnswerParser(ReasoningSplitter("possible"), HermesParser(), stop, include)

    text, chunks = text_and_chunks
    one, other = parser(), parser()
    assert pieces_of(one, chunks) == pieces_of(other, [text])
    assert one.stop_sequence == other.stop_sequence


def test_text_before_a_call_comes_before_the_call_is_known():
    parser = parser_of()
    assert parser.push("Let me see.\n<tool_c") == [("text", "Let me see.")]
    assert parser.push('all>{"name"') == []


def test_calls_are_told_from_reasoning_and_need_tools():
    answer = '<think>I could <tool_call>.</think>\n\nSo: <tool_call>{"name": "f"}</tool_call>'
    with_tools = AnswerParser(ReasoningSplitter("possible"), HermesParser())
    kinds = with_tools.push(answer) + with_tools.finish()
    assert [kind for kind, _ in kinds] == ["reasoning", "text", "tool"]
    assert kinds[0][1] == "I could <tool_call>."
    assert [call.name for call in with_tools.tool_calls] == ["f"]
    without = AnswerParser(ReasoningSplitter("possible"))
    assert without.push(answer)[1:] == [("text", 'So: <tool_call>{"name": "f"}</tool_call>')]
    assert without.tool_calls == []


def pieces_of(parser, chunks):
    """What an answer adds up to; what comes after its end is not pushed."""
    pieces = []
    for chunk in chunks:
        pieces += parser.push(chunk)
        if parser.ended:
            break
    said = {"text": "", "reasoning": "", "tool": []}
    for kind, piece in pieces + parser.finish():
        if kind != "tool":
            said[kind] += piece
        elif piece.call_id is not None:
            said[kind].append((piece.name, piece.arguments))
        else:
            name, arguments = said[kind].pop()
            said[kind].append((name, arguments + piece.arguments))
    return said
