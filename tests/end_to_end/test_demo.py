"""The demo model through the whole system: what the README says it can do, it does."""

import json

import pytest

from tests.end_to_end.demo_questions import QUESTIONS, WEATHER


def raw(message: dict) -> str:
    """The text that the model wrote, put together again from the parts that the API tells apart."""
    parts = []
    if message.get("reasoning"):
        parts.append(f"<think>\n{message['reasoning'].strip()}\n</think>\n\n")
    parts.append((message.get("content") or "").strip())
    for call in message.get("tool_calls") or []:
        name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
        parts.append(f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>")
    return "".join(parts)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_the_demo_model_answers(cortex, question):
    body = {
        "model": "demo",
        "messages": question.messages,
        "temperature": 0,
        "chat_template_kwargs": {"enable_thinking": question.enable_thinking},
    }
    if question.tools:
        body["tools"] = question.tools
    response = cortex.post("/v1/chat/completions", **body)
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    assert question.accepts(raw(choice["message"])), choice


def test_a_tool_is_called_and_its_answer_used(cortex):
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    body = {"model": "demo", "messages": messages, "tools": [WEATHER], "temperature": 0}
    choice = cortex.post("/v1/chat/completions", **body).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    call = choice["message"]["tool_calls"][0]
    messages += [
        choice["message"],
        {"role": "tool", "tool_call_id": call["id"], "content": '{"temperature": 21, "unit": "C"}'},
    ]
    choice = cortex.post("/v1/chat/completions", **body).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert "21" in choice["message"]["content"]
