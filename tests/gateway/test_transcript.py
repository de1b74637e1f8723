"""What a client has had of a stream, while another neuron tells it again from its beginning."""

from __future__ import annotations

import itertools

import pytest

from gateway.fleet.transcript import Transcript
from ipc.errors import CortexError
from ipc.messages.answers import ToolCallDelta
from ipc.messages.replies import Delta
from ipc.messages.requests import MAX_WRITTEN

# An answer as a neuron makes it of seven tokens, with text that lags behind them.
CALL = [ToolCallDelta(index=0, call_id="c1", name="f"), ToolCallDelta(index=0, arguments='{"a":')]
ANSWER = [
    {"tokens": 1, "token_ids": [1], "reasoning": "h"},
    {"tokens": 1, "token_ids": [2], "reasoning": "m"},
    {"tokens": 2, "token_ids": [3, 4]},
    {"tokens": 1, "token_ids": [5], "text": "so "},
    {"tokens": 1, "token_ids": [6], "tool_calls": CALL},
    {"tokens": 1, "token_ids": [7], "tool_calls": [ToolCallDelta(index=0, arguments="1}")]},
]


def delta(**fields) -> Delta:
    return Delta(id=1, **fields)


def told_again(token_ids: list[int]) -> list[Delta]:
    """The deltas so far as one, with an id of its own for the call."""
    if not token_ids:
        return []
    text = "so " if 5 in token_ids else ""
    reasoning = "hm"[: len({1, 2} & set(token_ids))]
    calls = []
    if 6 in token_ids:
        arguments = '{"a":1}' if 7 in token_ids else '{"a":'
        calls = [ToolCallDelta(index=0, call_id="other", name="f", arguments=arguments)]
    ids = list(token_ids)
    return [delta(tokens=len(ids), token_ids=ids, text=text, reasoning=reasoning, tool_calls=calls)]


def collected(deltas: list[Delta]) -> dict[str, object]:
    calls = [call for each in deltas for call in each.tool_calls]
    return {
        "tokens": sum(each.tokens for each in deltas),
        "token_ids": [token for each in deltas for token in each.token_ids or ()],
        "text": "".join(each.text for each in deltas),
        "reasoning": "".join(each.reasoning for each in deltas),
        "names": [call.name for call in calls if call.name],
        "arguments": "".join(call.arguments for call in calls),
        "ids": len([call.call_id for call in calls if call.call_id]),
    }


@pytest.mark.parametrize("deaths", list(itertools.combinations_with_replacement(range(7), 2)))
def test_each_piece_is_shown_once_wherever_neurons_die(deaths: tuple[int, int]) -> None:
    whole = collected([delta(**fields) for fields in ANSWER])
    transcript, shown, at = Transcript(1, with_ids=True), [], 0
    for death in (*deaths, len(ANSWER)):
        for fields in ANSWER[at:death]:
            each = delta(**fields)
            if transcript.take(each):
                shown.append(each)
        at = death
        for each in told_again(transcript.written()[0]):
            assert not transcript.take(each), "nothing of it is new"
    assert collected(shown) == whole
    assert transcript.is_whole


def test_text_that_lagged_at_the_death_comes_from_the_next_neuron() -> None:
    transcript = Transcript(2, with_ids=False)
    transcript.take(delta(tokens=1, token_ids=[1], text="a"))
    transcript.take(delta(tokens=1, token_ids=[2], index=1, text="other"))
    assert transcript.written() == [[1], [2]]
    again = delta(tokens=1, token_ids=[1], text="ab")
    assert transcript.take(again)
    assert (again.tokens, again.text, again.token_ids) == (0, "b", None)
    more = delta(tokens=2, token_ids=[3, 4], text="cd")
    assert transcript.take(more)
    assert (more.tokens, more.text) == (2, "cd")
    assert transcript.written() == [[1, 3, 4], [2]]


def test_an_answer_with_tokens_that_nobody_named_is_not_whole() -> None:
    transcript = Transcript(1, with_ids=False)
    assert transcript.take(delta(tokens=1, text="a"))
    assert not transcript.is_whole


def test_a_choice_that_nobody_asked_for_is_refused() -> None:
    with pytest.raises(CortexError, match="answers choice 2 of 2"):
        Transcript(2, with_ids=False).take(delta(tokens=1, index=2, text="a"))


def test_an_answer_of_more_tokens_than_a_neuron_tells_again_is_not_whole() -> None:
    transcript = Transcript(2, with_ids=False)
    for index in range(2):
        transcript.take(delta(tokens=MAX_WRITTEN // 2, token_ids=[1] * (MAX_WRITTEN // 2), index=index))
    assert transcript.is_whole
    assert sum(map(len, transcript.written())) == MAX_WRITTEN
    transcript.take(delta(tokens=MAX_WRITTEN // 2, token_ids=[1] * (MAX_WRITTEN // 2)))  # it is told again
    assert transcript.is_whole
    transcript.take(delta(tokens=1, token_ids=[1]))
    assert not transcript.is_whole
