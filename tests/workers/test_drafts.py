"""Guesses at what comes next, and when it is worth to make them."""

from __future__ import annotations

import random
from array import array

import pytest

from ipc.worker_messages import FREE_ROWS, Constraint, SamplingParams, Submit
from workers.scheduling import drafts
from workers.scheduling.drafts import Guessing, PromptLookup
from workers.scheduling.speculation import may_be_guessed


def guess(token_ids: list[int], most: int = 4) -> list[int]:
    return PromptLookup().draft(array("I", token_ids), most)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 1, 2], [3, 4, 5, 6]),
        ([1, 2, 3, 9, 1, 2], [3, 9, 1, 2]),  # to the end of the text, and on from there
        ([5, 6, 5, 6], [5, 6, 5, 6]),
        ([8, 8, 8], [8, 8, 8, 8]),
        ([1, 2, 3, 4], []),
        ([2, 3, 4, 2], []),  # one token says too little
        ([7], []),
        ([], []),
    ],
)
def test_what_followed_the_same_tokens_is_the_guess(text, expected):
    assert guess(text) == expected


def test_the_longest_match_is_taken_and_of_equals_the_newest():
    assert guess([4, 1, 2, 50, 9, 1, 2, 60, 4, 1, 2], most=1) == [50]
    assert guess([4, 1, 2, 50, 5, 4, 1, 2, 60, 7, 4, 1, 2], most=1) == [60]


def test_a_guess_does_not_depend_on_how_often_one_was_asked_for():
    dice = random.Random(4)
    text = array("I")
    lookup = PromptLookup()
    found = 0
    for _ in range(400):
        text.extend(dice.choices(range(4), k=dice.randint(1, 5)))
        said = lookup.draft(text, 6)
        assert said == PromptLookup().draft(text, 6)
        found += bool(said)
    assert found > 300


def test_a_long_text_is_taken_in_by_parts_that_hold_nobody_up(monkeypatch):
    monkeypatch.setattr(drafts, "TAKEN_IN", 10)
    lookup, text = PromptLookup(), array("I", [*range(30), 0, 1])
    assert [lookup.draft(text, 2) for _ in range(4)] == [[], [], [2, 3], [2, 3]]


class Says:
    """Always has as much to say as anybody wants."""

    def draft(self, token_ids: array[int], most: int) -> list[int]:
        return [1] * most


def length(guessing: Guessing, num_tokens: int = 0) -> int:
    return len(guessing.draft(array("I", [1]) * num_tokens, 100))


def test_guesses_grow_while_they_are_right_and_shrink_to_what_was():
    guessing = Guessing(Says())
    assert length(guessing) == drafts.FIRST_LENGTH
    guessing.judge(4, 4, 10)
    assert length(guessing) == 8
    guessing.judge(8, 2, 13)
    assert length(guessing) == 3
    for _ in range(9):
        guessing.judge(3, 3, 20)
    assert length(guessing) == FREE_ROWS


def test_who_is_guessed_badly_rests_and_is_tried_again_each_time_later():
    guessing, now, rests = Guessing(Says()), 0, []
    for _ in range(8):
        while not guessing.rests(now):
            guessing.judge(2, 0, now := now + 1)
        began = now
        while guessing.rests(now):
            assert not length(guessing, now)
            now += 1
        rests.append(now - began)
    assert rests == [32, 64, 128, 256, 512, 1024, 1024, 1024]
    assert length(guessing, now) == 1
    guessing.judge(drafts.TRIAL, drafts.TRIAL, now)
    guessing.judge(drafts.TRIAL, 0, now)
    assert not guessing.rests(now + drafts.FIRST_REST), "one good trial, and a rest is short again"


def test_who_finds_nothing_to_guess_rests_every_other_while():
    guessing, asked = Guessing(PromptLookup()), []
    for num_tokens in range(10, 10 + 4 * drafts.TRIAL):
        asked.append(not guessing.rests(num_tokens))
        assert not guessing.draft(array("I", range(num_tokens)), 4)
    assert asked == ([True] * drafts.TRIAL + [False] * (drafts.TRIAL - 1)) * 2 + [True, True]


def test_what_has_to_follow_tokens_one_by_one_is_not_guessed():
    def allowed(constraint: Constraint | None = None, pooling: str = "", **params) -> bool:
        return may_be_guessed(Submit(1, b"", 1, SamplingParams(**params), constraint, pooling))

    plain = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "seed": 3, "stop_ids": [4]}
    told = {"logprobs": 3, "prompt_logprobs": 2, "min_tokens": 5, "begin_suppress_ids": [4]}
    assert allowed(**plain, **told, bad_words=[[5]], logit_bias={3: 1.0}, allowed_token_ids=[1, 2])
    for params in (
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"no_repeat_ngram": 3},
        {"bad_words": [[5], [5, 6]]},
    ):
        assert not allowed(**params)
    assert not allowed(constraint=Constraint(""))
    assert not allowed(pooling="mean")
