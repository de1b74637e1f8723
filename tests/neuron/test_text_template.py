import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ipc.errors import Code, CortexError
from ipc.messages.conversation import (
    ImagePart,
    Message,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
    ToolResultPart,
)
from neuron.preparation.child import most_held
from neuron.text import budget, sandbox, template
from neuron.text.budget import OverBudget
from neuron.text.content import turns
from neuron.text.template import ChatTemplate, message_for_template

HELLO = [Message(role="user", content="Hello")]
JSON_TEMPLATE = ChatTemplate.of("{{ value | tojson }}", {})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def render(source, messages=HELLO, tools=(), special=None, **args):
    return ChatTemplate.of(source, special or {}).render(messages, tools, args)


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
        ChatTemplate.of("x", {}).render(HELLO, [], {name: []})
    assert (raised.value.code, raised.value.param) == (Code.BAD_REQUEST, f"template_args.{name}")


def test_without_tools_the_template_sees_none():
    assert render("{{ tools is none }}{{ 'x' if tools }}") == "True"


@given(JSON)
def test_json_is_written_as_python_writes_it(value):
    assert JSON_TEMPLATE.render(HELLO, [], {"value": value}) == json.dumps(value, ensure_ascii=False)


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
    assert message_for_template(Message(role="assistant", reasoning="hm", tool_calls=calls), "assistant") == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": "é"}}}
        ],
    }
    assert message_for_template(
        Message(role="tool", content="4", tool_call_id="call_1", name="f"), "tool"
    ) == {
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
    assert message_for_template(message, "assistant")["tool_calls"][0]["function"]["arguments"] == arguments


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
    assert list(turns([user, assistant])) == [
        Message(role="tool", content=[TextPart(text="4")], tool_call_id="1"),
        Message(role="user", content=[TextPart(text="so?")]),
        Message(role="assistant", content=[TextPart(text="a"), TextPart(text="b")], reasoning="hm"),
    ]


def test_an_image_is_refused_where_it_stands():
    with pytest.raises(CortexError) as raised:
        ChatTemplate.of("x", {}).render(
            [*HELLO, Message(role="user", content=[ImagePart(data=b"x")])], [], {}
        )
    assert (raised.value.code, raised.value.param) == (Code.NOT_SUPPORTED, "messages[1].content[0]")


def results(*parts):
    return [turn.content for turn in turns([Message(role="user", content=list(parts))])]


def test_an_image_that_a_tool_shows_does_not_end_the_conversation():
    shown = ToolResultPart(tool_call_id="1", content=[TextPart(text="a"), ImagePart(data=b"x")])
    [[text, note]] = results(shown)
    assert text == TextPart(text="a")
    assert "cannot see" in note.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no such file", "Error: no such file"),
        ("", "Error: "),
        ("Error: none", "Error: none"),
        ("<tool_use_error>none</tool_use_error>", "<tool_use_error>none</tool_use_error>"),
        ("ValueError: none", "ValueError: none"),
        ([], [TextPart(text="Error: ")]),
        ([TextPart(text="none")], [TextPart(text="Error: "), TextPart(text="none")]),
        ([TextPart(text="[error] none")], [TextPart(text="[error] none")]),
    ],
)
def test_a_call_that_failed_says_so(content, said):
    assert results(ToolResultPart(tool_call_id="1", content=content, is_error=True)) == [said]
    assert results(ToolResultPart(tool_call_id="1", content=content)) == [content]


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


def growing(start, step):
    """Doubles something 60 times."""
    begin = f"{{% set n = namespace(x={start}) %}}"
    return begin + f"{{% for i in range(60) %}}{{% set n.x = {step} %}}{{% endfor %}}"


MANY_LISTS = "{% set x, y = [1] * 2000 + [2], [1] * 2000 + [3] %}{% set l = [y] * 1000000 %}"

HOSTILE = {
    "turns": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "turns that are left out": (
        "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}"
    ),
    "text": "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'some' }} text{% endfor %}{% endfor %}",
    "text in a block": (
        "{% set x %}{% for i in range(99999) %}{% for j in range(99999) %}" + "x" * 999 + "{% endfor %}"
        "{% endfor %}{% endset %}"
    ),
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "joining": growing("'ab'", "n.x ~ n.x"),
    "adding": growing("'ab'", "n.x + n.x"),
    "adding lists": growing("[1]", "n.x + n.x"),
    "products": growing("9", "n.x * n.x"),
    "lists in lists": growing("[1]", "[n.x, n.x]") + "{{ n.x }}",
    "comparing": growing("[1]", "[n.x, n.x]")
    + "{% set a = n.x %}"
    + growing("[1]", "[n.x, n.x]")
    + "{{ n.x == a }}",
    "comparing objects": growing("1", "{'a': n.x, 'b': n.x}") + "{{ n.x == n.x.a }}",
    "comparing what `dict` makes": growing("1", "dict(a=n.x, b=n.x)") + "{{ n.x == n.x.a }}",
    "multiplying lists": growing("[1]", "[n.x] * 2") + "{{ n.x == n.x[0] }}",
    "comparing by a test": growing("[1]", "[n.x, n.x]") + "{{ n.x is eq(n.x[0]) }}",
    "sorting": growing("[1]", "[n.x, n.x]")
    + "{% set a = n.x %}"
    + growing("[1]", "[n.x, n.x]")
    + "{{ [a, n.x] | sort }}",
    "looking for": growing("[1]", "[n.x, n.x]")
    + "{% set a = n.x %}"
    + growing("[1]", "[n.x, n.x]")
    + "{{ n.x in [a] }}",
    "JSON": growing("[1]", "[n.x, n.x]") + "{{ n.x | tojson }}",
    "replacing": growing("'aa'", "n.x.replace('a', 'aa')"),
    "a filter that replaces": growing("'aa'", "n.x | replace('a', 'aa')"),
    "multiplying": "{{ 'ab' * 9999999999 }}",
    "powers": "{{ 10 ** (10 ** 10) }}",
    "joining lists": "{{ (('x' * 9999).join('y' * 99999)) | length }}",
    "joining by a filter": "{{ ('y' * 99999) | join('x' * 9999) | length }}",
    "indents": "{{ ('\n' * 9999999) | indent(999999) | length }}",
    "padding": "{{ 'a'.ljust(9999999999) }}",
    "a filter that pads": "{{ 'a' | center(9999999999) }}",
    "fields": "{{ '{:>9999999999}'.format(1) }}",
    "fields of old": "{{ '%9999999999d' % 1 }}",
    "fields of a width that is given": "{{ '%*d' % (9999999999, 1) }}",
    "fields with a name": "{{ '%(a)9999999999d' % {'a': 1} }}",
    "fields in fields": "{{ '{:{}}'.format(1, 9999999999) }}",
    "one value many times": "{{ ('{0}' * 99999).format('x' * 99999) }}",
    "nothing": "{{ lipsum(99999) }}",
    "slices": "{{ range(9) | slice(9999999999) | list }}",
    "tuples in tuples as a key": growing("(1,)", "(n.x, n.x)") + "{{ {n.x: 1} | length }}",
    "tuples in tuples as an index": growing("(1,)", "(n.x, n.x)") + "{{ {}[n.x] }}",
    "tuples in tuples as an attribute": growing("(1,)", "(n.x, n.x)")
    + "{{ [{}] | map(attribute=n.x) | list }}{{ [{}] | sort(attribute=n.x) }}",
    "tuples in tuples that are summed": growing("(1,)", "(n.x, n.x)") + "{{ [{}] | sum(attribute=n.x) }}",
    "tuples in tuples that are got": growing("(1,)", "(n.x, n.x)") + "{{ {}.get(n.x) }}",
    "tuples in tuples in `dict`": growing("(1,)", "(n.x, n.x)") + "{{ dict([(n.x, 1)]) | length }}",
    "tuples in tuples in `namespace`": growing("(1,)", "(n.x, n.x)") + "{% set m = namespace([(n.x, 1)]) %}",
    "tuples in tuples as keys": growing("(1,)", "(n.x, n.x)") + "{{ {}.fromkeys([n.x]) | length }}",
    "tuples in tuples of which some are the same": growing("(1,)", "(n.x, n.x)")
    + "{{ [n.x] | unique | list | length }}",
    "lists in what a namespace is written as": growing("[1]", "[n.x, n.x]") + "{{ n }}",
    "lists in what a filter is given": growing("[1]", "[n.x, n.x]") + "{{ n | upper }}",
    "lists that a filter hands to another": growing("[1]", "[n.x, n.x]")
    + "{% set a = n.x %}"
    + growing("[1]", "[n.x, n.x]")
    + "{{ [a, n.x] | batch(1) | sort }}",
    "lists in what values are written as": growing("[1]", "[n.x, n.x]") + "{{ {'a': n.x}.values() }}",
    "lists in an error": growing("[1]", "[n.x, n.x]") + "{{ raise_exception(n.x) }}",
    "lists that changed": growing("[1]", "[n.x, n.x]")
    + "{% set a = n.x %}"
    + growing("[1]", "[n.x, n.x]")
    + "{% set m = namespace(l=[a, n.x]) %}{% for i in m.l %}{{ loop.changed(i) }}{% endfor %}",
    "comparing items": growing("[1]", "[n.x, n.x]")
    + "{% set a = n.x %}"
    + growing("[1]", "[n.x, n.x]")
    + "{{ {'a': a}.items() == {'a': n.x}.items() }}",
    "looking for a list among many": MANY_LISTS + "{{ x in l }}",
    "looking for none of many lists": MANY_LISTS + "{{ x not in l and 1 in l }}",
    "looking for a list by a test": MANY_LISTS + "{{ x is in(l) }}",
    "where a list is": MANY_LISTS + "{{ l.index(x) }}",
    "how many lists there are": MANY_LISTS + "{{ l.count(x) }}",
    "looking for one of many texts": "{% set l = ['a' * 99999 ~ 'b'] * 999999 %}{{ 'a' * 99999 ~ 'c' in l }}",
    "a sum of many lists": "{{ ([[1] * 999] * 99999) | sum(start=[]) | length }}",
    "batches that are filled": "{{ [1] | batch(999999999, 0) | list | length }}",
    "letters": "{{ ('x' * 30000000) | list | length }}",
    "letters that are changed as they are taken": "{% set b = 'ab' * 1500000 %}"
    "{{ b | map('upper') | map('lower') | map('trim') | list | length }}",
    "words": "{{ ('a b ' * 8000000).split() | length }}",
    "words that are counted": "{{ ('a b ' * 8000000) | wordcount }}",
    "words in capitals": "{{ ('a b ' * 8000000) | title | length }}",
    "parts of a text": "{% set t = 'x' * 30000000 %}{% set n = namespace(l=[]) %}"
    "{% for i in range(9999) %}{% set n.l = n.l + [t[1:]] %}{% endfor %}",
    "a number of many digits": "{{ ('f' * 30000000) | int(base=16) // 3 }}",
    "numbers that grow": growing("9", "n.x + n.x").replace("60", "9999") + "{{ n.x // 3 }}",
    "numbers that grow by less": growing("9", "n.x - (0 - n.x)").replace("60", "9999") + "{{ n.x // 3 }}",
    "many lists": "{% set n = namespace(l=[]) %}"
    "{% for i in range(9999) %}{% set n.l = n.l + [[1] * 30000000] %}{% endfor %}",
    "bytes": "{{ (5).to_bytes(999999999, 'big') | length }}",
    "collecting": "{% set l = [] %}"
    "{% for i in range(9999) %}{% for j in range(99999) %}{% set _ = l.append(1) %}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_takes_too_much_is_stopped_and_its_file_named(name, monkeypatch):
    monkeypatch.setattr(template, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(template, "SECONDS", 0.1)
    Path("/proc/self/clear_refs").write_text("5")  # from now on the peak is that of what follows
    before = most_held()
    with pytest.raises(CortexError) as raised:
        ChatTemplate.of(HOSTILE[name], {}, "/models/hostile/chat_template.jinja").render(HELLO, [], {})
    assert raised.value.code in (Code.MODEL_LOAD_FAILED, Code.TEMPLATE_FAILED)
    if "takes too long" in raised.value.message:
        assert "/models/hostile/chat_template.jinja" in raised.value.message
    assert most_held() - before < 512 << 20


COLLECTED = {
    "copies of a list": "b.copy()",
    "copies of an object": "d.copy()",
    "objects of an object": "dict(d)",
    "objects of pairs": "dict(d.items())",
    "namespaces of an object": "namespace(d)",
    "objects of names": "dict(**names)",
    "objects of keys": "{}.fromkeys(b)",
    "a list that is handed over": "cycler(*b)",
    "a list that a macro is handed": "f(*b)",
    "lists that are written down": "[" + "1," * 50_000 + "i]",
    "objects that are written down": "{" + "".join(f"{number}:1," for number in range(50_000)) + "}",
}


@pytest.mark.parametrize("made", COLLECTED.values(), ids=COLLECTED.keys())
def test_what_is_made_of_lists_and_objects_counts_as_much_as_is_in_them(made):
    source = (
        "{% set b = range(50000) | list %}{% set d = {}.fromkeys(b) %}{% set l = [] %}"
        "{% set names = {}.fromkeys(b | map('string')) %}"
        "{% macro f() %}{% set _ = l.append(varargs) %}{% endmacro %}"
        "{% for i in range(200) %}{% set _ = l.append(" + made + ") %}{% endfor %}"
    )
    bounds = budget.Bounds(text=1 << 20, values=1 << 20)
    with pytest.raises(OverBudget, match=r"reads and writes more than 16,777,216"):
        sandbox.render(sandbox.load(sandbox.translate(source)), {}, 60.0, bounds)


def test_nothing_gives_a_template_work_back():
    source = "{{ [1] | tojson(indent=-10**15) }}{% set b = 'a' * 100000 ~ i %}"
    source = "{% for i in range(200) %}" + source + "{% endfor %}"
    bounds = budget.Bounds(text=1 << 20, values=1 << 20)
    with pytest.raises(OverBudget, match=r"reads and writes more than 16,777,216"):
        sandbox.render(sandbox.load(sandbox.translate(source)), {}, 60.0, bounds)
    assert render("{{ [1] | tojson(indent=-2) }}") == "[\n1\n]"


def test_a_budget_within_another_leaves_that_as_it_was():
    with budget.Budget(60.0, (), budget.Bounds(text=8, values=8)):
        with budget.Budget(60.0):
            budget.spend(9)
        with pytest.raises(OverBudget):
            budget.spend(9)
    budget.spend(9)


def test_lists_and_objects_are_made_and_taken_apart_as_ever():
    source = (
        "{% set a, b = [messages[0].role, 2], {'k': messages} %}"
        "{% for x, y in [(1, a), (2, 3)] %}{{ x }}{{ y }}{% endfor %}"
        "{{ (a + [3]) | length }}{{ b.k[0].content }}{{ dict(a=1).a }}{{ 2 in [1, 2] }}{{ a == ['user', 2] }}"
        "{{ [3, 1] | sort | first }}{{ 1 < 2 < 3 }}"
        "{{ messages | selectattr('role', 'eq', 'user') | list | length }}"
    )
    assert render(source) == "1['user', 2]233Hello1TrueTrue1True1"


def test_formats_that_are_not_wide_are_written():
    assert render("{{ '**{{}} {} 20244**'.format('a') }}") == "**{} a 20244**"
    assert render("{{ '* %s 20244 %d%%' % ('a', 5) }}") == "* a 20244 5%"


def test_a_template_that_loops_for_some_messages_alone_is_stopped_too(monkeypatch, caplog):
    monkeypatch.setattr(template, "SECONDS", 0.1)
    endless = HOSTILE["turns"]
    error = refusal("{% if messages[0].content == 'Hello' %}" + endless + "{% endif %}")
    assert (error.code, "takes too long" in error.message) == (Code.TEMPLATE_FAILED, True)
    assert "the model's folder" in caplog.text


def test_time_that_other_processes_take_counts_against_no_template(monkeypatch):
    hours = itertools.count(step=3600)
    monkeypatch.setattr(
        budget, "time", SimpleNamespace(monotonic=hours.__next__, thread_time=time.thread_time)
    )
    assert render("{% for i in range(99) %}{{ i % 2 }}{% endfor %}") == "01" * 49 + "0"


def test_after_a_template_was_stopped_the_next_is_not(monkeypatch):
    with pytest.raises(OverBudget):
        ChatTemplate.of("{% for m in messages %}{% endfor %}", {}).render(HELLO, [], {}, seconds=1e-9)
    assert render("{{ 'a' ~ 1 }}") == "a1"


PARTS = [TextPart(text="one"), TextPart(text="two")]
OF_PARTS = "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}"
OF_BOTH = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}"
)
OF_USERS = (
    "{% for m in messages %}{% if m.role == 'user' and m.content is not string %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
OF_TEXT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
OF_TEXT_ALONE = "{% for m in messages %}{{ '<' + m['content'] + '>' }}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "role", "content", "text"),
    [
        (OF_BOTH, "user", PARTS, "onetwo"),
        (OF_BOTH, "user", "one", "one"),
        (OF_PARTS, "user", PARTS, "[one][two]"),
        (OF_PARTS, "user", "one", "[one]"),
        (OF_USERS, "user", PARTS, "onetwo"),
        (OF_USERS, "system", PARTS, "one\ntwo"),
        (OF_TEXT, "tool", PARTS, "tool: one\ntwo\n"),
        (OF_TEXT_ALONE, "assistant", PARTS, "<one\ntwo>"),
    ],
)
def test_a_template_is_given_parts_where_it_reads_parts_and_text_where_it_reads_text(
    source, role, content, text
):
    assert render(source, [Message(role=role, content=content)]) == text


@pytest.mark.parametrize(
    ("source", "role"),
    [
        (OF_TEXT, "system"),
        (OF_TEXT + "{% if messages[0].role == 'developer' %}{% endif %}", "developer"),
        (
            "{% if messages[0].role == 'developer' %}{{ raise_exception('no') }}{% endif %}" + OF_TEXT,
            "system",
        ),
    ],
)
def test_a_developer_is_one_where_the_template_knows_that_role(source, role):
    assert render(source, [Message(role="developer", content="x")]) == f"{role}: x\n"


def test_large_json_is_written_without_holding_the_others_up():
    value = [{"a": number} for number in range(50_000)]
    assert render("{{ v | tojson }}", v=value) == json.dumps(value)


def test_a_text_that_is_no_template_is_told_when_it_is_loaded():
    with pytest.raises(CortexError, match="wrong in line 2") as raised:
        ChatTemplate.of("a\n{% if %}", {})
    assert raised.value.code == Code.MODEL_LOAD_FAILED
    with pytest.raises(CortexError, match="the chat template in the model's folder is wrong: "):
        ChatTemplate.of("{{" + "(" * 5000, {})


def test_what_is_looked_for_is_found_as_ever():
    source = (
        "{{ 'a' in 'cat' }}{{ 'a' not in ['b'] }}{{ messages[0] in messages }}{{ 1 in (1, 2) }}"
        "{{ 'role' in messages[0] }}{{ 'x' in nothing }}{{ 2 in {2: 1}.keys() }}{{ (1, 2) in {(1, 2): 1} }}"
        "{{ 1 < 2 in [2] }}{{ 'a' is in ['a'] }}{{ [1, 2].index(2) }}{{ {}.fromkeys([1], 2)[1] }}"
    )
    assert render(source) == "TrueTrueTrueTrueTrueFalseTrueTrueTrueTrue12"


def test_lists_can_be_collected_and_what_was_given_stays():
    assert render("{% set l = [] %}{% set _ = l.append(1) %}{{ l }}{{ l.pop() }}{{ l }}") == "[1]1[]"
    assert refusal("{{ messages.pop() }}").code == Code.TEMPLATE_FAILED


def test_filters_calculate_as_ever():
    source = (
        "{{ [1, 2] | sum }}{{ [[1], [2]] | sum(start=[]) }}{{ [{'a': 2}] | sum('a') }}{{ '12' | int }}"
        "{{ 'x' | int(7) }}{{ 'ff' | int(base=16) }}{{ [1, 1, 2] | unique | list }}{{ 'a b c' | wordcount }}"
        "{{ [1, 2, 3] | batch(2, 0) | list }}{{ 'a b'.split() }}{{ 'a,b'.split(',') }}{{ 7 // 2 - 1 }}"
    )
    assert render(source) == "3[1, 2]2127255[1, 2]3[[1, 2], [3, 0]]['a', 'b']['a', 'b']2"


@pytest.mark.parametrize(
    "source",
    [
        "{{ d.a }}{{ d.none is defined }}{{ d.none }}{{ d.items() | list }}{{ d.get('b', 3) }}",
        "{{ d['items'] is defined }}{{ d.keys is defined }}{{ d.__class__ is defined }}{{ d.none.a }}",
        "{% for i in [1, 2] %}{{ d.get('a') }}{{ 'a-b'.split('-') }}{{ 'x'.join(['1', '2']) }}{% endfor %}",
        "{% block one %}{{ d.copy() }}{{ 'ab'.upper() }}{{ d.values() | list }}{% endblock %}",
        "{{ d.fromkeys(['k'], 1) }}{{ 'a'.replace('a', 'b', 1) }}",
        "{{ d.update({'a': 2}) }}",
        "{{ d.pop('a') }}",
        "{{ d.setdefault('b', 1) }}",
        "{{ d.get() }}",
        "{{ 'a'.split(1) }}",
        "{{ d.a() }}",
        "{% set n = namespace(a='x', items=[1], c=d, f='{}'.format) %}{% set n.b = n.a %}"
        "{{ n.a ~ n.b ~ n.items }}"
        "{{ n.c.a }}{{ n.f(2) }}{{ n.keys is defined }}{{ n.none is defined }}{{ n.none }}",
        "{% set n = namespace(_a=1, __class__=2) %}"
        "{{ n._a is defined }}{{ n.__class__ is defined }}{{ n._a.b }}",
        "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ caller() if caller }}{{ kwargs }}{% endmacro %}{{ m(1, x=3) }}"
        "{% for i in [1, 2] %}{{ m(i) }}{% endfor %}{% call m(5) %}inner{% endcall %}",
        "{% macro m(a) %}{{ a }}{% endmacro %}{{ m() }}{{ m(1, 2) }}",
        "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=1) }}",
    ],
)
def test_objects_and_texts_are_read_as_in_jinjas_own_sandbox(source):
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    outcomes = []
    for attempt in (
        lambda: plain.render(d={"a": 1}),
        lambda: sandbox.render(sandbox.load(sandbox.translate(source)), {"d": {"a": 1}}, 10.0),
    ):
        try:
            outcomes.append(attempt())
        except Exception as error:
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]
