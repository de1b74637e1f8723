"""Log-probabilities and vectors that come in pieces: what is written of them is what is written of a whole
answer."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.dialects import Renderer
from gateway.dialects.openai import chat, completions
from gateway.dialects.parts import parts
from gateway.fleet.exchange import Exchange
from gateway.fleet.pieces import Entries, Pieces
from ipc.errors import Code, CortexError
from ipc.messages.answers import Choice, Span, Timings, TokenLogprob, Usage
from ipc.messages.replies import Embeddings, Failed, Finished, LogprobPiece, Started, VectorPiece
from ipc.messages.requests import AnyRequest, Embed, Generate
from ipc.messages.sampling import Sampling
from ipc.server import Peer
from tests.gateway.fake_neuron import FakeNeuron
from tests.gateway.fleets import fleet_of, run
from tests.gateway.parsing import USER, parsed


def entries(count: int, first: int = 0) -> list[TokenLogprob]:
    return [
        TokenLogprob(token_id=number, token=f"<{number}>", raw=b"<%d>" % number, logprob=-1.0 - number)
        for number in range(first, first + count)
    ]


def piece(told: list[TokenLogprob], **fields: Any) -> LogprobPiece:
    encoded = msgspec.Raw(msgspec.msgpack.encode(told))
    return LogprobPiece(id=1, entries=encoded, tokens=len(told), **fields)


def finished(of_choices: list[list[TokenLogprob]], of_prompts: list[list[TokenLogprob]] | None) -> Finished:
    choices = [
        Choice(
            reason="stop",
            index=index,
            text="ab",
            reasoning="c",
            logprobs=told,
            spans=[Span(kind="text", length=2, tokens=2), Span(kind="reasoning", length=1, tokens=3)],
        )
        for index, told in enumerate(of_choices)
    ]
    return Finished(id=1, choices=choices, usage=Usage(), timings=Timings(), prompt_logprobs=of_prompts)


def both() -> tuple[Finished, Finished]:
    """An answer of two choices to each of two prompts: in one, and joined of pieces."""
    choices = [entries(5, 10 * index) for index in range(4)]
    prompts = [entries(4, 100), entries(3, 200)]
    pieces = Pieces()
    for index in (2, 0):
        pieces.take(piece(choices[index][:2], index=index))
    for index, told in enumerate(prompts):
        pieces.take(piece(told[:1], index=index, of_prompt=True))
        pieces.take(piece(told[1:2], index=index, of_prompt=True))
    pieces.take(piece(choices[0][2:4], index=0))
    rest = [choices[0][4:], choices[1], choices[2][2:], choices[3]]
    joined = pieces.join(finished(rest, [told[2:] for told in prompts]))
    return finished(choices, prompts), joined


CHAT = {"messages": [USER], "n": 4, "logprobs": True, "top_logprobs": 1, "prompt_logprobs": 1}
COMPLETION = {"prompt": ["a", "b"], "n": 2, "logprobs": 1, "prompt_logprobs": 1}


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [(chat, CHAT), (completions, COMPLETION), (completions, COMPLETION | {"echo": True})],
)
def test_an_answer_of_pieces_is_written_as_one_in_one(dialect: Any, fields: dict[str, Any]) -> None:
    def written(answer: Finished) -> Any:
        renderer: Renderer = parsed(dialect.parse, json.dumps({"model": "m"} | fields).encode())[1]
        said = json.loads(renderer.whole(Started(id=1, prompt_tokens=1), answer))
        return {name: value for name, value in said.items() if name not in ("id", "created")}

    whole, joined = both()
    assert written(joined) == written(whole)
    assert "<203>" not in json.dumps(written(joined))
    assert "<4>" in json.dumps(written(joined))


def test_parts_of_an_answer_have_the_same_tokens() -> None:
    for whole, joined in zip(*(answer.choices for answer in both()), strict=True):
        assert list(parts(joined)) == list(parts(whole))


def test_entries_are_counted_unread_and_read_again_each_time() -> None:
    told = Entries([piece(entries(2)), piece(entries(1, 2))], entries(1, 3))
    assert len(told) == 4
    assert list(told) == list(told) == entries(4)


class Telling(FakeNeuron):
    """Sends a piece of one token, whose id is its own, and then fails or finishes.

    Args:
        code: of the failure.
    """

    def __init__(self, number: int, code: str = "") -> None:
        super().__init__()
        self._number, self._code = number, code

    def _on_request(self, peer: Peer, request: AnyRequest) -> None:
        if not isinstance(request, Generate):
            super()._on_request(peer, request)
            return
        self.served.append(request)
        told = piece(entries(1, self._number))
        told.id = request.id
        peer.send(told)
        if self._code:
            peer.send(Failed.of(request.id, CortexError(self._code, "no more")))
        else:
            answer = finished([entries(1, self._number + 1)], None)
            answer.id = request.id
            peer.send(answer)


def test_pieces_of_a_neuron_that_was_given_up_are_forgotten() -> None:
    async def scenario() -> None:
        first, second = Telling(10, Code.SHUTTING_DOWN), Telling(20)
        async with fleet_of(first, second) as fleet:
            for _ in range(2):  # the one that is asked first may be either
                exchange = Exchange(fleet, "r")
                request = Generate(id=0, model="echo", messages=[], sampling=Sampling(logprobs=0))
                await exchange.send(request)
                [choice] = (await exchange.whole()).choices
                assert [entry.token_id for entry in choice.logprobs] == [20, 21]
                exchange.close()
            assert all(request.in_pieces for request in second.served)

    run(scenario)


class Embedder(FakeNeuron):
    """Tells vectors in pieces, the last ones first, where it is asked to."""

    def _on_request(self, peer: Peer, request: AnyRequest) -> None:
        if not isinstance(request, Embed):
            super()._on_request(peer, request)
            return
        self.served.append(request)
        vectors = [bytes([number] * 4) for number in range(5)]
        for numbers in ([3, 4], [0, 2], [1]):
            told = [vectors[number] for number in numbers]
            peer.send(VectorPiece(id=request.id, numbers=numbers, vectors=told))
        peer.send(Embeddings(id=request.id, vectors=[], prompt_tokens=9))


def test_vectors_are_in_the_order_of_their_inputs_however_they_came() -> None:
    async def scenario() -> None:
        neuron = Embedder()
        async with fleet_of(neuron) as fleet:
            exchange = Exchange(fleet, "r")
            await exchange.send(Embed(id=0, model="echo", input=["a"] * 5))
            reply = await exchange.one()
            assert reply.vectors == [bytes([number] * 4) for number in range(5)]
            assert reply.prompt_tokens == 9
            assert neuron.served[0].in_pieces
            exchange.close()

    run(scenario)
