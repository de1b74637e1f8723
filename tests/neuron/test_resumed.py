"""An answer that began on another neuron goes on, wherever it was cut, as if it had not been."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from ipc.errors import Code, CortexError
from ipc.messages.conversation import Message, Tool
from ipc.messages.replies import Delta, Failed, Finished
from ipc.messages.requests import Generate
from ipc.messages.sampling import Sampling
from ipc.worker_messages import SequenceReport
from neuron.catalogue.catalogue import DEMO_FOLDER
from neuron.config import ModelSettings
from neuron.description import describe
from neuron.preparation.prepared import prepare
from neuron.requests.generation import Generation
from neuron.text.frontend import TextFrontEnd
from workers.checkpoints.reading import read_card

TOOL = Tool.function("add", parameters={"type": "object", "properties": {"a": {"type": "integer"}}})
CALLS = (
    "<think>\nFirst a thought — with a dash.\n</think>\n\nI shall add. "
    '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
    '<tool_call>\n{"name": "add", "arguments": {"a": 22}}\n</tool_call>'
)


@pytest.fixture(scope="module")
def model() -> tuple[TextFrontEnd, Any]:
    card = read_card(DEMO_FOLDER)
    return TextFrontEnd.load(card), describe(ModelSettings(id="demo"), DEMO_FOLDER)


def run(model: tuple[TextFrontEnd, Any], reports: list[list[int]], finish: str, **fields: Any) -> Generation:
    """A streamed answer of these reports; what came of it is its `replies`."""
    text, description = model
    values = {"messages": [Message(role="user", content="?")], "stream": True, "resumable": True} | fields
    replies: list[Any] = []
    request = Generate(id=7, model="demo", **values)
    generation = Generation(itertools.count(1), request, replies.append, lambda ended: None)
    generation.prepare(text, description, 512)
    parts = list(generation.hand_over(512))
    for number, token_ids in enumerate(reports):
        if parts:
            last = finish if number == len(reports) - 1 else ""
            parts[0].advance(SequenceReport(1, list(token_ids), last))
    generation.replies = replies
    return generation


def told(generation: Generation) -> dict[str, Any]:
    deltas = [reply for reply in generation.replies if isinstance(reply, Delta)]
    calls = [call for delta in deltas for call in delta.tool_calls]
    end = generation.replies[-1]
    assert isinstance(end, Finished), end
    return {
        "text": "".join(delta.text for delta in deltas),
        "reasoning": "".join(delta.reasoning for delta in deltas),
        "names": [call.name for call in calls if call.name],
        "arguments": "".join(call.arguments for call in calls),
        "tokens": [token for delta in deltas for token in delta.token_ids],
        "counted": sum(delta.tokens for delta in deltas),
        "end": (end.choices[0].reason, end.choices[0].stop_sequence),
        "usage": end.usage,
    }


@pytest.mark.parametrize(
    ("said", "finish", "fields"),
    [
        (CALLS, "stop", {"tools": [TOOL]}),
        ("Grüße, 世界 🙂! And so on.", "length", {"sampling": Sampling(max_tokens=127)}),
        ("One, two, three, four.", "stop", {"sampling": Sampling(stop=["three", "never"])}),
        ("A text that is no chat", "stop", {"messages": None, "prompt": "Say: ", "echo": True}),
    ],
)
def test_what_is_told_is_the_same_wherever_it_was_cut(model, said: str, finish: str, fields: dict) -> None:
    text, description = model
    token_ids = list(text.encode(said, special=True))
    if finish == "stop":
        token_ids.append(description.eos_ids[0])
    whole = told(run(model, [[token] for token in token_ids], finish, **fields))
    token_ids = whole["tokens"]  # a stop string may have ended it
    assert whole["text"] or whole["names"]
    for cut in range(1, len(token_ids)):
        rest = [[token] for token in token_ids[cut:]]
        resumed = run(model, rest, finish, written=[token_ids[:cut]], **fields)
        assert told(resumed) == whole, cut
        assert memoryview(resumed.parts[0].submit.output).cast("I").tolist() == token_ids[:cut]


def test_what_turns_out_to_be_all_goes_to_no_worker(model) -> None:
    text, description = model
    hello = list(text.encode("Hello there", special=False))
    for written, fields, end in (
        ([*hello, description.eos_ids[0]], {}, ("stop", None)),
        (hello, {"sampling": Sampling(max_tokens=len(hello))}, ("length", None)),
        (hello, {"sampling": Sampling(stop=["there"])}, ("stop", "there")),
    ):
        generation = run(model, [], "", written=[written], **fields)
        assert told(generation)["end"] == end
        assert generation.outcome == "finished"


def test_choices_that_are_done_are_not_begun_again(model) -> None:
    text, description = model
    hello = list(text.encode("Hello", special=False))
    written = [[*hello, description.eos_ids[0]], hello, []]
    generation = run(model, [], "", written=written, sampling=Sampling(n=3, max_tokens=50))
    assert generation.outcome is None
    assert [answer.reason for answer in generation.parts] == ["stop", None, None]
    assert [bool(answer.submit.output) for answer in generation.parts] == [True, True, False]


def test_choices_that_ended_elsewhere_are_all_told(model) -> None:
    text, _ = model
    hello = list(text.encode("Hello there", special=False)) * 2
    values = {"messages": None, "prompt": "Say: ", "sampling": Sampling(n=2, max_tokens=50, stop=["there"])}
    for streamed in (True, False):
        generation = run(model, [], "", written=[hello, hello], stream=streamed, **values)
        texts = [choice.text for choice in generation.replies[-1].choices]
        for delta in generation.replies[:-1]:
            if isinstance(delta, Delta):
                texts[delta.index] += delta.text
        assert texts == ["Hello ", "Hello "]


def test_a_long_answer_is_read_step_by_step_and_told_at_once(model) -> None:
    text, description = model
    words = list(text.encode("A word and another. ", special=False))
    for fields in ({}, {"sampling": Sampling(stop=["never"])}, {"tools": [TOOL]}):
        values = {"messages": [Message(role="user", content="?")], "stream": True} | fields
        replies: list[Any] = []
        written = (words * 1000)[:5000]
        request = Generate(id=7, model="demo", written=[written], **values)
        generation = Generation(itertools.count(1), request, replies.append, lambda ended: None)
        prepared = prepare(request, text, description, 10_000)
        generation.accept(prepared, text, description)
        steps = sum(1 for _ in generation.recall())
        assert steps >= 5
        assert not replies
        (answer,) = generation.hand_over(10_000)
        assert answer.completion_tokens == 5000
        _, delta = replies
        said = text.decode(written)
        assert said.startswith(delta.text)
        assert len(said) - len(delta.text) <= len("never")
        assert delta.tokens == 5000


def test_a_request_that_is_cancelled_while_it_is_read_is_read_no_further(model) -> None:
    text, description = model
    request = Generate(id=7, model="demo", prompt="a", written=[[300] * 5000])
    generation = Generation(itertools.count(1), request, lambda reply: None, lambda ended: None)
    generation.accept(prepare(request, text, description, 10_000), text, description)
    steps = generation.recall()
    next(steps)
    generation.cancel()
    assert list(steps) == []
    assert generation.parts[0].completion_tokens < 5000


@pytest.mark.parametrize("written", [[[1], [2]], [[-1]], [[1 << 40]], [[1 << 20]]])
def test_what_cannot_have_been_written_is_refused_by_name(model, written: list[list[int]]) -> None:
    with pytest.raises(CortexError) as caught:
        run(model, [], "", written=written)
    assert caught.value.code == Code.BAD_REQUEST
    assert "written" in caught.value.message
    assert Failed.of(1, caught.value).param.startswith("written")
