import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import Code, CortexError
from ipc.messages import ImagePart, Message, TextPart, ThinkingPart, Tool, ToolCall, ToolResultPart
from neuron.text import template
from neuron.text.content import plain
from neuron.text.template import ChatTemplate, message_for_template

HELLO = [Message(role="user", content="Hello")]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def render(source, messages=HELLO, tools=(), special=None, **args):
    return ChatTemplate(source, special or {}).render(messages, tools, args)


def refusal(source, messages=HELLO, tools=(), **args):
    with pytest.raises(CortexError) as raised:
        render(source, messages, tools, **args)
    return raised.value


def test_a_template_sees_the_conversation_and_asks_for_the_next_turn():
    source = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m.content }}\n{% endfor %}{{ add_generation_prompt }}"
    )
    assert render(source) == "[user] Hello\nTrue"


def test_lines_of_statements_leave_no_space():
    assert render("  {% if true %}\n  a\n  {% endif %}\nb") == "  a\nb"


def test_special_tokens_and_arguments_are_variables():
    source = "{{ bos_token }}{{ enable_thinking }}{{ eos_token is defined }}"
    assert render(source, special={"bos_token": "<s>"}, enable_thinking=False) == "<s>FalseFalse"


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_what_is_not_the_clients_to_set_is_refused(name):
    with pytest.raises(CortexError) as raised:
        ChatTemplate("x", {}).render(HELLO, [], {name: []})
    assert (raised.value.code, raised.value.param) == (Code.BAD_REQUEST, f"template_args.{name}")


def test_without_tools_the_template_sees_none():
    assert render("{{ tools is none }}{{ 'x' if tools }}") == "True"


@given(JSON)
def test_json_is_written_as_python_writes_it(value):
    assert render("{{ value | tojson }}", value=value) == json.dumps(value, ensure_ascii=False)


def test_json_takes_the_arguments_that_transformers_gives_it():
    value = {"b": "<é>", "a": [1]}
    assert render("{{ v | tojson(indent=2) }}", v=value) == json.dumps(value, ensure_ascii=False, indent=2)
    source = "{{ v | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}"
    assert render(source, v=value) == r'{"a":[1],"b":"<\u00e9>"}'


def test_loops_can_be_left_and_generation_marks_are_ignored():
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("a{% generation %}b{{ messages[0].content }}{% endgeneration %}c") == "abHelloc"


def test_a_template_can_ask_for_the_date():
    assert render("{{ strftime_now('%Y') | length }}") == "4"


def test_a_turn_with_tool_calls_has_the_shape_that_templates_walk_through():
    calls = [ToolCall(id="call_1", name="f", arguments='{"a": "é"}')]
    assert message_for_template(Message(role="assistant", reasoning="hm", tool_calls=calls)) == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": "é"}}}
        ],
    }
    assert message_for_template(Message(role="tool", content="4", tool_call_id="call_1", name="f")) == {
        "role": "tool",
        "content": "4",
        "tool_call_id": "call_1",
        "name": "f",
    }


@pytest.mark.parametrize(
    ("text", "arguments"), [("", {}), ('{"a":1}', {"a": 1}), ("{broken", "{broken"), ("[1]", "[1]")]
)
def test_one_bad_call_in_the_history_does_not_break_every_later_turn(text, arguments):
    message = Message(role="assistant", tool_calls=[ToolCall(id="1", name="f", arguments=text)])
    assert message_for_template(message)["tool_calls"][0]["function"]["arguments"] == arguments


def test_a_template_is_given_tools_as_the_client_wrote_them():
    tool = Tool(definition={"function": {"strict": True, "name": "f"}, "type": "function"})
    assert render("{{ tools | tojson }}", tools=[tool]) == json.dumps([tool.definition])


def test_parts_become_turns_reasoning_and_text():
    user = Message(
        role="user",
        content=[ToolResultPart(tool_call_id="1", content=[TextPart(text="4")]), TextPart(text="so?")],
    )
    assistant = Message(
        role="assistant", content=[ThinkingPart(text="hm"), TextPart(text="a"), TextPart(text="b")]
    )
    assert list(plain([user, assistant])) == [
        Message(role="tool", content="4", tool_call_id="1"),
        Message(role="user", content="so?"),
        Message(role="assistant", content="a\nb", reasoning="hm"),
    ]


@pytest.mark.parametrize("inside", [False, True])
def test_an_image_is_refused_where_it_stands(inside):
    part, place = ImagePart(data=b"x"), "messages[1].content[0]"
    if inside:
        part, place = ToolResultPart(tool_call_id="1", content=[part]), f"{place}.content[0]"
    with pytest.raises(CortexError) as raised:
        ChatTemplate("x", {}).render([*HELLO, Message(role="user", content=[part])], [], {})
    assert (raised.value.code, raised.value.param) == (Code.NOT_SUPPORTED, place)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ messages[7].content }}", "has no element 7"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ 'a' + 1 }}", "str"),
        ("{{ 1 // 0 }}", "zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_a_refusal_comes_in_the_templates_own_words(source, words):
    error = refusal(source)
    assert error.code == Code.TEMPLATE_FAILED
    assert words in error.message


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% for i in range(10000000) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source):
    assert refusal(source).code == Code.TEMPLATE_FAILED


def test_a_prompt_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr(template, "OUTPUT_LIMIT", 10_000)
    endless = (
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'some text' }}{% endfor %}{% endfor %}"
    )
    assert "longer than 10,000 characters" in refusal(endless).message


def test_a_text_that_is_no_template_is_told_when_it_is_loaded():
    with pytest.raises(CortexError, match="wrong in line 2") as raised:
        ChatTemplate("a\n{% if %}", {})
    assert raised.value.code == Code.MODEL_LOAD_FAILED
    with pytest.raises(CortexError, match="the chat template is wrong: "):
        ChatTemplate("{{" + "(" * 5000, {})
