"""A scripted checkpoint says what its script has, to the byte and to the token, through the whole system."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import pytest

from tests import streams
from tests.end_to_end.harness import Cortex
from tests.scripted import ScriptedModel, call, cut

CUT = ["It ", "is ", "is ", "the", " the", "\n", "21 ", "°C", ".", ".", " <think", ">"]
TEXT = 'naïve Ελληνικά 你好 שלום 👩‍👩‍👧 \u0000\u0007\u2028\ufeff\r\n\t \\ " {}[] </s> <|x|> 🇩🇪 e\u0301'
BYTES = [TEXT.encode()[i : i + 1] for i in range(len(TEXT.encode()))]
LONG = [f"{number} words, " for number in range(2000)]
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cortex]:
    folder = tmp_path_factory.mktemp("scripted")
    model = ScriptedModel()
    model.answer(CUT, when="last == 'cut'")
    model.answer(BYTES, when="last == 'bytes'")
    model.answer(LONG, when="last == 'long'")
    model.answer("So.", when="last == 'think' and not thinks")
    model.answer("<think>\nHm, hm.\n</think>\n\nSo.", when="last == 'think'")
    model.answer("<think>\nHm.\n</think>\n\nSo.", when="last == 'opened'", opened=True)
    model.answer("I look." + call("get_weather", city="Paris"), when="calls == 0 and 'get_weather' in names")
    model.answer("It is 21 °C.", when="calls == 1")
    model.answer(["on ", "and "], endless=True)
    model.completion(["and ", "so ", "on"])
    with Cortex(folder, "--model", str(model.write(folder / "scripted"))) as system:
        yield system


def ask(system: Cortex, content: str, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed answer."""
    body = {"max_tokens": 10_000, "stream": True, "stream_options": {"include_usage": True}} | fields
    response = system.chat(content, model="scripted", **body)
    assert response.status_code == 200, response.text
    streams.chat(response.content, usage=True)
    return [event.data for event in streams.read(response.content)[:-1]]


def texts(chunks: list[dict[str, Any]]) -> list[str]:
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return [delta["content"] for delta in deltas if delta.get("content")]


def are_cut_as(told: Sequence[str], pieces: Sequence[str]) -> bool:
    """Whether `told` is the same text, and its cuts are among those of `pieces`: a busy host joins some."""
    places = [0, *accumulate(map(len, pieces))]
    return "".join(told) == "".join(pieces) and set(accumulate(map(len, told))) <= set(places)


def test_pieces_come_as_they_were_cut(scripted: Cortex) -> None:
    assert are_cut_as(texts(ask(scripted, "cut")), CUT)


def test_no_setting_of_the_sampler_makes_a_difference(scripted: Cortex) -> None:
    wild = {"temperature": 2, "seed": 3, "presence_penalty": 2, "frequency_penalty": 2}
    assert are_cut_as(texts(ask(scripted, "cut", **wild)), CUT)


def test_any_text_can_be_said_byte_by_byte(scripted: Cortex) -> None:
    assert are_cut_as(texts(ask(scripted, "bytes")), TEXT)


def test_a_long_answer_is_whole(scripted: Cortex) -> None:
    chunks = ask(scripted, "long")
    assert are_cut_as(texts(chunks), LONG)
    assert chunks[-1]["usage"]["completion_tokens"] == len(LONG) + 1


@pytest.mark.parametrize(("question", "thought"), [("think", "Hm, hm."), ("opened", "Hm.")])
def test_thoughts_can_be_written(scripted: Cortex, question: str, thought: str) -> None:
    message = scripted.chat(question, model="scripted", max_tokens=99).json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == (thought, "So.")


def test_an_answer_may_do_without_a_thought_where_none_is_wanted(scripted: Cortex) -> None:
    answer = scripted.chat("think", model="scripted", max_tokens=99, enable_thinking=False).json()
    message = answer["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == (None, "So.")


def test_the_conversation_decides_what_is_said(scripted: Cortex) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Paris?"}]
    body = {"model": "scripted", "tools": [WEATHER], "messages": messages}
    choice = scripted.post("/v1/chat/completions", **body).json()["choices"][0]
    (made,) = choice["message"]["tool_calls"]
    assert json.loads(made["function"]["arguments"]) == {"city": "Paris"}
    messages += [choice["message"], {"role": "tool", "tool_call_id": made["id"], "content": "21"}]
    choice = scripted.post("/v1/chat/completions", **body).json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", "It is 21 °C.")


def test_an_answer_need_not_end(scripted: Cortex) -> None:
    chunks = ask(scripted, "anything", max_tokens=301)
    assert "".join(texts(chunks)).startswith("on and on and on and ")
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"


def test_a_prompt_without_a_conversation_is_completed(scripted: Cortex) -> None:
    answer = scripted.post("/v1/completions", model="scripted", prompt="And so", max_tokens=99).json()
    assert answer["choices"][0]["text"] == "and so on"


def test_text_is_cut_between_tags() -> None:
    assert cut("<think>abcdefg</think>x", 3) == ["<think>", "abc", "def", "g", "</think>", "x"]
