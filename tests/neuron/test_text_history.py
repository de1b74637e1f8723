import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message, TextPart, ToolCall
from neuron.text.formats.pythonic import LFM2
from neuron.text.history import Takes, mended, walkable
from neuron.text.template import ChatTemplate

# What templates insist on, one thing each.
TURNS = (
    "{% for m in messages %}[{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}({{ c.id }} {{ c.function.name }}"
    "{% for k, v in c.function.arguments | items %} {{ k }}={{ v }}{% endfor %}){% endfor %}"
    "{% if m.tool_call_id %}<{{ m.tool_call_id }}{% endif %}]{% endfor %}"
)
RAISE = "{{ raise_exception('no') }}"
SYSTEM_FIRST = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    + RAISE
    + "{% endif %}{% endfor %}"
) + TURNS
NO_SYSTEM = "{% if messages[0].role == 'system' %}" + RAISE + "{% endif %}" + SYSTEM_FIRST
SYSTEM_LOST = (
    "{% for m in messages %}{% if loop.first or m.role != 'system' %}"
    "[{{ m.role }}:{{ m.content }}]{% endif %}{% endfor %}"
)
ALTERNATING = (
    "{% set n = namespace(user=true) %}{% for m in messages if m.role != 'system' %}"
    "{% if (m.role == 'user') != n.user %}" + RAISE + "{% endif %}{% set n.user = not n.user %}{% endfor %}"
) + SYSTEM_FIRST
USER_NEEDED = (
    "{% if messages | selectattr('role', 'eq', 'user') | list | length == 0 %}"
    + RAISE
    + "{% endif %}"
    + TURNS
)
ONE_CALL = (
    "{% for m in messages if m.tool_calls and m.tool_calls | length > 1 %}" + RAISE + "{% endfor %}" + TURNS
)
SHORT_IDS = (
    "{% for m in messages %}{% for c in m.tool_calls or [] if c.id | length != 9 %}" + RAISE + "{% endfor %}"
    "{% if m.role == 'tool' and m.tool_call_id | length != 9 %}" + RAISE + "{% endif %}{% endfor %}" + TURNS
)
TEXT_ARGUMENTS = (
    "{% for m in messages %}[{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '' + c.function.arguments }}{% endfor %}]{% endfor %}"
)


def said(role, content=""):
    return Message(role=role, content=content)


def called(*arguments, content="", ids="abc"):
    calls = [
        ToolCall(id=f"{which}12345678", name="f", arguments=each)
        for which, each in zip(ids, arguments, strict=False)
    ]
    return Message(role="assistant", content=content, tool_calls=calls)


def result(content, which="a"):
    return Message(role="tool", content=content, tool_call_id=f"{which}12345678")


def render(source, *messages):
    return ChatTemplate.of(source, {}).render(messages, [], {})


@pytest.mark.parametrize(
    ("source", "messages", "prompt"),
    [
        (TURNS, [said("user", "a"), said("system", "s"), said("user", "b")], "[user:a][system:s][user:b]"),
        (
            SYSTEM_FIRST,
            [said("system", "r"), said("user", "a"), said("system", "s"), said("user", "b")],
            "[system:r][user:a][user:s][user:b]",
        ),
        (
            SYSTEM_FIRST,
            [said("system", "r"), said("system", "s"), said("user", "a")],
            "[system:r\n\ns][user:a]",
        ),
        (
            SYSTEM_FIRST,
            [said("system", "r"), said("developer", "s"), said("user", "a")],
            "[system:r\n\ns][user:a]",
        ),
        (NO_SYSTEM, [said("system", "r"), said("user", "a")], "[user:r][user:a]"),
        (SYSTEM_LOST, [said("user", "a"), said("system", "s")], "[user:a][user:s]"),
        (
            ALTERNATING,
            [
                said("user", "a"),
                said("system", "s"),
                said("user", "b"),
                said("assistant", "c"),
                said("user", "d"),
            ],
            "[user:a\n\ns\n\nb][assistant:c][user:d]",
        ),
        (ALTERNATING, [said("assistant", "a"), said("assistant", "b")], "[user:][assistant:a\n\nb]"),
        (USER_NEEDED, [said("system", "r")], "[system:r][user:]"),
        (USER_NEEDED, [said("assistant", "a"), said("user", "b")], "[assistant:a][user:b]"),
    ],
)
def test_a_turn_that_the_template_does_not_take_goes_into_one_that_it_takes(source, messages, prompt):
    assert render(source, *messages) == prompt


def test_a_system_turn_between_a_call_and_its_result_waits_for_that():
    messages = [said("user", "a"), called("{}"), said("system", "s"), result("r"), said("assistant", "b")]
    assert render(SYSTEM_FIRST, *messages) == (
        "[user:a][assistant:(a12345678 f)][tool:r<a12345678][user:s][assistant:b]"
    )


def test_several_calls_in_one_turn_become_turns_with_their_results():
    messages = [
        said("user", "a"),
        called('{"k": 1}', '{"k": 2}', content="two"),
        result("r", "a"),
        result("s", "b"),
        said("user", "b"),
    ]
    assert render(ONE_CALL, *messages) == (
        "[user:a][assistant:two(a12345678 f k=1)][tool:r<a12345678]"
        "[assistant:(b12345678 f k=2)][tool:s<b12345678][user:b]"
    )


class Id(str):
    """One that counts how often any is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        Id.compared += 1
        return str.__eq__(self, other)


def test_many_calls_and_results_are_put_together_without_comparing_each_with_each():
    def work(count):
        Id.compared = 0
        calls = [{"id": Id(i), "function": {"name": "f", "arguments": {}}} for i in range(count)]
        results = [{"role": "tool", "content": str(i), "tool_call_id": Id(i)} for i in reversed(range(count))]
        turns = [{"role": "assistant", "content": "", "tool_calls": calls}, *results]
        shaped = walkable(turns, Takes(several_calls=False, orphans=False, unanswered=False))
        assert len(shaped) == 2 * count
        return Id.compared / count

    assert work(400) < 1.5 * work(50)


def test_ids_are_shortened_alike_in_calls_and_results():
    call_id = "call_0123456789abcdef01234567"
    call = Message(role="assistant", tool_calls=[ToolCall(id=call_id, name="f", arguments="{}")])
    answer = Message(role="tool", content="r", tool_call_id=call_id)
    prompt = render(SHORT_IDS, said("user", "a"), call, answer)
    short = prompt.split("(")[1].split(" ")[0]
    assert prompt == f"[user:a][assistant:({short} f)][tool:r<{short}]"
    assert len(short) == 9
    assert "(a12345678 f)" in render(SHORT_IDS, said("user", "a"), called("{}"), result("r"))


def test_a_template_that_knows_no_calls_is_told_them_in_words():
    messages = [said("user", "a"), called('{"k": 1}', content="see"), result("r"), said("assistant", "b")]
    prompt = render(ALTERNATING, *messages)
    assert prompt == (
        '[user:a][assistant:see\n\n<tool_call>\n{"name": "f", "arguments": {"k": 1}}\n</tool_call>]'
        "[user:<tool_response>\nr\n</tool_response>][assistant:b]"
    )


SILENT = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"  # about calls


def test_calls_that_the_template_would_leave_out_are_told_as_the_model_writes_them():
    messages = [said("user", "a"), called('{"k": [true, "é"]}', '{"k": "v', content="see", ids="ab")]
    messages += [result("r"), result("s", "b")]
    prompt = ChatTemplate.of(SILENT, {}, tool_format=LFM2).render(messages, [], {})
    assert prompt == (
        '[user:a][assistant:see\n\n<|tool_call_start|>[f(k=[True, "é"]), f(k="v")]<|tool_call_end|>]'
        "[tool:r][tool:s]"
    )
    deep = '{"k":' * 900 + "1" + "}" * 900
    assert deep in ChatTemplate.of(SILENT, {}, tool_format=LFM2).render([called(deep)], [], {}).replace(
        " ", ""
    )
    with_tools = "{% if tools %}" + TURNS + "{% else %}" + SILENT + "{% endif %}"
    assert "f(k=" not in ChatTemplate.of(with_tools, {}, tool_format=LFM2).render(messages, [], {})


@pytest.mark.parametrize(
    "arguments", ['{"k": "v', '{"k": "v"', '{"k": "v", ', '{"k": "v", "other": tr', '{"k": "v", "oth']
)
def test_arguments_that_were_cut_are_completed_for_a_template_that_walks_through_them(arguments):
    prompt = render(TURNS, said("user", "a"), called(arguments), result("r"))
    assert prompt == "[user:a][assistant:(a12345678 f k=v)][tool:r<a12345678]"


def test_arguments_stay_as_they_are_where_a_template_takes_any_text():
    messages = [said("user", "a"), called('{"k": "v'), result("r")]
    plain = TURNS.replace(
        "{% for k, v in c.function.arguments | items %} {{ k }}={{ v }}{% endfor %}",
        "{{ c.function.arguments }}",
    )
    assert '{"k": "v)' in render(plain, *messages)


def test_a_template_that_reads_arguments_as_text_is_given_json():
    assert '{"k": "é"}' in render(TEXT_ARGUMENTS, said("user", "a"), called('{"k":"é"}'), result("r"))
    assert "{broken" in render(TEXT_ARGUMENTS, said("user", "a"), called("{broken"), result("r"))


def test_parts_are_kept_where_turns_are_joined():
    parts = [TextPart(text="p"), TextPart(text="q")]
    prompt = render(ALTERNATING, said("user", "a"), Message(role="user", content=parts))
    assert prompt.index("a") < prompt.index("p") < prompt.index("q")


def test_what_a_template_refuses_in_any_shape_is_refused_in_its_words():
    with pytest.raises(CortexError, match="only poems") as raised:
        render(
            "{% if 'poem' not in messages[0].content %}{{ raise_exception('only poems') }}{% endif %}",
            said("user", "a"),
        )
    assert raised.value.code == Code.TEMPLATE_FAILED


def test_a_longer_conversation_begins_as_the_shorter_one_did():
    turns = [
        said("system", "r"),
        said("user", "a"),
        called("{broken", "{}"),
        result("x", "b"),
        result("y"),
        said("system", "s"),
        said("user", "b"),
        said("assistant", "c"),
        said("user", "d"),
    ]
    for source in (SYSTEM_FIRST, ONE_CALL, SHORT_IDS):
        whole = render(source, *turns)
        for end in (2, 5, 6, 7, 8):
            assert whole.startswith(render(source, *turns[:end]))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=4), st.data())
def test_a_beginning_of_json_is_completed_to_an_object_that_has_nothing_else_in_it(value, data):
    text = json.dumps(value, ensure_ascii=data.draw(st.booleans()))
    cut = text[: data.draw(st.integers(1, len(text)))]
    assert is_part(mended(cut), value)
    assert mended(text) == value


def is_part(some, whole):
    """Whether a value is a beginning of another one."""
    if isinstance(some, dict) and isinstance(whole, dict):
        return all(key in whole and is_part(each, whole[key]) for key, each in some.items())
    if isinstance(some, list) and isinstance(whole, list):
        return len(some) <= len(whole) and all(map(is_part, some, whole))
    if isinstance(some, str) and isinstance(whole, str):
        return whole.startswith(some) or whole.encode("utf-16", "surrogatepass").startswith(
            some.encode("utf-16", "surrogatepass")
        )
    return some == whole


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("nonsense", {"arguments": "nonsense"}),
        ("[1, 2]", {"arguments": "[1, 2]"}),
        ('{"a": "two\nlines"}', {"a": "two\nlines"}),
        ('{"a": 12', {}),
        ('{"a": 1}}', {"a": 1}),
        ("{", {}),
        ("[" * 100_000, {"arguments": "[" * 100_000}),
    ],
)
def test_arguments_that_are_no_object_become_one(text, value):
    assert mended(text) == value
