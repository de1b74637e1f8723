"""How choices, their log-probabilities and their prompts are written."""

from __future__ import annotations

import json
from typing import Any

from gateway.dialects.large import written
from gateway.dialects.openai import chat as openai_chat
from gateway.dialects.openai import completions as openai_completions
from gateway.dialects.openai.logprobs import chat_logprobs, completion_logprobs, prompt_logprobs
from ipc.messages.answers import Alternative, Choice, Timings, TokenLogprob, Usage
from ipc.messages.replies import Delta, Finished, Started
from tests.gateway.parsing import USER, parsed

A = TokenLogprob(token_id=1, token="a", raw=b"a", logprob=-0.5, rank=1)
B = TokenLogprob(
    token_id=2,
    token="\ufffd",
    raw=b"\xc3",
    logprob=-2.0,
    rank=2,
    top=[Alternative(token_id=1, token="a", raw=b"a", logprob=-float("inf"))],
)
FIRST = TokenLogprob(token_id=0, token="<s>", raw=b"<s>", logprob=None, rank=0)


def test_logprobs_of_a_chat_are_written_as_openai_does() -> None:
    assert json.loads(written(chat_logprobs([A, B])))["content"] == [
        {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []},
        {
            "token": "\ufffd",
            "logprob": -2.0,
            "bytes": [0xC3],
            "top_logprobs": [{"token": "a", "logprob": -9999.0, "bytes": [97]}],
        },
    ]


def test_logprobs_of_a_completion_have_one_entry_a_token() -> None:
    assert json.loads(written(completion_logprobs([FIRST, A, B], 10))) == {
        "tokens": ["<s>", "a", "\ufffd"],
        "token_logprobs": [None, -0.5, -2.0],
        "top_logprobs": [None, {"a": -0.5}, {"a": -9999.0, "\ufffd": -2.0}],
        "text_offset": [10, 13, 14],
    }


def test_prompt_logprobs_are_written_as_vllm_does() -> None:
    assert json.loads(written(prompt_logprobs([FIRST, A]))) == [
        None,
        {"1": {"logprob": -0.5, "rank": 1, "decoded_token": "a"}},
    ]


def test_choices_are_written_with_their_numbers() -> None:
    body = {"model": "m", "messages": [USER], "n": 2, "logprobs": True}
    _, answer = parsed(openai_chat.parse, json.dumps(body).encode())
    choices = [Choice(reason="stop", index=i, text=f"{i}", logprobs=[A]) for i in range(2)]
    finished = Finished(id=1, choices=choices, usage=Usage(), timings=Timings())
    whole = json.loads(answer.whole(Started(id=1, prompt_tokens=1), finished))
    assert [(each["index"], each["message"]["content"]) for each in whole["choices"]] == [(0, "0"), (1, "1")]
    assert whole["choices"][1]["logprobs"]["content"][0]["token"] == "a"
    chunk = json.loads(answer.delta(Delta(id=1, tokens=1, index=1, text="x", logprobs=[B]))[6:])
    assert (chunk["choices"][0]["index"], chunk["choices"][0]["delta"]) == (1, {"content": "x"})
    assert chunk["choices"][0]["logprobs"]["content"][0]["logprob"] == -2.0
    assert answer.finished(finished).count(b'"finish_reason":"stop"') == 2


def test_an_echo_counts_its_offsets_from_the_prompt() -> None:
    body = {"model": "m", "prompt": "<s>a", "echo": True, "logprobs": 1}
    _, answer = parsed(openai_completions.parse, json.dumps(body).encode())
    first = Delta(id=1, tokens=1, text="<s>ab", logprobs=[B], prompt_logprobs=[FIRST, A])
    second = Delta(id=1, tokens=1, text="c", logprobs=[A])
    told = [json.loads(answer.delta(delta)[6:])["choices"][0]["logprobs"] for delta in (first, second)]
    assert [each["text_offset"] for each in told] == [[0, 3, 4], [5]]


def two_prompts(**fields: Any) -> openai_completions.CompletionAnswer:
    """The writer for two choices of each of two prompts, asked for all that can be told of a prompt."""
    body = {"model": "m", "prompt": ["<s>a", "<s>b"], "n": 2, "return_token_ids": True}
    body |= {"echo": True, "logprobs": 1, "prompt_logprobs": 1}
    return parsed(openai_completions.parse, json.dumps(body | fields).encode())[1]


PROMPT_IDS = [[0, 1], [0, 2]]
TOLD = [[FIRST, A], [FIRST, B]]


def test_each_choice_has_what_is_told_of_its_own_prompt() -> None:
    choices = [Choice(reason="stop", index=i, text=f"{i}", token_ids=[i], logprobs=[A]) for i in range(4)]
    finished = Finished(id=1, choices=choices, usage=Usage(), timings=Timings(), prompt_logprobs=TOLD)
    started = Started(id=1, prompt_tokens=4, prompt_token_ids=PROMPT_IDS)
    whole = json.loads(two_prompts().whole(started, finished))["choices"]
    assert [(each["index"], each["text"]) for each in whole] == [(i, f"{i}") for i in range(4)]
    assert [each["prompt_token_ids"] for each in whole] == [[0, 1], [0, 1], [0, 2], [0, 2]]
    tokens = [each["logprobs"]["tokens"] for each in whole]
    assert tokens == [["<s>", "a", "a"]] * 2 + [["<s>", "\ufffd", "a"]] * 2
    assert [next(iter(each["prompt_logprobs"][1])) for each in whole] == ["1", "1", "2", "2"]


def test_streamed_choices_begin_with_their_own_prompt() -> None:
    answer = two_prompts()
    started = answer.started(Started(id=1, prompt_tokens=4, prompt_token_ids=PROMPT_IDS))
    heads = [json.loads(event[6:])["choices"][0] for event in started.split(b"\n\n")[:-1]]
    assert [(each["index"], each["prompt_token_ids"]) for each in heads] == [
        (0, [0, 1]),
        (1, [0, 1]),
        (2, [0, 2]),
        (3, [0, 2]),
    ]

    def tokens(index: int, told: list[TokenLogprob] | None = None) -> list[str]:
        delta = Delta(id=1, tokens=1, index=index, text="a", logprobs=[A], prompt_logprobs=told)
        return json.loads(answer.delta(delta)[6:])["choices"][0]["logprobs"]["tokens"]

    assert [tokens(2, TOLD[1]), tokens(0, TOLD[0])] == [["<s>", "\ufffd", "a"], ["<s>", "a", "a"]]
    assert [tokens(3), tokens(1)] == [["<s>", "\ufffd", "a"], ["<s>", "a", "a"]]
    assert tokens(3) == ["a"]


def test_a_prompt_that_is_told_of_in_pieces_begins_each_choice_as_one() -> None:
    def told(answer: openai_completions.CompletionAnswer, *deltas: Delta) -> dict[int, dict[str, Any]]:
        """By choice, all that is said of its tokens."""
        said: dict[int, dict[str, Any]] = {}
        for delta in deltas:
            choice = json.loads(answer.delta(delta)[6:])["choices"][0]
            for name, values in choice["logprobs"].items():
                said.setdefault(choice["index"], {}).setdefault(name, []).extend(values)
        return said

    def delta(index: int, of_prompt: list[TokenLogprob] | None, *entries: TokenLogprob) -> Delta:
        text = "".join(entry.token for entry in entries)
        tokens = len(entries)
        return Delta(
            id=1, tokens=tokens, index=index, text=text, logprobs=list(entries), prompt_logprobs=of_prompt
        )

    rest = [delta(1, None, B), delta(0, None, A)]
    whole = told(two_prompts(), delta(0, [FIRST, A, B], A), *rest)
    pieces = [delta(0, [FIRST]), delta(0, [A]), delta(0, [B], A)]
    assert told(two_prompts(), *pieces, *rest) == whole
    assert whole[0]["text_offset"] == [0, 3, 4, 5, 6]
    assert whole[1]["tokens"] == ["<s>", "a", "\ufffd", "\ufffd"]
