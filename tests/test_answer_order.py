"""The parts of an answer stand in the order in which they were written, streamed or not, in every dialect."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.anthropic import messages
from gateway.dialects.large import leaving
from gateway.dialects.openai import chat
from gateway.dialects.openai.responses import request as responses_request
from gateway.dialects.openai.responses.run import Run
from ipc.messages.conversation import Message, Tool
from ipc.messages.replies import Delta, Finished, Reply, Started
from ipc.messages.requests import Generate
from ipc.messages.sampling import Sampling
from ipc.worker_messages import Details, Logprobs, SequenceReport
from neuron.requests.generation import Generation
from neuron.text.formats.hermes import HermesParser
from neuron.text.formats.muse import MuseParser
from neuron.text.parser import AnswerParser
from neuron.text.reasoning import THINK, ReasoningSplitter
from tests import streams
from tests.gateway.parsing import parsed
from tests.gateway.scripted_exchange import Script
from tests.neuron.doubles import FrontEnd, Pieces, described

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
HERMES = ("<think>", "hm", "</think>", "so", " it", "\n", CALL, *(CALL[i : i + 19] for i in (0, 19, 38)), "a")
ATEM = (
    '<atem:function_calls>\n<atem:invoke name="add">\n<atem:parameter name="a">',
    "1</atem:parameter>\n</atem:invoke>\n</atem:function_calls>",
)
HEADS = ("<|start|>assistant to=self<|message|>", "<|start|>assistant to=user<|message|>")
MUSE = (*HEADS, "<|eom|>", "so", " it", "".join(ATEM), *ATEM)
SCRAPS = {"hermes": HERMES, "muse": MUSE}
ADD = Tool.function("add", parameters={"properties": {"a": {"type": "integer"}}})


class Scraps(FrontEnd):
    """A front end whose token n is the n-th scrap of a format."""

    def __init__(self, name: str) -> None:
        super().__init__(99)
        self._name = name

    def render(self, *given: Any, **more: Any) -> str:
        return "x"

    def encode(self, text: str, special: bool) -> list[int]:
        return [0]

    def fewest_tokens(self, characters: int) -> int:
        return 1

    def detokenizer(self, after: Any = ()) -> Any:
        return Pieces(SCRAPS[self._name])

    def spell(self, token_id: int) -> bytes:
        return SCRAPS[self._name][token_id].encode()

    def answer_parser(self, thought: str, request: Generate, tools: Any) -> AnswerParser:
        if self._name == "muse":
            return AnswerParser(tools=MuseParser([ADD]))
        return AnswerParser(ReasoningSplitter("possible", THINK), HermesParser([ADD]))


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, list[list[int]]]:
    """A format, and tokens of it, step by step."""
    name = draw(st.sampled_from(sorted(SCRAPS)))
    token = st.integers(0, len(SCRAPS[name]) - 1)
    return name, draw(st.lists(st.lists(token, min_size=1, max_size=4), min_size=1, max_size=8))


def replies(name: str, steps: list[list[int]], stream: bool) -> list[Reply]:
    """What a neuron says of an answer of these tokens."""
    said: list[Reply] = []
    asked = Generate(
        id=7,
        model="m",
        messages=[Message(role="user", content="x")],
        sampling=Sampling(logprobs=0),
        stream=stream,
    )
    generation = Generation(itertools.count(1), asked, said.append, lambda ended: None)
    generation.prepare(Scraps(name), described(eos_ids=[98]), 1000)
    generation.hand_over(1000)
    for number, ids in enumerate(steps):
        told = [Logprobs(token, -0.5, 1, []) for token in ids]
        finish = "length" if number == len(steps) - 1 else ""  # a call may be a half one
        generation.parts[0].advance(SequenceReport(1, ids, finish, Details(logprobs=told)))
    assert isinstance(said[-1], Finished)
    return said


def without_ids(value: Any) -> Any:
    """The same without what is drawn for each answer anew."""
    if isinstance(value, dict):
        return {key: without_ids(each) for key, each in value.items() if key not in ("id", "call_id")}
    return [without_ids(each) for each in value] if isinstance(value, list) else value


USER = {"role": "user", "content": "x"}
STARTED = Started(id=7, prompt_tokens=1)


@given(answers(), st.sampled_from([None, "summarized", "omitted"]))
def test_blocks_of_messages(answer: tuple[str, list[list[int]]], display: str | None) -> None:
    body: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [USER]}
    if display is not None:
        body["thinking"] = {"type": "adaptive", "display": display}

    def writer() -> Any:
        return parsed(messages.parse, json.dumps(body).encode())[1]

    *deltas, finished = replies(*answer, stream=True)[1:]
    stream = writer()
    pieces = [stream.started(STARTED), *map(stream.delta, deltas), stream.finished(finished)]
    streamed = streams.anthropic(b"".join(pieces))["content"]
    whole = json.loads(writer().whole(STARTED, replies(*answer, stream=False)[-1]))["content"]
    assert without_ids(whole) == without_ids(streamed)


def items(answer: tuple[str, list[list[int]]], stream: bool, **more: Any) -> list[dict[str, Any]]:
    """The items of a response, without their ids."""
    tools = [{"type": "function", "name": "add"}]
    body = json.dumps({"model": "m", "input": "x", "tools": tools, "stream": stream} | more).encode()
    creation = parsed(lambda body, asker: responses_request.read(body, asker, None), body)
    run = Run(None, Script(replies(*answer, stream)), creation)

    async def streamed() -> bytes:
        return b"".join([data async for data in leaving(run.events())])

    response = streams.responses(asyncio.run(streamed())) if stream else json.loads(asyncio.run(run.whole()))
    return without_ids(response["output"])


@given(answers())
def test_items_of_responses(answer: tuple[str, list[list[int]]]) -> None:
    assert items(answer, stream=False) == items(answer, stream=True)


@pytest.mark.parametrize("stream", [False, True])
def test_each_text_of_a_response_has_its_own_tokens(stream: bool) -> None:
    answer = "hermes", [[0], [1], [2], [3], [4], [6], [4], [4]]  # hm; so it, a call, it it
    said = items(answer, stream, include=["message.output_text.logprobs"])
    parts = [part for item in said if item["type"] == "message" for part in item["content"]]
    tokens = [[entry["token"] for entry in part["logprobs"]] for part in parts]
    assert [part["text"] for part in parts] == ["so it", "it it"]
    assert tokens == [["so", " it"], [" it", " it"]]


@pytest.mark.parametrize("stream", [False, True])
def test_text_that_a_call_repeats_has_its_own_tokens(stream: bool) -> None:
    [said, _] = items(("hermes", [[10], [6]]), stream, include=["message.output_text.logprobs"])
    assert [entry["token"] for entry in said["content"][0]["logprobs"]] == ["a"]


@given(answers())
def test_messages_of_chats(answer: tuple[str, list[list[int]]]) -> None:
    def writer() -> Any:
        return parsed(chat.parse, json.dumps({"model": "m", "messages": [USER]}).encode())[1]

    *deltas, finished = replies(*answer, stream=True)[1:]
    stream = writer()
    pieces = [stream.started(STARTED), *map(stream.delta, deltas), stream.finished(finished)]
    [streamed] = streams.chat(b"".join(pieces))["choices"]
    [whole] = json.loads(writer().whole(STARTED, replies(*answer, stream=False)[-1]))["choices"]
    assert without_ids(streamed["message"]).items() <= without_ids(whole["message"]).items()
    assert streamed["finish_reason"] == whole["finish_reason"]


def test_text_behind_a_call_stands_behind_it() -> None:
    steps = [[3], [6], [4]]  # so, a call, it
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": [USER]}).encode()
    writer = parsed(messages.parse, body)[1]
    content = json.loads(writer.whole(STARTED, replies("hermes", steps, stream=False)[-1]))["content"]
    assert [block["type"] for block in content] == ["text", "tool_use", "text"]
    assert [block.get("text") for block in content] == ["so", None, "it"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_one_step_brings_keeps_its_order(stream: bool) -> None:
    said = replies("hermes", [[0, 1, 2, 3, 6, 4, 6]], stream)
    if not stream:
        [choice] = said[-1].choices
        kinds = [span.kind for span in choice.spans]
    else:
        kinds = []
        for delta in said:
            if isinstance(delta, Delta):
                kinds += ["reasoning"] * bool(delta.reasoning) + ["text"] * bool(delta.text)
                kinds += ["call" for call in delta.tool_calls if call.call_id is not None]
    assert kinds == ["reasoning", "text", "call", "text", "call"]
