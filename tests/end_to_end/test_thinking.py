"""How much a model thinks is what the request says, through the whole system."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests import streams
from tests.end_to_end.harness import Cortex

SUM = "How much is 46 plus 27?"
SCHEMA = {
    "type": "object",
    "properties": {"so": {"type": "boolean"}},
    "required": ["so"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


def think(cortex: Cortex, **fields: Any) -> list[tuple[str, str, int]]:
    """Thought and content of each choice, and the tokens of all thoughts."""
    fields = {"temperature": 0, "max_tokens": 200, "enable_thinking": True} | fields
    response = cortex.chat(SUM, model="demo", **fields)
    assert response.status_code == 200, response.text
    answer = response.json()
    tokens = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    messages = [choice["message"] for choice in answer["choices"]]
    return [(message["reasoning_content"] or "", message["content"], tokens) for message in messages]


def test_without_a_budget_a_thought_is_as_long_as_it_is(cortex: Cortex) -> None:
    [(thought, content, tokens)] = think(cortex)
    assert "60" in thought
    assert "73" in content
    assert tokens > 10


@pytest.mark.parametrize("budget", [0, 5, 1000])
@pytest.mark.parametrize("form", [None, FORM], ids=["free", "schema"])
def test_a_thought_has_as_many_tokens_as_its_budget(
    cortex: Cortex, budget: int, form: dict[str, Any] | None
) -> None:
    [(whole, answer, most)] = think(cortex, response_format=form)
    [(thought, content, tokens)] = think(cortex, response_format=form, thinking_budget=budget)
    assert whole.startswith(thought)
    if budget > most:
        assert (thought, content, tokens) == (whole, answer, most)
    else:
        assert budget <= tokens <= budget + 1  # with the tag that ends it
        assert len(thought) < len(whole)
    assert content
    assert "think>" not in content
    if form is not None:
        assert json.loads(content)["so"] in (True, False)


def test_each_choice_has_the_budget_for_itself(cortex: Cortex) -> None:
    [(alone, content, _)] = think(cortex, thinking_budget=5)
    assert [each[:2] for each in think(cortex, thinking_budget=5, n=2)] == [(alone, content)] * 2


def test_a_budget_holds_in_a_stream(cortex: Cortex) -> None:
    [(thought, content, tokens)] = think(cortex, thinking_budget=5)
    body = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 200, "temperature": 0}
    response = cortex.chat(SUM, model="demo", enable_thinking=True, thinking_budget=5, **body)
    streams.chat(response.content, usage=True)
    chunks = [event.data for event in streams.read(response.content)[:-1]]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == thought
    assert "".join(delta.get("content") or "" for delta in deltas) == content
    assert chunks[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] == tokens


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_effort": "none"},
        {"enable_thinking": False},
        {"thinking_budget": 0},
        {"thinking": {"type": "disabled"}},
    ],
)
def test_a_model_does_not_think_where_nobody_wants_it(cortex: Cortex, fields: dict[str, Any]) -> None:
    response = cortex.chat(SUM + " Think step by step.", model="demo", temperature=0, max_tokens=50, **fields)
    message = response.json()["choices"][0]["message"]
    assert not message["reasoning_content"]
    assert message["content"]


def test_a_model_without_thoughts_has_no_use_for_a_budget(cortex: Cortex) -> None:
    plain = cortex.chat(model="simulated").json()["choices"][0]["message"]
    assert cortex.chat(model="simulated", thinking_budget=1).json()["choices"][0]["message"] == plain
