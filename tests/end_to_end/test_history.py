"""A conversation with a turn that its template cannot walk is answered all the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.end_to_end.harness import Cortex
from tests.scripted import ScriptedModel

STRICT = """\
{%- set turn = namespace(user=true) %}
{%- for message in messages %}
    {%- if message.role == 'system' and not loop.first %}
        {{- raise_exception('System message must be at the beginning.') }}
    {%- elif message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
        {%- if (message.role == 'user') != turn.user %}
            {{- raise_exception('Roles must alternate.') }}
        {%- endif %}
        {%- set turn.user = not turn.user %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content }}
    {%- for call in message.tool_calls or [] %}
        {%- if call.id | length != 9 %}{{ raise_exception('An id has 9 letters.') }}{% endif %}
        {{- '<tool_call>' + call.function.name }}
        {%- for name, value in call.function.arguments | items %} {{ name }}={{ value }}{% endfor %}
        {{- '</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if messages[0].content == 'poem' %}{{ raise_exception('No poems.') }}{% endif %}
{{- '<|im_start|>assistant\\n' }}"""


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cortex]:
    folder = tmp_path_factory.mktemp("strict")
    model = ScriptedModel(template=STRICT)
    model.answer("Good.")
    with Cortex(folder, "--model", str(model.write(folder / "scripted"))) as system:
        yield system


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def call(arguments: str) -> dict[str, Any]:
    function = {"name": "read", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_0123456789abcdef", "type": "function", "function": function}],
    }


RESULT = {"role": "tool", "tool_call_id": "call_0123456789abcdef", "content": "a result"}


@pytest.mark.parametrize(
    "messages",
    [
        [user("a"), call('{"path": "a.py"}'), RESULT],
        [user("a"), call('{"path": "a.p'), RESULT, user("b")],
        [user("a"), call("no JSON at all"), RESULT],
        [user("a"), call("{}"), user("never mind")],
        [user("a"), RESULT],
        [user("a"), {"role": "system", "content": "b"}, user("c")],
        [user("a"), call("{}"), RESULT, {"role": "developer", "content": "b"}],
        [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, user("c")],
        [{"role": "assistant", "content": "a"}, user("b")],
        [{"role": "system", "content": "a"}],
    ],
)
def test_one_bad_turn_does_not_end_a_session(strict: Cortex, messages: list[dict[str, Any]]) -> None:
    response = strict.post("/v1/chat/completions", model="scripted", messages=messages, max_tokens=20)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == "Good."


def test_the_same_is_true_of_anthropics_messages(strict: Cortex) -> None:
    use = {"type": "tool_use", "id": "toolu_0123456789abcdef", "name": "read", "input": {"path": "a.py"}}
    result = {"type": "tool_result", "tool_use_id": use["id"], "content": "a result"}
    messages = [
        user("a"),
        {"role": "assistant", "content": [{"type": "text", "text": "I read."}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "and now?"}]},
    ]
    for turns in (messages, [*messages, {"role": "system", "content": "Be brief."}]):
        response = strict.post("/v1/messages", model="scripted", messages=turns, max_tokens=20)
        assert response.status_code == 200, response.text
        assert [block.get("text") for block in response.json()["content"]] == ["Good."]


def test_what_a_template_refuses_for_good_is_said_in_its_words(strict: Cortex) -> None:
    response = strict.post("/v1/chat/completions", model="scripted", messages=[user("poem")])
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["code"] == "template_failed"
    assert "No poems." in error["message"]
    assert "scripted" in error["message"]
