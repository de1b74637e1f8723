"""Guesses that a test knows to be right, or wrong, and requests to guess at."""

from __future__ import annotations

import random
from array import array

import msgspec

from ipc.worker_messages import Submit
from tests.workers.engines import Answer, Session, request

SIZES = {"context_length": 256, "max_step_tokens": 64}


class Knows:
    """Guesses from what was answered without guesses, and is wrong now and then."""

    def __init__(self, answers: dict[tuple[int, ...], list[int]]) -> None:
        self.answers = dict(sorted(answers.items(), key=lambda pair: -len(pair[0])))  # by prompt

    def draft(self, token_ids: array[int], most: int) -> list[int]:
        text = token_ids.tolist()
        whole = next(each for each in self.answers if tuple(text[: len(each)]) == each)
        found = self.answers[whole][len(text) - len(whole) :][:most]
        if len(text) % 3 == 0:
            found[len(text) % 5 :] = [3] * len(found[len(text) % 5 :])
        return found


def of_all_kinds() -> list[Submit]:
    """Settings that are guessed and such as are not, with answers over several pages."""
    dice = random.Random(3)
    settings = [
        {},
        {"logprobs": 3},
        {"temperature": 1.0, "seed": 7},
        {"temperature": 0.8, "top_k": 9, "seed": 8, "logprobs": 0},
        {"temperature": 1.2, "top_p": 0.9, "min_p": 0.01, "seed": 1 << 63},
        {"temperature": 1.0, "logit_bias": {7: 2.0}, "bad_words": [[11]], "min_tokens": 20, "stop_ids": [5]},
        {"repetition_penalty": 1.3, "logprobs": 1},
        {"no_repeat_ngram": 2},
        {"prompt_logprobs": 1},
    ]
    return [
        request(number, [dice.randrange(6, 131) for _ in range(20 + 7 * number)], 50, **each)
        for number, each in enumerate(settings)
    ]


def answers_of(
    engine, submits: list[Submit], *, seed: int | None = None, **limits
) -> tuple[list[Answer], dict]:
    """What is answered, and what a scheduler counted of it."""
    session = Session(engine, **{"max_sequences": 16} | SIZES | limits)
    found = session.answer(submits, seed=seed)
    session.end()
    return found, session.scheduler.statistics()


def replace_id(submit: Submit) -> Submit:
    """The same request, once more."""
    return msgspec.structs.replace(submit, request_id=submit.request_id + 1000)
